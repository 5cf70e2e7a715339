"""The rows that a run's lookups keep: warm or cold, counted while samples are taken, and compared with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from engram_exp.errors import MismatchError
from engram_exp.run.glance import Glance
from engram_exp.stage import BuiltStage, Tensors
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.tables import Table


def row_cache_of(stages: Iterable[BuiltStage]) -> Any:
    """The lookup among built stages that keeps rows; None if there is none."""
    caches = (stage.component for stage in stages if issubclass(stage.kind, Lookup) and stage.kind.keeps_rows)
    return next(caches, None)


def restore_of(caches: Sequence[Any]) -> Callable[[object], None] | None:
    """What makes those of these lookups cold that are to be so before each call that is timed; None: none is."""
    cold = [cache for cache in caches if cache.is_cold]

    def restore(_call: object) -> None:
        for cache in cold:
            cache.reset()

    return restore if cold else None


class CountingGlance(Glance):
    """Counts the row ids that hit in the samples that it looks at, on the device and without waiting, too.

    Args:
        cache: the lookup that keeps rows.
        others: as a `Glance` has them.
    """

    def __init__(self, cache: Any, *others: Any) -> None:
        super().__init__(*others)
        self.cache = cache
        self.so_far, self.counted = torch.zeros_like(cache.counts), torch.zeros_like(cache.counts)
        self.counts = True

    def before(self, call: partial[Tensors]) -> None:
        """As a `Glance`, and begin to count."""
        super().before(call)
        self.so_far.copy_(self.cache.counts)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """As a `Glance`, and add what hit."""
        if self.counts:
            self.counted += self.cache.counts - self.so_far
        super().behind(call, result)

    def burst(self, calls: Sequence[partial[Tensors]], synchronize: Callable[[], None]) -> None:
        """As a `Glance`; none of these calls is timed, and none counts."""
        self.counts = False
        super().burst(calls, synchronize)


def hit_rate(glances: Iterable[Glance]) -> float | None:
    """The share of the row ids that hit in the samples that were looked at; None if none of them asked a cache."""
    counted = [glance.counted.tolist() for glance in glances if isinstance(glance, CountingGlance)]
    asked = sum(asked for _, asked in counted)
    return sum(hits for hits, _ in counted) / asked if asked else None


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
