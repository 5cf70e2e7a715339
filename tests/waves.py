"""The parameters of the golden layer, which are closed forms."""

import numpy as np
import torch

from engram_exp.layer.fusion import FusionWeights
from engram_exp.layer.weights import ProjectionWeights

EPS = float(np.finfo(np.float32).eps)


def wave(shape: tuple[int, ...], a: float, scale: float) -> torch.Tensor:
    return torch.from_numpy((np.sin(a * np.arange(np.prod(shape)) + a) * scale).astype(np.float32).reshape(shape))


def gains(a: float) -> torch.Tensor:
    return torch.stack([1 + wave((64,), a + 0.01 * m, 0.2) for m in range(4)])


def golden_weights() -> ProjectionWeights:
    keys = range(4)
    return ProjectionWeights(
        weight=torch.cat([*(wave((64, 128), 0.13 + 0.01 * m, 0.1) for m in keys), wave((64, 128), 0.11, 0.1)]),
        bias=torch.cat([*(wave((64,), 0.59 + 0.01 * m, 0.1) for m in keys), wave((64,), 0.53, 0.1)]),
        norm=gains(0.71),
        norm_eps=EPS,
    )


def golden_fusion() -> FusionWeights:
    taps = wave((4 * 64, 1, 4), 0.29, 0.5).view(4, 64, 4)
    return FusionWeights(gains(0.71), gains(0.83), EPS, conv_norm=gains(0.91), conv_weight=taps, conv_dilation=3)
