"""One matrix product for all keys and the value into a kept buffer, then all norms in one pass."""

from __future__ import annotations

from typing import Protocol

import torch

from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement, has_triton
from engram_exp.steps.projection.rms_norm import KeyNorm
from engram_exp.steps.projection.step import Projection


class Norm(Protocol):
    """What follows the matrix product: `adds_bias` says whether it also does what a fused bias would."""

    adds_bias: bool

    def __call__(self, kv: torch.Tensor) -> None:
        """Normalise the keys among keys and value [T, M + 1, C] in place."""


class FusedProjection(Projection):
    """Keys and value lie side by side in one buffer, so that one transfer takes them across the link."""

    def __init__(self, weights: ProjectionWeights, max_tokens: int, placement: Placement) -> None:
        self.weights = weights = weights.to(placement.device)
        self.kv = placement.empty(max_tokens, len(weights.weight), dtype=weights.weight.dtype)
        self.norm = fastest_norm(weights)

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [T, M, C] and value [T, C] of embeddings [T, H * D]: views of one buffer, kept for the next call."""
        weights = self.weights
        out = self.kv[: len(embeddings)]
        if weights.bias is None or self.norm.adds_bias:
            torch.mm(embeddings, weights.weight.t(), out=out)
        else:
            torch.addmm(weights.bias, embeddings, weights.weight.t(), out=out)
        kv = out.view(len(out), weights.hc_mult + 1, weights.hidden_size)
        self.norm(kv)
        return kv[:, :-1], kv[:, -1]


class NoNorm:
    """Leaves raw keys for a gate that normalises them."""

    adds_bias = False

    def __call__(self, kv: torch.Tensor) -> None:
        """Nothing."""


def fastest_norm(weights: ProjectionWeights) -> Norm:
    """What normalises the keys the soonest where these weights are; nothing where a gate does it."""
    if not weights.norms_keys:
        return NoNorm()
    if weights.norm.device.type == "cuda" and has_triton():
        from engram_exp.steps.projection.rms_norm_triton import TritonKeyNorm

        return TritonKeyNorm(weights)
    if weights.norm.device.type == "cpu" and weights.norm.dtype == torch.bfloat16:
        from engram_exp.steps.projection.rms_norm_numba import NumbaKeyNorm

        return NumbaKeyNorm(weights)
    return KeyNorm(weights)
