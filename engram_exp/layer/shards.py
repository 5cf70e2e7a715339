"""Who holds which rows of a table that several ranks share out among them: whole hash columns, or stretches of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

CONTIGUOUS, STRIDED, BY_ROWS = SPLITS = "contiguous", "strided", "rows"


class Span(NamedTuple):
    """Rows of the table that follow each other: the first of them, and how many there are."""

    first: int
    rows: int


class Among(NamedTuple):
    """What a rank of a run is one of.

    ranks: how many there are.
    own_batches: whether each asks for tokens of its own, or all for the same.
    table_share: of the table, that this rank keeps of all that its memory must hold.
    """

    ranks: int = 1
    own_batches: bool = False
    table_share: float = 1.0

    @property
    def asking(self) -> int:
        """Batches that are asked for at a time."""
        return self.ranks if self.own_batches else 1


@dataclass(frozen=True)
class Shards:
    """The shares of a table.

    Args:
        column_rows: rows of each hash column, which follow each other in the table.
        rows: of the table; those behind the last column are asked for by nobody.
        size: shares. Some are empty where there are more of them than columns.
        split: `contiguous`, columns beside each other; `strided`, every so-manyth column; `rows`, stretches of rows of
            equal length, whatever their columns.
    """

    column_rows: Sequence[int]
    rows: int
    size: int
    split: str

    @property
    def by_rows(self) -> bool:
        """Whether a column lies in several shares."""
        return self.split == BY_ROWS

    @property
    def columns(self) -> int:
        """H."""
        return len(self.column_rows)

    @property
    def stretch(self) -> int:
        """Rows of a share, at most, where rows are shared out."""
        return -(-self.rows // self.size)

    def columns_of(self, share: int) -> slice:
        """The columns in which a share has rows, each with all of them; of shares of rows: all columns."""
        if self.by_rows:
            return slice(0, self.columns, 1)
        if self.split == STRIDED:
            return slice(share, self.columns, self.size)
        least, more = divmod(self.columns, self.size)
        first = share * least + min(share, more)
        return slice(first, first + least + (share < more), 1)

    def number_of_columns(self, share: int) -> int:
        """How many these are."""
        return len(range(self.columns)[self.columns_of(share)])

    @property
    def most_columns(self) -> int:
        """Columns of a share, at most."""
        return max(map(self.number_of_columns, range(self.size)))

    def spans_of(self, share: int) -> list[Span]:
        """The rows of a share, in the order in which it stores them."""
        if self.by_rows:
            first = min(self.rows, share * self.stretch)
            return [Span(first, min(self.stretch, self.rows - first))]
        starts = list(accumulate(self.column_rows, initial=0))
        columns = range(self.columns)[self.columns_of(share)]
        return [Span(int(starts[column]), int(self.column_rows[column])) for column in columns]

    def rows_of(self, share: int) -> int:
        """Rows of a share."""
        return sum(span.rows for span in self.spans_of(share))

    def shifts(self) -> np.ndarray:
        """What makes a row id one of its share's own, int64: to be added to it. [H] by column; [size] by share where
        rows are shared out."""
        import numpy as np  # the process that the user starts asks for no shifts, and should show something soon

        if self.by_rows:
            return -self.stretch * np.arange(self.size, dtype=np.int64)
        shifts = np.zeros(self.columns, dtype=np.int64)
        for share in range(self.size):
            spans = self.spans_of(share)
            stored = np.cumsum([0, *(span.rows for span in spans)])[:-1]
            shifts[self.columns_of(share)] = stored - np.array([span.first for span in spans], dtype=np.int64)
        return shifts
