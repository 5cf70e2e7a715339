"""The rows that a run's lookup keeps: counted while samples are taken, and compared with the table behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from engram_exp.errors import MismatchError
from engram_exp.run.glance import Glance
from engram_exp.stage import Tensors
from engram_exp.steps.tables import Table


class CountingGlance(Glance):
    """Counts the row ids that hit in the samples that it looks at, on the device and without waiting, too.

    Args:
        cache: the lookup that keeps rows.
        others: as a `Glance` has them.
    """

    def __init__(self, cache: Any, *others: Any) -> None:
        super().__init__(*others)
        self.cache = cache
        self.so_far, self.hits, self.calls = torch.zeros_like(cache.hits), torch.zeros_like(cache.hits), 0
        self.counts = True

    def before(self, call: partial[Tensors]) -> None:
        """As a `Glance`, and begin to count."""
        super().before(call)
        self.so_far.copy_(self.cache.hits)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """As a `Glance`, and add what hit."""
        if self.counts:
            self.hits += self.cache.hits - self.so_far
            self.calls += 1
        super().behind(call, result)

    def burst(self, calls: Sequence[partial[Tensors]], synchronize: Callable[[], None]) -> None:
        """As a `Glance`; none of these calls is timed, and none counts."""
        self.counts = False
        super().burst(calls, synchronize)

    def hit_rate(self, row_ids: int) -> float | None:
        """The share of row ids that hit; None if no sample was looked at.

        Args:
            row_ids: of a call.
        """
        return int(self.hits) / (self.calls * row_ids) if self.calls else None


def require_kept(case: str, cache: Any, table: Table) -> None:
    """Compare all rows that a lookup keeps with those of the table, by plain operations on the CPU.

    Args:
        case: that reads them.
        cache: the lookup.
        table: that they are copies of.

    Raises:
        MismatchError: saying how many differ.
    """
    rows = different = 0
    for row_ids, kept in cache.kept():
        stored = torch.cat([part.cpu().index_select(0, row_ids.long()) for part in table.parts], dim=1)
        different += int((_bits(kept) != _bits(stored)).any(dim=1).sum())
        rows += len(row_ids)
    if different:
        raise MismatchError(f"{case}: {different} of {rows} rows in the cache differ from the table")


def _bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.uint8)
