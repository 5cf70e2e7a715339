"""The gate, and the short convolution behind it, that put keys and value into a model's hidden state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import rms_norm, silu

from engram_exp.layer.geometry import EngramGeometry
from engram_exp.layer.weights import ProjectionWeights

CONV_NORM_EPS = 1e-5
LEAST_PRODUCT = 1e-6  # below it, the root of a gate's product is the root of this


@dataclass(frozen=True)
class FusionWeights:
    """Parameters of one layer's fusion, and what they make of keys and value: the plain reference.

    The gate of a copy is g = sigmoid(sign(d) sqrt(max(|d|, 1e-6))), where d = sum(key * query) / sqrt(C) of the
    RMS-normed key and the RMS-normed hidden state. To the hidden state g * value is added and, where the model has a
    convolution, SiLU(conv(RMSNorm(g * value))), causal and depthwise. Sections 2.3 and 2.4 of arXiv 2601.07372, with
    the constants of its public demonstration.

    RMSNorm takes out most of the gate again: RMSNorm(g * value) is s * value * conv_norm, with one number for a token
    and copy, s = g / sqrt(g^2 mean(value^2) + eps). So what a sequence hands on to its next step is the value of its
    last R = (K - 1) * dilation tokens and their s: a fraction 1 / M of the convolution's own input.

    Args:
        key_norm, query_norm: [M, C], gains of the keys' and the hidden state's RMSNorm.
        norm_eps: their epsilon.
        conv_norm: [M, C], the gain of the RMSNorm before the convolution; None if the model has none.
        conv_weight: [M, C, K], the oldest tap first; None with it.
        conv_dilation: tokens from one tap to the next; 1 without.
    """

    key_norm: torch.Tensor
    query_norm: torch.Tensor
    norm_eps: float
    conv_norm: torch.Tensor | None = None
    conv_weight: torch.Tensor | None = None
    conv_dilation: int = 1

    @classmethod
    def draw(cls, geometry: EngramGeometry, projection: ProjectionWeights, seed: int) -> FusionWeights:
        """Random parameters beside those of a projection, which bring the keys' norm; equal seeds give equal ones."""
        generator = torch.Generator().manual_seed(seed)
        gains = geometry.hc_mult, geometry.hidden_size

        def normal(*shape: int, mean: float = 0.0, std: float) -> torch.Tensor:
            return torch.randn(shape, generator=generator).mul_(std).add_(mean).to(projection.norm.dtype)

        gate = cls(projection.norm, normal(*gains, mean=1.0, std=0.1), geometry.norm_eps)
        if geometry.conv_kernel is None or geometry.conv_dilation is None:
            return gate
        return replace(
            gate,
            conv_norm=normal(*gains, mean=1.0, std=0.1),
            conv_weight=normal(*gains, geometry.conv_kernel, std=geometry.conv_kernel**-0.5),
            conv_dilation=geometry.conv_dilation,
        )

    @property
    def kernel(self) -> int:
        """K, taps of the convolution; 1 without."""
        return 1 if self.conv_weight is None else self.conv_weight.shape[-1]

    @property
    def reach(self) -> int:
        """R, tokens before one that its convolution reads; 0 without."""
        return (self.kernel - 1) * self.conv_dilation

    def to(self, target: torch.device | torch.dtype) -> FusionWeights:
        """The same parameters on another device or in another dtype."""
        return replace(
            self,
            key_norm=self.key_norm.to(target),
            query_norm=self.query_norm.to(target),
            conv_norm=None if self.conv_norm is None else self.conv_norm.to(target),
            conv_weight=None if self.conv_weight is None else self.conv_weight.to(target),
        )

    def products(self, keys: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """d [..., M] of raw keys and hidden state [..., M, C]."""
        size = keys.shape[-1:]
        queries = rms_norm(hidden, size, eps=self.norm_eps) * self.query_norm
        return (rms_norm(keys, size, eps=self.norm_eps) * self.key_norm * queries).sum(-1) / size[0] ** 0.5

    def normed(self, gated: torch.Tensor) -> torch.Tensor:
        """What the convolution reads, of gated values [..., M, C]."""
        assert self.conv_norm is not None
        return rms_norm(gated, gated.shape[-1:], eps=CONV_NORM_EPS) * self.conv_norm

    def earlier(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The same [..., M, C] of what was handed on: value [..., C] and s [..., M]."""
        assert self.conv_norm is not None
        return scales[..., None] * values[..., None, :] * self.conv_norm

    def convolved(self, taps: Iterable[torch.Tensor]) -> torch.Tensor:
        """What the convolution adds to the hidden state [..., M, C], of its K taps [..., M, C], the oldest first."""
        assert self.conv_weight is not None
        return silu(sum((tap * self.conv_weight[..., k] for k, tap in enumerate(taps)), torch.zeros(())))

    def fuse(
        self, keys: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, *history: torch.Tensor, lead: int = 0
    ) -> torch.Tensor:
        """The hidden state [B, L - lead, M, C] behind the layer, in the dtype of these parameters.

        Args:
            keys: [B, L, M, C], raw.
            value: [B, L, C].
            hidden: [B, L, M, C].
            history: with a convolution, values [B, R, C] and s [B, R, M] of the tokens before the sequences; s is 0
                where there are none.
            lead: tokens at the front of each sequence that are only read.
        """
        gated = gate_of(self.products(keys, hidden))[..., None] * value[..., None, :]
        fused = hidden + gated
        if self.conv_weight is not None:
            stream = torch.cat([self.earlier(*history), self.normed(gated)], dim=1)
            starts = (k * self.conv_dilation for k in range(self.kernel))
            fused = fused + self.convolved(stream[:, start : start + keys.shape[1]] for start in starts)
        return fused[:, lead:]


def gate_of(products: torch.Tensor) -> torch.Tensor:
    """g of d."""
    return torch.sigmoid(products.sign() * products.abs().clamp_min(LEAST_PRODUCT).sqrt())
