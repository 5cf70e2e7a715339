"""Tables: memory that rows live in, and what fills it.

Every table is built as `Table(rows, row_format, seed, placement)` and has `parts`, the arrays [rows, width of the
part] that rows are stored in, and `contents(row_ids)`, the stored rows [*, width] that a correct lookup returns,
computed from the seed and the row ids alone. `place` says on which side it lives (host or device), `huge_page_share`
how much of it lies in 2 MiB pages; None where that means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from engram_exp.layer.row_format import RowFormat


class Table(Protocol):
    """What a lookup needs of one."""

    @property
    def parts(self) -> tuple[torch.Tensor, ...]: ...
    @property
    def row_format(self) -> RowFormat: ...
    @property
    def place(self) -> str: ...
