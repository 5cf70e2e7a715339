"""The readable way: one array operation per step, in float32, on any device and in any dtype."""

from __future__ import annotations

import torch

from engram_exp.layer.fusion import FusionWeights
from engram_exp.machine.placement import Placement
from engram_exp.steps.fusion.step import Fusion

SCRATCH_VALUES = 2**22  # of each intermediate array, 16 MB


class PlainFusion(Fusion):
    """Fuses a piece of every sequence at a time into a kept buffer."""

    def __init__(self, fusion_weights: FusionWeights, max_tokens: int, placement: Placement, lead: int) -> None:
        gains = fusion_weights.query_norm
        self.out = placement.empty(max_tokens, *gains.shape, dtype=gains.dtype)
        self.weights, self.lead = fusion_weights.to(torch.float32), lead

    def __call__(
        self, keys: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, *history: torch.Tensor
    ) -> torch.Tensor:
        """Hidden state [T, M, C] of keys, value, hidden state and history; overwritten by the next call."""
        weights, lead = self.weights, self.lead
        sequences = len(history[0]) if history else 1
        length = len(keys) // sequences
        out = self.out[: sequences * (length - lead)]
        whole = [tensor.unflatten(0, (sequences, length)) for tensor in (keys, value, hidden)]
        step = max(1, SCRATCH_VALUES // (sequences * weights.query_norm.numel()))
        for first in range(lead, length, step):
            before = min(first, weights.reach)
            piece = (tensor[:, first - before : first + step].float() for tensor in whole)
            fused = weights.fuse(*piece, *(tensor.float() for tensor in history), lead=before)
            out.unflatten(0, (sequences, -1))[:, first - lead : first - lead + step] = fused
        return out
