"""What every widening is."""

from __future__ import annotations

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.stage import Reference, Stage, Tensors
from engram_exp.steps.lookup.step import Lookup


class Widening(Stage):
    """Stored fp8 rows [T, H * width], or their values [T, H * D] and scales [T, H * S] apart -> embeddings [T, H * D]
    in the compute dtype, exact to the bit.

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
        """Embeddings [T, H * D] of stored rows, whole or in two parts, in several plain operations."""
        return (reference.row_format.widen(whole_rows(reference.row_format, *inputs)).flatten(1),), 0.0


def whole_rows(row_format: RowFormat, *stored: torch.Tensor) -> torch.Tensor:
    """Stored rows [T, H, width] of rows [T, H * width], or of values [T, H * D] and scales [T, H * S] apart."""
    if len(stored) == 1:
        return stored[0].contiguous().view(len(stored[0]), -1, row_format.width)
    parts = zip(stored, (row_format.values, row_format.scales), strict=True)
    return torch.cat([part.contiguous().view(len(part), -1, width) for part, width in parts], dim=-1)
