"""Rows that a run's lookups spare the link: counted while samples are taken; kept ones, warm or cold, are compared with
the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from engram_exp.errors import MismatchError
from engram_exp.measure.clock import Clock
from engram_exp.run.glance import Glance
from engram_exp.stage import BuiltStage, Load, Tensors
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.tables import Table
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.vocabulary import COLD, DISK, HOST, STEADY

Call = partial[Tensors]


def counting_of(stages: Iterable[BuiltStage]) -> Any:
    """The lookup among built stages that counts the rows which cross the link; None if there is none."""
    lookups = (stage.component for stage in stages if issubclass(stage.kind, Lookup))
    return next((lookup for lookup in lookups if getattr(lookup, "counts_rows", False)), None)


def is_in(lookup: Any, state: str) -> bool:
    """Whether a lookup keeps rows, and calls that are timed are to find it so."""
    return lookup is not None and lookup.keeps_rows and lookup.state == state


def warm(lookup: Any, calls: Sequence[Call], run: Callable[[Call], object]) -> None:
    """Show a cache of rows the batches that it is to have seen: all; none, if it is to be cold; before it is timed in
    its steady state, the first half of them.

    Args:
        lookup: that may keep rows.
        calls: one for each batch.
        run: makes a call, and waits for it.
    """
    if not lookup.keeps_rows or is_in(lookup, COLD):
        return
    if is_in(lookup, STEADY):
        lookup.reset()
        calls = calls[: len(calls) // 2]
    for call in calls:
        run(call)


def timed_calls(lookup: Any, calls: list[Call]) -> list[Call]:
    """Those of the calls for all batches that are timed."""
    return calls[len(calls) // 2 :] if is_in(lookup, STEADY) else calls


def restore_of(lookups: Sequence[Any], rewarm: Callable[[], None] | None = None) -> Callable[[object], None] | None:
    """What puts caches of rows back to what calls that are timed are to find; None: nothing has to be.

    Args:
        lookups: that may keep rows.
        rewarm: shows a cache in its steady state what it is to have seen.
    """
    cold = [lookup for lookup in lookups if is_in(lookup, COLD)]

    def restore(call: object) -> None:
        for lookup in cold:
            lookup.reset()

    if rewarm and any(is_in(lookup, STEADY) for lookup in lookups):
        return SteadyAgain(rewarm)
    return restore if cold else None


class SteadyAgain:
    """Puts a cache of rows back to what it was before any batch was timed, once one would come again: its rows would
    all be there.

    Args:
        rewarm: empties it, and shows it the batches before those that are timed.
        batches_of: a call: what must not come again; itself, unless told otherwise.
    """

    def __init__(
        self, rewarm: Callable[[], None], batches_of: Callable[[Any], Iterable[object]] = lambda call: (call,)
    ) -> None:
        self.rewarm, self.batches_of = rewarm, batches_of
        self.made: set[int] = set()

    def __call__(self, call: object) -> None:
        """Before this call."""
        coming = set(map(id, self.batches_of(call)))
        if coming & self.made:
            self.rewarm()
            self.made.clear()
        self.made |= coming


class CountingGlance(Glance):
    """Counts the row ids for which no row crosses the link in the samples that it looks at, on the device and without
    waiting, too.

    Args:
        lookup: that counts them.
        others: as a `Glance` has them.
    """

    def __init__(self, lookup: Any, *others: Any) -> None:
        super().__init__(*others)
        self.lookup = lookup
        self.so_far, self.counted = torch.zeros_like(lookup.counts), torch.zeros_like(lookup.counts)
        self.counts = True

    def before(self, call: partial[Tensors]) -> None:
        """As a `Glance`, and begin to count."""
        super().before(call)
        self.so_far.copy_(self.lookup.counts)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """As a `Glance`, and add what was counted."""
        if self.counts:
            self.counted += self.lookup.counts - self.so_far
        super().behind(call, result)

    @property
    def spared_share(self) -> float:
        """Of the row ids that were counted, those for which no row crossed the link."""
        spared, asked, *crossed = self.counted.tolist()
        return float(1 - crossed[0] / asked if crossed else spared / asked)

    @property
    def table(self) -> str:
        """Where the table lies."""
        return self._load.table

    @property
    def asked_bytes(self) -> int:
        """Bytes of all rows that a call asks for across the link."""
        return self._load.geometry.stored_bytes(self._load.tokens) if self.table == HOST else 0

    @property
    def _load(self) -> Load:
        return next(load for kind, load in self.tasks if kind.reads_table)

    def burst(self, calls: Sequence[partial[Tensors]], clock: Clock) -> None:
        """As a `Glance`; none of these calls is timed, and none counts."""
        self.counts = False
        super().burst(calls, clock)


def counted_columns(glances: Iterable[Glance]) -> dict[str, Any]:
    """Of the samples of a case that were looked at: the share of row ids that a cache had, and the bytes of rows that
    crossed the link in a call; nothing of a case whose lookups do not count. Rows of a file cross it all."""
    counting = [glance for glance in glances if isinstance(glance, CountingGlance) and int(glance.counted[1])]
    in_front = [glance for glance in counting if glance.table == DISK]
    of_link = [glance for glance in counting if glance.table != DISK]
    found: dict[str, Any] = {"hot_hit_rate": _hit_rate(in_front)} if in_front else {}
    if of_link:
        found["link_bytes"] = round(sum((1 - glance.spared_share) * glance.asked_bytes for glance in of_link))
        if all(glance.lookup.keeps_rows for glance in of_link):
            found["cache_hit_rate"] = _hit_rate(of_link)
    return found


def _hit_rate(counting: Sequence[CountingGlance]) -> float:
    hit, asked = torch.stack([glance.counted[:2] for glance in counting]).sum(dim=0).tolist()
    return float(hit / asked)


def require_kept(case: str, cache: Any, table: Table | DiskTable) -> None:
    """Compare the rows that a lookup keeps with those of the table, by plain operations on the CPU.

    Args:
        case: that reads them.
        cache: the lookup.
        table: that they are copies of.

    Raises:
        MismatchError: saying how many differ.
    """
    rows = different = 0
    for row_ids, kept in cache.kept():
        if isinstance(table, DiskTable):
            stored = table.contents(row_ids)
        else:
            stored = torch.cat([part.cpu().index_select(0, row_ids.long()) for part in table.parts], dim=1)
        different += int((_bits(kept) != _bits(stored)).any(dim=1).sum())
        rows += len(row_ids)
    if different:
        raise MismatchError(f"{case}: {different} of {rows} rows in the cache differ from the table")


def _bits(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.uint8)
