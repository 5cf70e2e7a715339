"""Host memory for rows in front of a file: which of them it holds, and what calls that are timed find there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.steps.lookup.hot_rows import FINDING_BYTES, HotRows, hottest
from engram_exp.steps.lookup.recent_rows import KEEPING_BYTES, RecentRows
from engram_exp.vocabulary import LRU, STATIC, WARM

# Row ids that other batches than the run's ask for, of so many tokens at least, or those of a profile in a file.
Profile = Callable[[int, "str | None"], np.ndarray]


class InFront(NamedTuple):
    """Memory for rows in front of a file, as it is asked for.

    gb: of host memory, 10^9 bytes, with what finds rows there; 0: none.
    policy: static: the rows that a profile asks for most often; lru: those that were asked for last.
    state: how calls that are timed find rows of lru, as `CachedLookup` has it. Nothing here acts on it.
    profile: returns row ids that others ask for.
    profile_tokens: whose row ids these are, at least.
    profile_path: of a file that has them instead.
    """

    gb: float = 0.0
    policy: str = STATIC
    state: str = WARM
    profile: Profile | None = None
    profile_tokens: int = 1
    profile_path: str | None = None

    def check(self) -> None:
        """Refuse numbers that cannot be, and rows of a profile that are to be forgotten.

        Raises:
            ConfigError: naming the key.
        """
        if not 0 <= self.gb < float("inf"):
            raise ConfigError("lookup.hot_gb", self.gb, "must be at least 0")
        if self.profile_tokens < 1:
            raise ConfigError("lookup.profile_tokens", self.profile_tokens, "must be at least 1")
        if self.gb and self.policy == STATIC and self.state != WARM:
            remedy = "rows of a profile are there from the start, and stay; use lookup.policy=lru"
            raise ConfigError("lookup.state", self.state, remedy)

    def recent_rows(self, row_bytes: int) -> RecentRows:
        """An empty cache of so much memory.

        Raises:
            ConfigError: it does not hold a row.
        """
        most = int(self.gb * 1e9) // (row_bytes + KEEPING_BYTES)
        if most < 1:
            least = (row_bytes + KEEPING_BYTES) / 1e9
            raise ConfigError("lookup.hot_gb", self.gb, f"must hold a row, which takes {least:.3g}; or 0 for none")
        return RecentRows(most, row_bytes)

    def hot_rows(self, row_bytes: int) -> HotRows:
        """The hottest rows that fit; they are to be filled in."""
        most = int(self.gb * 1e9) // (row_bytes + FINDING_BYTES)
        asked = self.profile(self.profile_tokens, self.profile_path) if self.profile else np.empty(0, dtype=np.int64)
        return HotRows(hottest(asked, most), row_bytes)


def keeps_recent(options: Mapping[str, Any]) -> bool:
    """Whether the options of a lookup ask for rows that were asked for last."""
    return options.get("policy") == LRU and options.get("hot_gb", 0) > 0
