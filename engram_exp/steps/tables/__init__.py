"""Tables: memory that rows live in, and what fills it.

Every table is built as `Table(rows, row_format, seed, placement)` and has `parts`, the arrays [rows, width of the
part] that rows are stored in, and `contents(row_ids)`, the stored rows [*, width] that a correct lookup returns,
computed from the seed and the row ids alone. `place` says on which side it lives (host or device), `huge_page_share`
how much of it lies in 2 MiB pages; None where that means nothing. Where ranks share a table out among them (`shards`),
`parts` are of this rank's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from engram_exp.layer.row_format import RowFormat

ROWS_AT_A_TIME = 2**20  # are made on the host and copied to a device


class Table(Protocol):
    """What a lookup needs of one."""

    @property
    def parts(self) -> tuple[torch.Tensor, ...]: ...
    @property
    def row_format(self) -> RowFormat: ...
    @property
    def place(self) -> str: ...


def parts_in(memory: torch.Tensor, rows: int, row_format: RowFormat) -> tuple[torch.Tensor, ...]:
    """The arrays [rows, width of the part] of a table in uint8 memory that is large enough, one behind the other."""
    dtype, widths = row_format.storage_dtype, row_format.part_widths
    sizes = [rows * width * dtype.itemsize for width in widths]
    pieces = memory[: sum(sizes)].split(sizes)
    return tuple(piece.view(dtype).view(rows, width) for piece, width in zip(pieces, widths, strict=True))


def fill_spans(
    parts: Sequence[torch.Tensor], row_format: RowFormat, seed: int, spans: Iterable[tuple[int, int]]
) -> None:
    """Write rows of a table into arrays on the host, or through it into arrays on a device.

    Args:
        parts: that hold these rows one behind the other.
        row_format: how they are stored.
        seed: of the table.
        spans: the first row of each stretch, and how many follow it.
    """
    on_host = parts[0].device.type == "cpu"
    staging = [] if on_host else [part.new_empty((ROWS_AT_A_TIME, part.shape[1]), device="cpu") for part in parts]
    begin = 0
    for first, count in spans:
        step = max(1, count) if on_host else ROWS_AT_A_TIME
        for done in range(0, count, step):
            targets = [part[begin + done : begin + min(count, done + step)] for part in parts]
            if on_host:
                row_format.fill(tuple(targets), seed, first + done)
                continue
            chunk = tuple(kept[: len(target)] for kept, target in zip(staging, targets, strict=True))
            row_format.fill(chunk, seed, first + done)
            for target, filled in zip(targets, chunk, strict=True):
                target.copy_(filled)
        begin += count
