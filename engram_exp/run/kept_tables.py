"""The tables of a process that makes one run after the other: to fill one of a hundred gigabytes takes longer than most
runs, and those that follow each other often need the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from engram_exp.config.derived import table_settings
from engram_exp.run.plan import Plan
from engram_exp.run.rank_plan import reads_peers


class KeptTables:
    """Filled tables, by what they are made of, as long as the runs of this process need them."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def of(self, made_of: str, fill: Callable[[], Any]) -> Any:
        """The table that is made of this, filled now unless an earlier run has left it."""
        if made_of not in self._kept:
            self._kept[made_of] = fill()
        return self._kept[made_of]

    def keep_only(self, wanted: Collection[str]) -> None:
        """Forget all tables but those that are made of one of these."""
        self._kept = {made_of: table for made_of, table in self._kept.items() if made_of in wanted}

    def bytes_by_place(self, local_size: int) -> Counter[str]:
        """What they take in host and device memory; of one that all ranks of a host read, a rank's share.

        Args:
            local_size: ranks of this host.
        """
        taken: Counter[str] = Counter()
        for table in self._kept.values():
            readers = local_size if getattr(table, "is_one_for_all", False) else 1
            taken[table.place] += sum(part.nbytes for part in table.parts) // readers
        return taken


def table_made_of(plan: Plan, seed: int) -> str:
    """What the table of a plan's layer is made of, as one text."""
    return f"{table_settings(plan.config)} {seed} {reads_peers(plan)}"
