"""On the GPU, in one kernel that reads keys, value and hidden state once and writes once.

A program takes one copy. Without a convolution it takes that of one token, whose hidden state it reads in pieces for
the gate and again, from a cache, for the sum. With one it takes that of many tokens which follow each other, since the
gates of the R tokens before the first must be worked out again. That reads (n + R) / n times what n tokens need; a
kernel of its own that leaves all gates behind would have the hidden state read twice, 1.4 times the bytes. The scales
of the last R tokens stay in registers; their values are read again, from a cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.layer.fusion import CONV_NORM_EPS, LEAST_PRODUCT, FusionWeights
from engram_exp.machine.placement import Placement, multiprocessors
from engram_exp.steps.fusion.step import Fusion

PROGRAMS_PER_PROCESSOR = 8  # with a convolution: as many tokens a program as leave so many ...
MOST_TOKENS = 64  # ... but no more of them
CHANNELS_PER_WARP, MOST_WARPS = 256, 8
# Without one, as measured on an H200 for 8,192 tokens of 4 x 5120 (samples not kept): 280 us; whole tokens of 8 warps
# 440, pieces of 1,024 channels 300, and a copy of as many bytes 269.
PIECE_CHANNELS, PIECE_CHANNELS_PER_WARP = 2048, 512


class TritonFusion(Fusion):
    """Fuses into a kept device buffer."""

    def __init__(self, fusion_weights: FusionWeights, max_tokens: int, placement: Placement, lead: int) -> None:
        placement.require_triton("fusion")
        weights, gains = fusion_weights, fusion_weights.query_norm
        self.out = placement.empty(max_tokens, *gains.shape, dtype=gains.dtype)
        self.lead, self.norm_eps = lead, weights.norm_eps
        self.gains = weights.key_norm.float() * gains.float()
        self.kernel, self.dilation, self.reach = weights.kernel, weights.conv_dilation, weights.reach
        if weights.conv_weight is not None and weights.conv_norm is not None:
            taps = weights.conv_weight.float() * weights.conv_norm.float()[..., None]
            self.taps = taps.transpose(1, 2).contiguous()  # [M, K, C]
        self.block = triton.next_power_of_2(gains.shape[1])
        self.warps = min(MOST_WARPS, max(1, self.block // CHANNELS_PER_WARP))
        self.processors = multiprocessors(placement.device)

    def __call__(
        self, keys: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, *history: torch.Tensor
    ) -> torch.Tensor:
        """Hidden state [T, M, C] of keys, value, hidden state and history; overwritten by the next call."""
        if history:
            return self._gate_and_convolve(keys, value, hidden, *history)
        tokens, copies, channels = hidden.shape
        out, piece = self.out[:tokens], min(self.block, PIECE_CHANNELS)
        _gate_kernel[(tokens * copies,)](
            keys, value, hidden, out, self.gains, keys.stride(0), value.stride(0), channels**-0.5, self.norm_eps,
            COPIES=copies, CHANNELS=channels, PIECE=piece, PIECES=triton.cdiv(channels, piece), LEAST=LEAST_PRODUCT,
            num_warps=max(1, piece // PIECE_CHANNELS_PER_WARP),
        )  # fmt: skip
        return out

    def _gate_and_convolve(
        self,
        keys: torch.Tensor,
        value: torch.Tensor,
        hidden: torch.Tensor,
        earlier_values: torch.Tensor,
        earlier_scales: torch.Tensor,
    ) -> torch.Tensor:
        tokens, copies, channels = hidden.shape
        sequences = len(earlier_values)
        length = tokens // sequences
        out = self.out[: sequences * (length - self.lead)]
        per_program = self._tokens_per_program(len(out), copies, length - self.lead)
        blocks = triton.cdiv(length - self.lead, per_program)
        _gate_and_convolve_kernel[(sequences * blocks * copies,)](
            keys, value, hidden, out, self.gains, self.taps, earlier_values, earlier_scales,
            keys.stride(0), value.stride(0), length, self.lead, per_program, blocks, channels**-0.5, self.norm_eps,
            COPIES=copies, CHANNELS=channels, BLOCK=self.block, KERNEL=self.kernel, DILATION=self.dilation,
            REACH=self.reach, RING=triton.next_power_of_2(self.reach + 1), CONV_EPS=CONV_NORM_EPS, LEAST=LEAST_PRODUCT,
            num_warps=self.warps,
        )  # fmt: skip
        return out

    def _tokens_per_program(self, tokens: int, copies: int, length: int) -> int:
        enough = tokens * copies // (PROGRAMS_PER_PROCESSOR * self.processors)
        return max(1, min(enough, MOST_TOKENS, length))


@triton.jit
def _gate_of(sums, product_scale, norm_eps, CHANNELS: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of sums over the channels: of the keys' squares, of the hidden state's, and of their products."""
    key_scale = 1.0 / tl.sqrt_rn(sums[0] / CHANNELS + norm_eps)
    query_scale = 1.0 / tl.sqrt_rn(sums[1] / CHANNELS + norm_eps)
    product = sums[2] * key_scale * query_scale * product_scale
    root = tl.sqrt_rn(tl.maximum(tl.abs(product), LEAST))
    return tl.sigmoid(tl.where(product > 0, root, tl.where(product < 0, -root, product)))  # of 0: 0; of NaN: NaN


@triton.jit
def _gate(key, hidden, gain, product_scale, norm_eps, CHANNELS: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    sums = tl.sum(key * key), tl.sum(hidden * hidden), tl.sum(key * hidden * gain)
    return _gate_of(sums, product_scale, norm_eps, CHANNELS, LEAST)


@triton.jit
def _add(a_0, a_1, a_2, b_0, b_1, b_2):  # type: ignore[no-untyped-def]
    return a_0 + b_0, a_1 + b_1, a_2 + b_2


@triton.jit
def _gate_kernel(  # type: ignore[no-untyped-def]
    keys,
    values,
    hidden,
    out,
    gains,
    key_stride,
    value_stride,
    product_scale,
    norm_eps,
    COPIES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    LEAST: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    copy, token = program % COPIES, program // COPIES  # copies of a token follow each other: they share its value
    keys += token * key_stride + copy * CHANNELS
    hidden += program * CHANNELS
    out += program * CHANNELS
    keys_squared = tl.zeros([PIECE], tl.float32)
    hidden_squared = tl.zeros([PIECE], tl.float32)
    product = tl.zeros([PIECE], tl.float32)
    for piece in tl.static_range(PIECES):
        channel = piece * PIECE + tl.arange(0, PIECE)
        inside = channel < CHANNELS
        key = tl.load(keys + channel, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        state = tl.load(hidden + channel, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(gains + copy * CHANNELS + channel, mask=inside, other=0.0)
        keys_squared += key * key
        hidden_squared += state * state
        product += key * state * gain
    sums = tl.reduce((keys_squared, hidden_squared, product), 0, _add)
    gate = _gate_of(sums, product_scale, norm_eps, CHANNELS, LEAST)
    for piece in tl.static_range(PIECES):
        channel = piece * PIECE + tl.arange(0, PIECE)
        inside = channel < CHANNELS
        state = tl.load(hidden + channel, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(values + token * value_stride + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + channel, (state + gate * value).to(out.dtype.element_ty), mask=inside, cache_modifier=".cs")


@triton.jit
def _scale(gate, value, CHANNELS: tl.constexpr, CONV_EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    return gate / tl.sqrt_rn(gate * gate * (tl.sum(value * value) / CHANNELS) + CONV_EPS)


@triton.jit
def _gate_and_convolve_kernel(  # type: ignore[no-untyped-def]
    keys,
    values,
    hidden,
    out,
    gains,
    taps,
    earlier_values,
    earlier_scales,
    key_stride,
    value_stride,
    length,
    lead,
    per_program,
    blocks,
    product_scale,
    norm_eps,
    COPIES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REACH: tl.constexpr,
    RING: tl.constexpr,
    CONV_EPS: tl.constexpr,
    LEAST: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    copy, block = program % COPIES, program // COPIES  # copies of a token follow each other: they share its value
    sequence = block // blocks
    begin = lead + block % blocks * per_program
    end = tl.minimum(begin + per_program, length)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    column = copy * CHANNELS + channel
    gain = tl.load(gains + column, mask=inside, other=0.0)
    first = sequence * length
    slot = tl.arange(0, RING)  # the scale of position p stands in slot p modulo RING
    position = begin - 1 - ((begin - 1 - slot) & (RING - 1))
    is_earlier = (position < 0) & (position >= -REACH)
    ring = tl.load(earlier_scales + (sequence * REACH + REACH + position) * COPIES + copy, mask=is_earlier, other=0.0)
    for here in range(tl.maximum(begin - REACH, 0), begin):
        key = tl.load(keys + (first + here) * key_stride + column, mask=inside, other=0.0).to(tl.float32)
        state = tl.load(hidden + (first + here) * COPIES * CHANNELS + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(values + (first + here) * value_stride + channel, mask=inside, other=0.0).to(tl.float32)
        gate = _gate(key, state, gain, product_scale, norm_eps, CHANNELS, LEAST)
        ring = tl.where(slot == (here & (RING - 1)), _scale(gate, value, CHANNELS, CONV_EPS), ring)
    for here in range(begin, end):
        key = tl.load(keys + (first + here) * key_stride + column, mask=inside, other=0.0).to(tl.float32)
        state = tl.load(hidden + (first + here) * COPIES * CHANNELS + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(values + (first + here) * value_stride + channel, mask=inside, other=0.0).to(tl.float32)
        gate = _gate(key, state, gain, product_scale, norm_eps, CHANNELS, LEAST)
        fused = state + gate * value
        scale = _scale(gate, value, CHANNELS, CONV_EPS)
        ring = tl.where(slot == (here & (RING - 1)), scale, ring)
        weight = tl.load(taps + (copy * KERNEL + KERNEL - 1) * CHANNELS + channel, mask=inside, other=0.0)
        convolved = scale * value * weight
        for tap in tl.static_range(KERNEL - 1):
            there = here - (KERNEL - 1 - tap) * DILATION
            scale = tl.sum(tl.where(slot == (there & (RING - 1)), ring, 0.0))
            own = values + (first + there) * value_stride + channel
            before = earlier_values + (sequence * REACH + REACH + there) * CHANNELS + channel
            value = tl.load(own, mask=inside & (there >= 0), other=0.0).to(tl.float32)
            value += tl.load(before, mask=inside & (there < 0), other=0.0).to(tl.float32)
            weight = tl.load(taps + (copy * KERNEL + tap) * CHANNELS + channel, mask=inside, other=0.0)
            convolved += scale * value * weight
        fused += convolved * tl.sigmoid(convolved)
        place = out + ((sequence * (length - lead) + here - lead) * COPIES * CHANNELS + column)
        tl.store(place, fused.to(out.dtype.element_ty), mask=inside)
