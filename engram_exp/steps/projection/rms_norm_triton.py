"""RMSNorm of all keys in one kernel: each key is read once and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.layer.weights import ProjectionWeights


class TritonKeyNorm:
    """Normalises the keys in place, one program per key."""

    adds_bias = False

    def __init__(self, weights: ProjectionWeights) -> None:
        self.gain = weights.norm.float()
        self.eps = weights.norm_eps

    def __call__(self, kv: torch.Tensor) -> None:
        """Normalise the keys among keys and value [T, M + 1, C], contiguous."""
        tokens, vectors, hidden = kv.shape
        block = triton.next_power_of_2(hidden)
        _rms_norm_kernel[(tokens, vectors - 1)](kv, self.gain, self.eps, vectors * hidden, hidden, BLOCK=block)


@triton.jit
def _rms_norm_kernel(kv, gain, eps, token_stride, hidden, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    copy = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < hidden
    key = kv + token * token_stride + copy * hidden + channel
    x = tl.load(key, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(x * x) / hidden + eps)
    y = x * scale * tl.load(gain + copy * hidden + channel, mask=inside, other=0.0)
    tl.store(key, y, mask=inside)
