"""A gate alone, as DeepSeek-V4.1-Flash has it: gate * value is added to every copy of the hidden state."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.layer.fusion import FusionWeights
from engram_exp.machine.placement import Placement, has_triton
from engram_exp.steps.fusion.step import Fusion


class GatedFusion(Fusion):
    """Both RMSNorms are folded into the gate's dot product, in one pass, in the fastest way that there is."""

    def __init__(self, fusion_weights: FusionWeights, max_tokens: int, placement: Placement, lead: int) -> None:
        self.way = fastest_way(fusion_weights)(fusion_weights, max_tokens, placement, lead)

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Hidden state [T, M, C] of keys, value and hidden state; overwritten by the next call."""
        return self.way(*tensors)


def fastest_way(weights: FusionWeights) -> Callable[..., Callable[..., torch.Tensor]]:
    """The class of the fastest way to fuse on the device and in the dtype of these weights."""
    device, dtype = weights.query_norm.device.type, weights.query_norm.dtype
    if device == "cuda" and has_triton():
        from engram_exp.steps.fusion.triton import TritonFusion

        return TritonFusion
    if device == "cpu" and dtype in (torch.bfloat16, torch.float32):
        from engram_exp.steps.fusion.numba import NumbaFusion

        return NumbaFusion
    from engram_exp.steps.fusion.plain import PlainFusion

    return PlainFusion
