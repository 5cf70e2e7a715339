"""Tables on a disk within a run: the state that calls find them in, and what calls read of them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from engram_exp.machine.disk import in_words, read_bytes
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Case
from engram_exp.run.parts import Parts
from engram_exp.stage import Task
from engram_exp.steps.lookup.from_file import FileLookup
from engram_exp.steps.lookup.hot_rows import HotRows
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.vocabulary import AS_IS, COLD, DISK, OK, SUSPECT, WARM

Restore = Callable[[Any], None]  # is given the call to come

LOOKS = 6  # calls that are looked at, at most ...
LOOK_S = 2.0  # ... or as many as take so long
LEAST_SHARE = 0.9  # of the bytes of distinct rows, that a cold call must have had read from the disk


def reads_disk(tasks: Sequence[Task]) -> bool:
    """Whether some of a case's stages read a table on a disk."""
    return any(task.kind.reads_table and task.load.table == DISK for task in tasks)


def disk_tables(layers: Iterable[Parts]) -> list[DiskTable]:
    """The tables of layers that the run reads from files."""
    return [parts.table for parts in layers if parts.plan.looks_up and parts.plan.config.strategy.table == DISK]


class Files:
    """The files of the tables of a run.

    Args:
        tables: in them.
        state: that calls are to find them in: cold, warm, as_is.

    found: what cases that read them were seen to read, by case and column.
    """

    def __init__(self, tables: Sequence[DiskTable], state: str) -> None:
        self.tables, self.state, self.is_warm = tables, state, False
        self.reading: dict[str, tuple[Case, Sequence[Task]]] = {}
        self.found: dict[str, dict[str, Any]] = {}

    def timed(self, case: Case, tasks: Sequence[Task]) -> Case:
        """A case; if it reads the files, they are brought into their state before each of its calls."""
        if not reads_disk(tasks):
            return case
        self.reading[case.name] = timed = replace(case, restore=self.restore(behind=case.restore)), tasks
        return timed[0]

    def restore(self, behind: Restore | None = None) -> Restore | None:
        """What brings the files into their state before a call, behind what else is put back; None where nothing is."""
        make = {COLD: self._make_cold, WARM: self._make_warm, AS_IS: None}[self.state]
        if make is None:
            return behind

        def restore(call: Any) -> None:
            if behind:
                behind(call)
            make()

        return restore

    def _make_cold(self) -> None:
        for table in self.tables:
            table.make_cold()

    def _make_warm(self) -> None:
        if not self.is_warm:
            for table in self.tables:
                table.make_warm()
        self.is_warm = True

    def resident_share(self) -> float | None:
        """Share of the files' pages that are in memory now."""
        shares = [(table.resident_share(), table.size_bytes) for table in self.tables]
        if any(share is None for share, _ in shares):
            return None
        return sum((share or 0) * size for share, size in shares) / sum(size for _, size in shares)

    def look(self, name: str, clock: Clock) -> None:
        """See what calls of a case read, if it reads the files. Where the page cache is made cold and may be used, each
        call follows once more, with its rows in memory by now."""
        if name not in self.reading:
            return
        case, tasks = self.reading[name]
        of_disk = [task for task in tasks if reads_disk([task])]
        through_cache = not all(getattr(task.kind, "past_cache", False) for task in of_disk)
        asked = sum(task.load.row_ids for task in of_disk) * self.tables[0].disk_row_bytes
        reads, from_disk, warm_ms, spent_ms = [], [], list[float](), 0.0
        hits = hits_of = 0
        for call in case.calls[:LOOKS]:
            if case.restore:
                case.restore(call)
            before, read_before, hot_before = _requests(), read_bytes(), (HotRows.found, HotRows.asked)
            spent_ms += clock.time(call, uses_device=case.uses_device).wall_ms
            reads.append(_since(before) / case.times)
            hits, hits_of = hits + HotRows.found - hot_before[0], hits_of + HotRows.asked - hot_before[1]
            read_now = read_bytes()
            from_disk.append(None if None in (read_now, read_before) else (read_now - read_before) / case.times)  # type: ignore[operator]
            if self.state == COLD and through_cache:
                warm_ms.append(clock.time(call, uses_device=case.uses_device).wall_ms / case.times)
            if spent_ms > LOOK_S * 1e3:
                break
        if case.restore:
            case.restore(call)
        known = [size for size in from_disk if size is not None]
        read = sum(known) / len(known) if known else None
        self.found[name] = {
            "page_cache": self.state,
            "disk": in_words(Path(self.tables[0].files[0].path)),
            "asked_bytes": asked,
            "read_bytes": read,
            "read_amplification": read / asked if read is not None else None,
            "reads": sum(reads) / len(reads) or None,
            "hot_hit_rate": hits / hits_of if hits_of else None,
            "resident_share": self.resident_share(),
            "warm_ms_median": median(warm_ms) if warm_ms else None,
        }


def _requests() -> tuple[int, int]:
    """Requests of this process so far, and pages that it waited for where it touched them."""
    return FileLookup.requested, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _since(before: tuple[int, int]) -> int:
    """Requests since then; of a mapping, pages that were waited for."""
    requests, faults = (now - then for now, then in zip(_requests(), before, strict=True))
    return requests or faults


def proven(
    own: dict[str, Any], found: dict[str, Any], distinct_share: float | None, *, keeps_recent: bool = False
) -> dict[str, Any]:
    """What became of a case; a time that is called cold, and of which nothing shows that it is, is suspect.

    Args:
        own: columns of the case, with its status.
        found: as `Files.look` has them.
        distinct_share: of the rows that calls ask for.
        keeps_recent: rows that were asked for last are in memory, so that a call that follows once more finds its own
            there, and of rows that a call asks for twice one hits.
    """
    if own["status"] != OK or found.get("page_cache") != COLD:
        return own
    warm_ms, fastest_ms = found["warm_ms_median"], own["wall_ms_lo"] or own["wall_ms_median"]
    if keeps_recent and found["hot_hit_rate"] == 1:
        reason = "no row was read from the file, since those in memory were all that calls asked for"
        return {**own, "status": SUSPECT, "error": f"{reason}; lookup.state=steady asks for others"}
    if warm_ms is not None and fastest_ms <= warm_ms and not keeps_recent:
        reason = f"{own['wall_ms_median']:.4g} ms are not more than the {warm_ms:.4g} ms with its rows in memory"
        return {**own, "status": SUSPECT, "error": f"{reason}: it was not cold"}
    from_disk = (1 if keeps_recent else distinct_share or 0) - (found["hot_hit_rate"] or 0)
    least = LEAST_SHARE * from_disk * found["asked_bytes"]
    if found["read_bytes"] and found["read_bytes"] < least:  # 0: this file system's reads are not counted
        reason = f"{found['read_bytes']:.4g} bytes were read from the disk, where rows of {least:.4g} had to be"
        return {**own, "status": SUSPECT, "error": f"{reason}: it was not cold"}
    return own
