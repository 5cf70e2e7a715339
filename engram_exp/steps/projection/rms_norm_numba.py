"""The bias and RMSNorm of all keys in one compiled pass over bfloat16 on the CPU, parallel over tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange

from engram_exp.layer.weights import ProjectionWeights
from engram_exp.steps.bfloat16 import bits_to_float, float_to_bits

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


@njit(parallel=True, cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _add_bias_and_normalise(kv, bias, gain, eps):  # type: ignore[no-untyped-def]
    tokens, vectors, hidden = kv.shape
    for token in prange(tokens):
        for vector in range(vectors):
            row = kv[token, vector]
            if vector == vectors - 1:
                for channel in range(hidden):
                    row[channel] = float_to_bits(bits_to_float(row[channel]) + bias[vector, channel])
            else:
                squares = np.float32(0)
                for channel in range(hidden):
                    value = bits_to_float(row[channel]) + bias[vector, channel]
                    squares += value * value
                scale = np.float32(1) / np.float32(math.sqrt(squares / np.float32(hidden) + eps))
                for channel in range(hidden):
                    value = bits_to_float(row[channel]) + bias[vector, channel]
                    row[channel] = float_to_bits(value * scale * gain[vector, channel])
