"""Time of a step over its tokens, one curve for each strategy: only what was measured, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd

from engram_exp.analysis.subjects import fastest_ways
from engram_exp.plan import FULL
from engram_exp.results import OK

MEASURED, INTERPOLATED, NOT_MEASURED = "measured", "interpolated", "not measured"


class Time(NamedTuple):
    """Milliseconds of one step in one layer, and how they are known.

    ms: the median; of several runs, the median of their medians. None where nothing is known.
    lo, hi: the widest 95 % interval of these runs' medians.
    known: measured, interpolated (on a straight line between logarithms) or not measured.
    """

    ms: float | None
    lo: float | None
    hi: float | None
    known: str

    def overlaps(self, other: Time) -> bool:
        """Whether the intervals leave open which of the two is less; where there is none, only what is equal does."""
        if self.ms is None or other.ms is None:
            return True
        low = max(self.lo or self.ms, other.lo or other.ms)
        return low <= min(self.hi or self.ms, other.hi or other.ms)


UNKNOWN = Time(None, None, None, NOT_MEASURED)
Curve = Mapping[int, Time]


def curves(frame: pd.DataFrame) -> dict[str, dict[int, Time]]:
    """The curve of `full` over tokens per step of every strategy.

    Where a strategy was measured in several ways (kinds of pages, schedules, orders), its fastest counts.

    Args:
        frame: rows of one model, dtype and kind of tokens, as `load_results` returns them.
    """
    full = frame[(frame["case"] == FULL) & (frame["status"] == OK)]
    full = full.assign(tokens_per_step=full["batch_size"] * full["seq_len"])
    found: dict[str, dict[int, Time]] = {}
    by_size: Any = fastest_ways(full).groupby(["strategy", "tokens_per_step"])
    for (strategy, tokens), runs in by_size:
        ms, lo, hi = float(runs["wall_ms_median"].median()), runs["wall_ms_lo"].min(), runs["wall_ms_hi"].max()
        without = math.isnan(lo) or math.isnan(hi)
        time = Time(ms, None if without else float(lo), None if without else float(hi), MEASURED)
        found.setdefault(strategy, {})[tokens] = time
    return found


def time_at(curve: Curve, tokens: int) -> Time:
    """The time at a number of tokens: nothing is extrapolated."""
    if tokens in curve:
        return curve[tokens]
    for left, right in pairwise(sorted(curve)):
        if left < tokens < right:
            share = math.log(tokens / left) / math.log(right / left)
            low, high = curve[left], curve[right]
            ms, lo, hi = (_between(getattr(low, part), getattr(high, part), share) for part in ("ms", "lo", "hi"))
            return Time(ms, lo, hi, INTERPOLATED)
    return UNKNOWN


def _between(low: float | None, high: float | None, share: float) -> float | None:
    return None if low is None or high is None else low * (high / low) ** share


class Regime(NamedTuple):
    """A range of tokens per step in which one strategy is best.

    strategy: the best one.
    first, last: measured tokens per step at its ends.
    begins_after, begins_by: where it takes over from the regime before it: behind the last size at which the other
        one was better beyond doubt, and at the latest at the first size at which this one is. None for the first.
    """

    strategy: str
    first: int
    last: int
    begins_after: int | None
    begins_by: int | None


def regimes(found: Mapping[str, Curve], strategies: Sequence[str]) -> list[Regime]:
    """Which of the strategies is best where, at the sizes that were measured for all of them."""
    shared = sorted(set.intersection(*(set(found[name]) for name in strategies))) if strategies else []
    best = [min(strategies, key=lambda name: found[name][size].ms or math.inf) for size in shared]
    turns: list[Regime] = []
    for index, (size, name) in enumerate(zip(shared, best, strict=True)):
        if turns and turns[-1].strategy == name:
            turns[-1] = turns[-1]._replace(last=size)
            continue
        after, by = None, None
        if turns:
            before, now = found[turns[-1].strategy], found[name]
            clear = [s for s in shared[:index] if not before[s].overlaps(now[s])]
            after = clear[-1] if clear else None
            by = next((s for s in shared[index:] if not before[s].overlaps(now[s])), None)
        turns.append(Regime(name, size, size, after, by))
    return turns
