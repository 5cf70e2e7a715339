"""What every lookup is."""

from __future__ import annotations

import torch

from engram_exp.stage import Load, Reference, Stage, Tensors
from engram_exp.vocabulary import DEVICE, HOST


class Lookup(Stage):
    """Row ids -> rows as they are stored, exact to the bit.

    Built as `Lookup(table, max_tokens, columns, placement)`; called with row ids [B, L, H], it returns the stored rows
    side by side, [T, H * width]: embeddings in the compute dtype, or bytes of fp8 values and scales that are widened
    behind it.
    """

    built_from = ("table", "max_tokens", "columns", "placement")
    reads_table = True
    rotates = True

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Row ids read, and rows read and written."""
        return super().bytes_moved(load) + load.geometry.stored_bytes(load.tokens)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Distinct rows read once, where they lie, and all rows written; those of a chunk stay in a cache."""
        row_ids, rows = load.bytes_of(load.stage.needs), load.geometry.stored_bytes(load.tokens)
        passed_on = 0 if load.staged else row_ids + rows
        if load.stage.side == DEVICE and load.table == HOST:
            return {"link rows": load.distinct_rows * rows, load.memory: rows}
        streams = {load.memory: passed_on + load.distinct_rows * rows}
        if load.stage.side == HOST:
            streams["host rows"] = load.distinct_rows * load.tokens * load.geometry.columns
        return streams

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """The table."""
        return {load.table: load.geometry.table_bytes}

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Stored rows [T, H * width] of random row ids."""
        row_ids = torch.randint(reference.geometry.rows, (tokens, reference.geometry.columns))
        return reference.row_format.contents(row_ids, reference.seed).flatten(1)

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Stored rows [T, H * width] of row ids [T, H], computed anew from the seed."""
        (row_ids,) = inputs
        return (reference.row_format.contents(row_ids, reference.seed).flatten(1),), 0.0
