"""The original's way: PyTorch's embedding, a fresh buffer on every call."""

from __future__ import annotations

import torch

from engram_exp.placement import Placement
from engram_exp.tables.host import HostTable


class EmbeddingLookup:
    """Looks rows up with `torch.nn.functional.embedding`; each call pays for the page faults of its output."""

    def __init__(self, table: HostTable, max_tokens: int, columns: int, placement: Placement) -> None:
        self.storage = table.storage

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, H * D] of row ids [B, L, H], in memory of their own."""
        return torch.nn.functional.embedding(row_ids.flatten(0, 1), self.storage).flatten(1)
