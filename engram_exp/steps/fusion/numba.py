"""Compiled, over bfloat16 or float32 on the CPU, parallel over blocks of tokens whose hidden state stays in a cache."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange

from engram_exp.layer.fusion import CONV_NORM_EPS, LEAST_PRODUCT, FusionWeights
from engram_exp.machine.placement import Placement
from engram_exp.steps.bfloat16 import put, to_float
from engram_exp.steps.fusion.step import Fusion

BLOCK_TOKENS = 32
REORDERED_SUMS = {"reassoc", "contract", "nsz"}  # vectorises sums; NaN and infinity keep their meaning


class NumbaFusion(Fusion):
    """Fuses into a kept buffer. With a convolution, a block works out again the gates of the R tokens before it."""

    def __init__(self, fusion_weights: FusionWeights, max_tokens: int, placement: Placement, lead: int) -> None:
        placement.require("cpu", "fusion")
        weights, gains = fusion_weights, fusion_weights.query_norm
        self.out = placement.empty(max_tokens, *gains.shape, dtype=gains.dtype)
        self.weights, self.lead = weights, lead
        self.gains = (weights.key_norm.float() * gains.float()).numpy()
        copies, channels = gains.shape
        self.taps = np.empty((copies, 0, channels), np.float32)
        if weights.conv_weight is not None and weights.conv_norm is not None:
            taps = weights.conv_weight.float() * weights.conv_norm.float()[..., None]
            self.taps = taps.transpose(1, 2).contiguous().numpy()
        self.no_history = gains.new_empty(1, 0, channels), torch.empty(1, 0, copies)

    def __call__(
        self, keys: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, *history: torch.Tensor
    ) -> torch.Tensor:
        """Hidden state [T, M, C] of keys, value, hidden state and history; overwritten by the next call."""
        values, scales = history or self.no_history
        sequences, length = len(scales), len(keys) // len(scales)
        out, eps = self.out[: sequences * (length - self.lead)], np.float32(self.weights.norm_eps)
        _fuse(
            _flat(keys), keys.stride(0), _flat(value), value.stride(0), _flat(hidden), _flat(out), self.gains,
            self.taps, _flat(values), scales.numpy(), length, self.lead, self.weights.conv_dilation, eps,
        )  # fmt: skip
        return out


def _flat(tensor: torch.Tensor) -> np.ndarray:
    """All memory from a tensor's first element to its last: an array without gaps is what loops are vectorised over."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    span = 1 + sum(steps) if tensor.numel() else 0
    flat = tensor.as_strided((span,), (1,))
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


@njit(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x within 2e-7 of it, in operations that can be vectorised: Cephes' `expf`."""
    x = np.float32(-87) if x < np.float32(-87) else np.float32(88) if x > np.float32(88) else x
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1)
    return y * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always")
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return np.float32(1) / (np.float32(1) + _exp(-x))


@njit(cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _gates(keys, queries, gains, norm_eps, gates):  # type: ignore[no-untyped-def]
    """The gate of each copy of one token, whose keys and hidden state lie in one row each."""
    copies, channels = gains.shape
    size, least = np.float32(channels), np.float32(LEAST_PRODUCT)
    for copy in range(copies):
        own, other, gain = _row(keys, copy * channels, channels), _row(queries, copy * channels, channels), gains[copy]
        key_squares, query_squares, product = np.float32(0), np.float32(0), np.float32(0)
        for channel in range(channels):
            key, query = to_float(own[channel]), to_float(other[channel])
            key_squares += key * key
            query_squares += query * query
            product += key * query * gain[channel]
        norms = np.float32(math.sqrt((key_squares / size + norm_eps) * (query_squares / size + norm_eps)))
        product = product / (norms * np.float32(math.sqrt(size)))
        root = np.float32(math.sqrt(max(abs(product), least)))
        gates[copy] = _sigmoid(root if product > 0 else -root if product < 0 else product)  # of 0: 0; of NaN: NaN


@njit(cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _power(value):  # type: ignore[no-untyped-def]
    """The mean square of a row."""
    squares = np.float32(0)
    for channel in range(len(value)):
        squares += to_float(value[channel]) * to_float(value[channel])
    return squares / np.float32(len(value))


@njit(cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _add_tap(convolved, is_first, value, scale, weight):  # type: ignore[no-untyped-def]
    for channel in range(len(weight)):
        tap = to_float(value[channel]) * weight[channel] * scale
        convolved[channel] = tap if is_first else convolved[channel] + tap


@njit(inline="always")
def _row(flat, first, length):  # type: ignore[no-untyped-def]
    """A stretch of an array: of an index that counts from 0 it is known that it is not negative."""
    return flat[first : first + length]


@njit(parallel=True, cache=True, error_model="numpy", fastmath=REORDERED_SUMS)
def _fuse(  # type: ignore[no-untyped-def]
    keys, key_stride, values, value_stride, hidden, out, gains, taps, earlier_values, earlier_scales, length, lead,
    dilation, norm_eps,
):  # fmt: skip
    copies, channels = gains.shape
    kernel, reach, width = taps.shape[1], earlier_scales.shape[1], copies * channels
    blocks = (length - lead + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    for block in prange(len(earlier_scales) * blocks):
        sequence = block // blocks
        begin = lead + block % blocks * BLOCK_TOKENS
        end, start = min(begin + BLOCK_TOKENS, length), max(begin - reach, 0)
        first = sequence * length
        gates = np.empty((end - start, copies), np.float32)
        scales = np.empty((end - start, copies), np.float32)
        for here in range(start, end):
            token, own = first + here, gates[here - start]
            _gates(_row(keys, token * key_stride, width), _row(hidden, token * width, width), gains, norm_eps, own)
            if kernel:
                power = _power(_row(values, token * value_stride, channels))
                for copy in range(copies):
                    square = own[copy] * own[copy] * power + np.float32(CONV_NORM_EPS)
                    scales[here - start, copy] = own[copy] / np.float32(math.sqrt(square))
        convolved = np.zeros(channels, np.float32)
        for here in range(begin, end):
            token, to = first + here, sequence * (length - lead) + here - lead
            value = _row(values, token * value_stride, channels)
            for copy in range(copies):
                gate = gates[here - start, copy]
                state = _row(hidden, token * width + copy * channels, channels)
                fused = _row(out, to * width + copy * channels, channels)
                if not kernel:
                    for channel in range(channels):
                        put(fused, channel, to_float(state[channel]) + gate * to_float(value[channel]))
                    continue
                for tap in range(kernel):
                    there = here - (kernel - 1 - tap) * dilation
                    if there >= 0:
                        row, scale = _row(values, (first + there) * value_stride, channels), scales[there - start, copy]
                    else:
                        row = _row(earlier_values, (sequence * reach + reach + there) * channels, channels)
                        scale = earlier_scales[sequence, reach + there, copy]
                    _add_tap(convolved, tap == 0, row, scale, taps[copy, tap])
                for channel in range(channels):
                    gated = to_float(state[channel]) + gate * to_float(value[channel])
                    put(fused, channel, gated + convolved[channel] * _sigmoid(convolved[channel]))
