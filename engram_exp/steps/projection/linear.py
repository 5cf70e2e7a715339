"""The original's way: M + 1 separate Linears, an RMSNorm on each key, fresh buffers throughout."""

from __future__ import annotations

import torch
from torch.nn.functional import linear, rms_norm

from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.steps.projection.step import Projection


class LinearProjection(Projection):
    """One matrix product per key and one for the value."""

    kv_buffers = 3  # what the Linears return, the normed keys, and these stacked

    def __init__(self, weights: ProjectionWeights, max_tokens: int, placement: Placement) -> None:
        weights = weights.to(placement.device)
        self.weights = weights
        hidden = weights.hidden_size
        biases = [None] * (weights.hc_mult + 1) if weights.bias is None else weights.bias.split(hidden)
        self.linears = list(zip(weights.weight.split(hidden), biases, strict=True))

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [T, M, C] and value [T, C] of embeddings [T, H * D], in memory of their own."""
        *keys, value = (linear(embeddings, weight, bias) for weight, bias in self.linears)
        weights = self.weights
        if weights.norms_keys:
            keys = [
                rms_norm(key, (weights.hidden_size,), gain, weights.norm_eps)
                for key, gain in zip(keys, weights.norm, strict=True)
            ]
        return torch.stack(keys, dim=1), value
