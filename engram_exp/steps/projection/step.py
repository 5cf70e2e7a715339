"""What every projection is."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import torch

from engram_exp.layer.geometry import EngramGeometry
from engram_exp.stage import Load, Reference, Stage, Tensors
from engram_exp.vocabulary import DEVICE, HOST

FLOAT32_BYTES = 4


class Projection(Stage):
    """Embeddings -> keys, each RMS-normed unless a gate does that behind it (`weights.norms_keys`), and one value.

    Built as `Projection(weights, max_tokens, placement)`; called with embeddings [T, H * D], it returns keys [T, M, C]
    and value [T, C] in the compute dtype.
    """

    built_from: ClassVar[tuple[str, ...]] = ("weights", "max_tokens", "placement")
    kv_buffers: ClassVar[int] = 1  # keys and values that it holds at a time; 1: they lie side by side in a kept buffer

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Embeddings and weights read, keys and value written."""
        return super().bytes_moved(load) + weights_bytes(load.geometry)

    @classmethod
    def flops(cls, load: Load) -> int:
        """Multiplications and additions of the matrix product."""
        return 2 * load.tokens * load.geometry.embedding_width * load.geometry.kv_width

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Streams, of which a chunk's embeddings come from a cache, and the matrix product."""
        streamed = cls.bytes_moved(load) - (load.bytes_of(load.stage.needs) if load.staged else 0)
        return {load.memory: streamed, f"{load.stage.side} GEMM": cls.flops(load)}

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Keys and value, as often as it holds them."""
        return {load.stage.side: cls.kv_buffers * load.bytes_of(load.stage.makes)}

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """The weights, the host's copy of what is on the device, and one in float32 for the reference."""
        kept = Counter({load.stage.side: weights_bytes(load.geometry)})
        kept[HOST] += FLOAT32_BYTES * count_weights(load.geometry)
        kept[HOST] += weights_bytes(load.geometry) if load.stage.side == DEVICE else 0
        return dict(kept)

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Random keys and value [T, (M + 1) * C]."""
        return torch.randn(tokens, reference.geometry.kv_width).to(reference.row_format.dtype)

    @classmethod
    def arranged(cls, flat: torch.Tensor, load: Load) -> Tensors:
        """Keys [T, M, C] and value [T, C]: side by side, or each in memory of its own."""
        vectors = flat.view(len(flat), -1, load.geometry.hidden_size)
        keys, value = vectors[:, :-1], vectors[:, -1]
        return (keys, value) if cls.kv_buffers == 1 else (keys.contiguous(), value.contiguous())

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Keys [T, M, C] and value [T, C] in float32."""
        (embeddings,) = inputs
        return reference.reference_weights.project(embeddings.float()), reference.tolerance


def count_weights(geometry: EngramGeometry) -> int:
    """Numbers in the weight, the bias and the key norms."""
    bias = geometry.kv_width if geometry.bias else 0
    return geometry.kv_width * geometry.embedding_width + bias + geometry.hc_mult * geometry.hidden_size


def weights_bytes(geometry: EngramGeometry) -> int:
    """Bytes of these, in the compute dtype."""
    return count_weights(geometry) * geometry.value_bytes
