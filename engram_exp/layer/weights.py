"""The parameters of one layer's projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear, rms_norm

from engram_exp.layer.geometry import EngramGeometry


@dataclass(frozen=True)
class ProjectionWeights:
    """Keys first, then the value: row m * C + c of `weight` makes channel c of key m, row M * C + c that of the value.

    Args:
        weight: [(M + 1) * C, H * D].
        bias: [(M + 1) * C], or None.
        norm: [M, C], the gain of each key's RMSNorm.
        norm_eps: its epsilon.
        norms_keys: whether the projection applies it; where the gate does, keys are left raw.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: torch.Tensor
    norm_eps: float
    norms_keys: bool = True

    @classmethod
    def draw(cls, geometry: EngramGeometry, dtype: torch.dtype, seed: int) -> ProjectionWeights:
        """Random parameters on the CPU that keep the variance of what they project; equal seeds give equal ones."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, mean: float = 0.0, std: float) -> torch.Tensor:
            return torch.randn(shape, generator=generator).mul_(std).add_(mean).to(dtype)

        return cls(
            weight=normal(geometry.kv_width, geometry.embedding_width, std=geometry.embedding_width**-0.5),
            bias=normal(geometry.kv_width, std=0.1) if geometry.bias else None,
            norm=normal(geometry.hc_mult, geometry.hidden_size, mean=1.0, std=0.1),
            norm_eps=geometry.norm_eps,
        )

    @property
    def hc_mult(self) -> int:
        """M."""
        return self.norm.shape[0]

    @property
    def hidden_size(self) -> int:
        """C."""
        return self.norm.shape[1]

    def to(self, target: torch.device | torch.dtype) -> ProjectionWeights:
        """The same parameters on another device or in another dtype."""
        return replace(
            self,
            weight=self.weight.to(target),
            bias=None if self.bias is None else self.bias.to(target),
            norm=self.norm.to(target),
        )

    def share(self, number: int, shares: int) -> ProjectionWeights:
        """Rows of `weight`, and what `bias` has for them, that one of several has who make the columns between them: as
        many for each, the last of them zeros where they do not divide."""
        rows = -(-len(self.weight) // shares)

        def part(whole: torch.Tensor) -> torch.Tensor:
            found = whole.new_zeros(rows, *whole.shape[1:])
            own = whole[number * rows : (number + 1) * rows]
            found[: len(own)] = own
            return found

        return replace(self, weight=part(self.weight), bias=None if self.bias is None else part(self.bias))

    def project(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [n, M, C] and value [n, C] of embeddings [n, H * D] in the dtype of these parameters: the plain
        reference."""
        kv = linear(embeddings, self.weight, self.bias).view(-1, self.hc_mult + 1, self.hidden_size)
        keys = kv[:, :-1]
        if self.norms_keys:
            keys = rms_norm(keys, (self.hidden_size,), eps=self.norm_eps) * self.norm
        return keys, kv[:, -1]
