"""The readable reference: one array operation per step, fresh arrays on every call, as the original does."""

from __future__ import annotations

import torch

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.step import Hashing


class NumpyHasher(Hashing):
    """Hashes with NumPy on one core."""

    def __init__(self, plan: HashPlan, max_tokens: int, placement: Placement) -> None:
        placement.require("cpu", "hashing")
        self.plan = plan

    def __call__(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]."""
        return self.plan.row_ids(ids, history)
