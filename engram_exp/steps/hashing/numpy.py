"""The readable reference: one array operation per step, fresh arrays on every call, as the original does."""

from __future__ import annotations

import numpy as np
import torch

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement


class NumpyHasher:
    """Hashes with NumPy on one core."""

    def __init__(self, plan: HashPlan, max_tokens: int, placement: Placement) -> None:
        placement.require("cpu", "hashing=numpy")
        self.plan = plan

    def __call__(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]."""
        plan = self.plan
        batch_size, seq_len = ids.shape
        stream = np.concatenate([history.numpy(), ids.numpy()], axis=1)
        compressed = np.where(stream < 0, plan.pad, plan.compressed_ids[stream]).astype(np.int64)
        row_ids = np.empty((batch_size, seq_len, plan.columns), dtype=np.int64)
        mixed = np.zeros((batch_size, seq_len), dtype=np.int64)
        for back, multiplier in enumerate(plan.multipliers):
            start = len(plan.multipliers) - 1 - back
            mixed = mixed ^ (compressed[:, start : start + seq_len] * multiplier)
            columns = slice(plan.first_column[back], plan.first_column[back + 1])
            row_ids[:, :, columns] = mixed[:, :, None] % plan.moduli[columns] + plan.offsets[columns]
        return torch.from_numpy(row_ids).to(plan.row_id_dtype)
