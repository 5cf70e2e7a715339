"""The original's way: PyTorch's embedding, a fresh buffer on every call."""

from __future__ import annotations

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.tables.host import HostTable


class EmbeddingLookup(Lookup):
    """Looks rows up with `torch.nn.functional.embedding`; each call pays for the page faults of its output.

    Raises:
        ConfigError: a table in two parts, which takes two lookups.
    """

    def __init__(self, table: HostTable, max_tokens: int, columns: int, placement: Placement) -> None:
        placement.require("cpu", "lookup")
        if len(table.parts) > 1:
            raise ConfigError("lookup", None, "reads tables in one piece only: dtype.layout=packed")
        self.storage = table.parts[0]

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H], in memory of their own."""
        return torch.nn.functional.embedding(row_ids.flatten(0, 1), self.storage).flatten(1)
