"""RMSNorm of all keys at once, in place, accumulated in float32, on any device and in any dtype."""

from __future__ import annotations

import torch

from engram_exp.layer.weights import ProjectionWeights

SCRATCH_VALUES = 2**21  # 8 MB of float32: stays in the last-level cache, and is large enough to occupy every thread


class KeyNorm:
    """Normalises the keys in place, a cache-sized chunk of tokens at a time."""

    adds_bias = False

    def __init__(self, weights: ProjectionWeights) -> None:
        self.gain = weights.norm.float()
        self.eps = weights.norm_eps
        tokens = max(1, SCRATCH_VALUES // self.gain.numel())
        self.scratch = torch.empty(tokens, *self.gain.shape, dtype=torch.float32, device=self.gain.device)

    def __call__(self, kv: torch.Tensor) -> None:
        """Normalise the keys among keys and value [T, M + 1, C]."""
        for keys in kv[:, :-1].split(len(self.scratch)):
            scratch = self.scratch[: len(keys)]
            scratch.copy_(keys)
            norm = torch.linalg.vector_norm(scratch, dim=-1, keepdim=True)
            scale = norm.square_().div_(keys.shape[-1]).add_(self.eps).rsqrt_()
            scratch.mul_(scale).mul_(self.gain)
            keys.copy_(scratch)
