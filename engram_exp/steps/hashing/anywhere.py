"""On a GPU its kernel, and the compiled loop where the CPU stands in for one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.hashing.step import Hashing


class AnywhereHasher(Hashing):
    """Hashes with `hashing=triton` on a GPU, and with `hashing=numba` on the CPU."""

    anywhere = True

    def __init__(self, plan: HashPlan, max_tokens: int, placement: Placement) -> None:
        self.hash: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
        if placement.device.type == "cpu":
            self.hash = NumbaHasher(plan, max_tokens, placement)
        else:
            from engram_exp.steps.hashing.triton import TritonHasher  # Triton comes with PyTorch's CUDA builds only

            self.hash = TritonHasher(plan, max_tokens, placement)

    def __call__(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]; overwritten by the next call."""
        return self.hash(ids, history)
