"""The bias and RMSNorm of all keys in one compiled pass over bfloat16 on the CPU, parallel over tokens.

Numba knows no bfloat16: a value is the upper half of a float32's bits, and is rounded to nearest, ties to even.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange

from engram_exp.projection.weights import ProjectionWeights

REORDERED_SUMS = {"reassoc", "contract", "nsz"}  # vectorises the sum of squares; NaN and infinity keep their meaning


class NumbaKeyNorm:
    """Adds the bias to keys and value and normalises the keys in place."""

    adds_bias = True

    def __init__(self, weights: ProjectionWeights) -> None:
        bias = torch.zeros(len(weights.weight)) if weights.bias is None else weights.bias.float()
        self.bias = bias.view(-1, weights.hidden_size).numpy()
        self.gain = weights.norm.float().numpy()
        self.eps = np.float32(weights.norm_eps)

    def __call__(self, kv: torch.Tensor) -> None:
        """Finish keys and value, bfloat16 [T, M + 1, C], contiguous."""
        _add_bias_and_normalise(kv.view(torch.uint16).numpy(), self.bias, self.gain, self.eps)


@njit(inline="always")
def _to_float(bits):  # type: ignore[no-untyped-def]
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _to_bits(value):  # type: ignore[no-untyped-def]
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit(parallel=True, cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _add_bias_and_normalise(kv, bias, gain, eps):  # type: ignore[no-untyped-def]
    tokens, vectors, hidden = kv.shape
    for token in prange(tokens):
        for vector in range(vectors):
            row = kv[token, vector]
            if vector == vectors - 1:
                for channel in range(hidden):
                    row[channel] = _to_bits(_to_float(row[channel]) + bias[vector, channel])
            else:
                squares = np.float32(0)
                for channel in range(hidden):
                    value = _to_float(row[channel]) + bias[vector, channel]
                    squares += value * value
                scale = np.float32(1) / np.float32(math.sqrt(squares / np.float32(hidden) + eps))
                for channel in range(hidden):
                    value = _to_float(row[channel]) + bias[vector, channel]
                    row[channel] = _to_bits(value * scale * gain[vector, channel])
