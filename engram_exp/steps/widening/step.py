"""What every widening is."""

from __future__ import annotations

import torch

from engram_exp.stage import Reference, Stage, Tensors
from engram_exp.steps.lookup.step import Lookup


class Widening(Stage):
    """Stored fp8 rows [T, H * width] -> embeddings [T, H * D] in the compute dtype, exact to the bit.

    It stands before the projection, on the side of the link where that runs, so that fp8 bytes cross the link.
    """

    built_from = ("row_format", "max_tokens", "columns", "placement")

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Embeddings [T, H * D] of random row ids."""
        (embeddings,), _ = cls.wanted(reference, Lookup.example(reference, tokens))
        return embeddings

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Embeddings [T, H * D] of stored rows [T, H * width], in several plain operations."""
        (rows,) = inputs
        stored = rows.contiguous().view(len(rows), -1, reference.row_format.width)
        return (reference.row_format.widen(stored).flatten(1),), 0.0
