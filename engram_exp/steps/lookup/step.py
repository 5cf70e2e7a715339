"""What every lookup is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from engram_exp.errors import SkippedError
from engram_exp.machine.placement import Placement
from engram_exp.stage import Load, Reference, Stage, Tensors
from engram_exp.steps.tables import Table
from engram_exp.vocabulary import COLD, DEVICE, DISK, EMBEDDINGS, HOST, PARTS, ROWS

POSITION_BYTES = 8


class Lookup(Stage):
    """Row ids -> rows as they are stored, exact to the bit.

    Built as `Lookup(table, max_tokens, columns, placement)`; called with row ids [B, L, H], it returns the stored rows
    side by side, [T, H * width]: embeddings in the compute dtype, or bytes of fp8 values and scales that are widened
    behind it. With an option `widen` that is true, it widens fp8 rows itself, where it runs on the device; with an
    option `apart` that is true, it returns their values and scales as two tensors.
    """

    makes: ClassVar[str] = ROWS
    fresh: ClassVar[bool] = False  # it hands out other pinned memory on each call
    on_both: ClassVar[bool] = False  # it takes row ids on the host and leaves rows on the device
    asks_host: ClassVar[bool] = False  # on the device, but the host gathers what it reads: it waits, and in no graph
    past_cache: ClassVar[bool] = False  # it reads a file, and makes no use of its pages in memory
    # It has `counts`, int64 [2]: for how many row ids no row crossed the link so far, and how many there were in all;
    # or int64 [3]: how many of them a cache had, how many there were, and how many rows crossed for the others.
    counts_rows: bool = False
    # Calls leave rows behind that later ones find: it counts, and has `state`, `reset()` and `kept()`, too.
    keeps_rows: bool = False
    built_from: ClassVar[tuple[str, ...]] = ("table", "max_tokens", "columns", "placement")
    reads_table = True
    rotates = True

    @classmethod
    def leaves_rows(cls, options: Mapping[str, Any]) -> bool:
        """Whether one with these options keeps rows."""
        return cls.keeps_rows

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Row ids read, and rows read and written."""
        return super().bytes_moved(load) + load.geometry.stored_bytes(load.tokens)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Distinct rows read once, where they lie (those of a file in memory, where its pages may be there), and all
        rows written; those of a chunk stay in a cache."""
        row_ids, rows = load.bytes_of(load.stage.needs), load.geometry.stored_bytes(load.tokens)
        written = 0 if load.staged else load.bytes_of(load.stage.makes)
        if load.stage.side == DEVICE and load.table == HOST:
            crossing = crossing_rows(load)
            return {"link rows": crossing * load.row_bytes, "link row reads": crossing, load.memory: written}
        passed_on = 0 if load.staged else row_ids + written
        streams = {load.memory: passed_on + load.distinct_rows * rows}
        if load.stage.side == HOST:
            from_disk = load.table == DISK and (cls.past_cache or load.page_cache == COLD)
            streams["disk rows" if from_disk else "host rows"] = load.distinct_rows * load.row_ids
        return streams

    @classmethod
    def refuse(cls, load: Load, free_bytes: int) -> None:
        """Refuse options of a lookup that keeps rows, where so many bytes of the device's memory are free.

        Raises:
            ConfigError: naming the key.
        """

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """The table, or this rank's share of it."""
        return {load.table: round(load.among.table_share * load.geometry.table_bytes)}

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Stored rows [T, H * width] of random row ids."""
        row_ids = torch.randint(reference.geometry.rows, (tokens, reference.geometry.columns))
        return reference.stored(row_ids).flatten(1)

    @classmethod
    def arranged(cls, flat: torch.Tensor, load: Load) -> Tensors:
        """As it is; parts as two views, all values and behind them all scales."""
        if load.stage.makes != PARTS:
            return (flat,)
        tokens, whole = len(flat), flat.view(-1)
        values = tokens * load.geometry.embedding_width
        return whole[:values].view(tokens, -1), whole[values:].view(tokens, -1)

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Stored rows [T, H * width] of row ids [T, H], computed anew from the seed."""
        (row_ids,) = inputs
        return (reference.stored(row_ids).flatten(1),), 0.0


def crossing_rows(load: Load) -> float:
    """Rows that cross the link in a call, on average and at least, if a kernel reads them through it.

    However well the device's cache keeps rows, it spares a call no more of its distinct rows than it holds, and a round
    of all batches no more of theirs.
    """
    kept = load.cache_bytes / load.row_bytes
    of_batch = load.distinct_rows * load.row_ids - kept
    of_round = min(load.distinct_rows, load.distinct_in_all) * load.row_ids - kept / load.batches
    return max(0.0, of_batch, of_round)


def sort_bytes(load: Load) -> int:
    """Bytes of the sorted row ids of a call and their positions (int64), and of a radix sort's copies of both."""
    return 2 * load.row_ids * (load.geometry.row_id_bytes + POSITION_BYTES)


def require_readable(table: Table, placement: Placement) -> None:
    """Skip a kernel on a device that cannot read the table.

    Raises:
        SkippedError: it is host memory that is not pinned.
    """
    if not all(part.device.type == placement.device.type or part.is_pinned() for part in table.parts):
        raise SkippedError("a kernel reads host memory only where it is pinned: table=pinned or table=huge")


class WideningLookup(Lookup):
    """Row ids -> embeddings [T, H * D] in the compute dtype, of fp8 rows: equal to a gather and then a widening."""

    makes = EMBEDDINGS

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Embeddings [T, H * D] of random row ids."""
        row_ids = torch.randint(reference.geometry.rows, (tokens, reference.geometry.columns))
        (embeddings,), _ = cls.wanted(reference, row_ids)
        return embeddings

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Embeddings [T, H * D] of row ids [T, H], gathered and then widened by plain operations."""
        (row_ids,) = inputs
        stored = reference.stored(row_ids)
        return (reference.row_format.widen(stored).flatten(1),), 0.0


class PartsLookup(Lookup):
    """Row ids -> stored values [T, H * D] and scales [T, H * S] apart, of fp8 rows."""

    makes = PARTS

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Values and then scales of random row ids, in one tensor [T, H * width], as `arranged` takes it apart."""
        row_ids = torch.randint(reference.geometry.rows, (tokens, reference.geometry.columns))
        parts, _ = cls.wanted(reference, row_ids)
        return torch.cat([part.flatten() for part in parts]).view(tokens, -1)

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Stored values [T, H * D] and scales [T, H * S] of row ids [T, H], computed anew from the seed."""
        (row_ids,) = inputs
        stored = reference.stored(row_ids)
        values = reference.row_format.values
        return (stored[..., :values].flatten(1), stored[..., values:].flatten(1)), 0.0
