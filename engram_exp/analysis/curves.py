"""Time of a step over its tokens, one curve for each strategy: only what was measured, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, TypeVar

import pandas as pd

from engram_exp.analysis.engines import engines_of
from engram_exp.analysis.ratios import difference_of
from engram_exp.analysis.subjects import (
    STEP,
    WAYS,
    as_typed,
    in_one_shape,
    over_runs,
    varying,
    with_nulls,
    with_tokens,
)
from engram_exp.analysis.ways import BY_BUNDLE, OF_ENGINE, Way, ways_of
from engram_exp.vocabulary import AS_ASKED, DEVICE, FULL, OK, PARTITIONED, SORTED

MEASURED, INTERPOLATED, NOT_MEASURED = "measured", "interpolated", "not measured"
# Between neighbouring sizes, at most, to say anything of what lies between: the spacing of experiment=crossover. Over
# wider gaps a curve bends from launches to bandwidth, and a straight line misses it by a factor.
MOST_APART = 4


@dataclass(frozen=True)
class Time:
    """Milliseconds of one step (in one layer, unless it is said otherwise), and how they are known.

    ms: the median; of several runs, the median of their medians. None where nothing is known.
    lo, hi: all of the 95 % intervals of these runs' medians; None where a run had too few samples for one.
    known: measured, interpolated (on a straight line between logarithms) or not measured.
    runs: it was measured in; of an interpolated one, the fewer of its neighbours'.
    ways: which one it is, if that is to be told (`Way`); of an interpolated time, those of its neighbours.
    of_runs: the medians of the runs; of an interpolated time, and of a difference, none.
    """

    ms: float | None
    lo: float | None
    hi: float | None
    known: str
    runs: int = 0
    ways: list[Way] = field(default_factory=list)
    of_runs: tuple[float, ...] = field(default=(), compare=False)

    def is_below(self, other: Time) -> bool:
        """Whether the runs say so, by the test of `compare`, where both sides have enough: processes differ by more
        than the samples of one. Else whether the intervals do. No difference is too small."""
        if self.of_runs and other.of_runs:
            apart = difference_of(self.of_runs, other.of_runs)
            if apart.lo is not None:
                return apart.lo > 0
        return self.hi is not None and other.lo is not None and self.hi < other.lo

    def is_open_against(self, other: Time) -> bool:
        """Whether the intervals leave open which of the two is less, or one has none."""
        return not (self.is_below(other) or other.is_below(self))

    def more_than(self, other: Time) -> float:
        """By how many ms: as `compare` has it of runs, where both sides have them; else of the medians."""
        if self.of_runs and other.of_runs:
            return difference_of(other.of_runs, self.of_runs).shift
        return (self.ms or 0.0) - (other.ms or 0.0)

    def is_of(self, release: str) -> bool:
        """Whether it is of a release's own way."""
        return any(way.engine == release for way in self.ways)

    def of_engine(self, release: str) -> Time | None:
        """That of a release's own way, where that was measured under the same strategy."""
        return next((way.by_engine[release] for way in self.ways if release in way.by_engine), None)


# Columns that times are told from: pandas takes a while over each of the others.
READ = ("case", "run_id", "by_auto", BY_BUNDLE, "wall_ms_median", "wall_ms_lo", "wall_ms_hi", *STEP, *WAYS)
UNKNOWN = Time(None, None, None, NOT_MEASURED)
Curve = Mapping[int, Time]
Point = TypeVar("Point")


def curves(frame: pd.DataFrame) -> dict[str, dict[int, Time]]:
    """The curve of `full` over tokens per step of every strategy.

    Where steps of as many tokens were measured in several shapes (64 x 4096, 262,144 x 1), that in which the most
    strategies were measured counts, for all of them; where a strategy was measured in several ways (kinds of pages,
    schedules, orders), its fastest.

    Args:
        frame: rows of one model, dtype and kind of tokens, as `load_results` returns them.
    """
    found: dict[str, dict[int, Time]] = {}
    for row, time in times_of(with_tokens(frame[(frame["case"] == FULL) & (frame["status"] == OK)])):
        found.setdefault(row["strategy"], {})[row["tokens_per_step"]] = time
    return found


def times_of(rows: pd.DataFrame, **more: tuple[str, Any]) -> Iterator[tuple[dict[str, Any], Time]]:
    """The time of every strategy at every number of tokens per step, in the shape and the way that `curves` says.

    Args:
        rows: measured ones of one case and one subject, with `tokens_per_step`.
        more: as `over_runs` takes it; the dictionaries hold what it comes to, and how it was done.
    """
    if rows.empty:
        return
    key = ["strategy", "tokens_per_step"]
    rows = rows if BY_BUNDLE in rows else rows.assign(**{BY_BUNDLE: ""})
    columns = dict.fromkeys([*key, *READ, *(column for column, _ in more.values())])
    rows = with_nulls(as_typed(in_one_shape(rows[[*columns]])))
    rows = rows.assign(**{OF_ENGINE: engines_of(rows)})
    differing = varying(rows, WAYS)
    alike = rows.iloc[0][[name for name in WAYS if name not in differing]].to_dict()
    first = {name: (name, "first") for name in (BY_BUNDLE, OF_ENGINE)}
    told = over_runs(rows, [*key, *differing], of_runs=("wall_ms_median", tuple), **first, **more)
    for (_, tokens), of_ways in told.sort_values([*key, "ms"], kind="stable").groupby(key):
        found = [{**alike, **{str(name): value for name, value in row.items()}} for row in of_ways.to_dict("records")]
        times = [_measured(row) for row in found]
        yield found[0], replace(times[0], ways=ways_of(tokens, found, times))


def _measured(row: Mapping[str, Any]) -> Time:
    """Of a row as `over_runs` has it."""
    without = math.isnan(row["lo"]) or math.isnan(row["hi"])
    lo, hi = (None, None) if without else (row["lo"], row["hi"])
    return Time(row["ms"], lo, hi, MEASURED, row["runs"], of_runs=row["of_runs"])


def time_at(curve: Curve, tokens: int) -> Time:
    """The time at a number of tokens: nothing is extrapolated, nor interpolated between sizes that are more than a
    factor of `MOST_APART` apart."""
    if tokens in curve:
        return curve[tokens]
    for left, right in pairwise(sorted(curve)):
        if left < tokens < right <= left * MOST_APART:
            share = math.log(tokens / left) / math.log(right / left)
            low, high = curve[left], curve[right]
            ms, lo, hi = (_between(getattr(low, part), getattr(high, part), share) for part in ("ms", "lo", "hi"))
            return Time(ms, lo, hi, INTERPOLATED, min(low.runs, high.runs), low.ways + high.ways)
    return UNKNOWN


def stretches(curve: Mapping[int, Point]) -> list[dict[int, Point]]:
    """Whatever is known over tokens, cut where neighbouring sizes are too far apart to say anything of what lies
    between."""
    parts: list[dict[int, Point]] = []
    for tokens in sorted(curve):
        if not parts or tokens > max(parts[-1]) * MOST_APART:
            parts.append({})
        parts[-1][tokens] = curve[tokens]
    return parts


def _between(low: float | None, high: float | None, share: float) -> float | None:
    return None if low is None or high is None else low * (high / low) ** share


@dataclass(frozen=True)
class Regime:
    """A range of tokens per step in which one strategy is best.

    strategy: the best of those measured there.
    first, last: measured tokens per step at its ends.
    gaps: neighbouring sizes in it that are more than a factor of `MOST_APART` apart: between them nothing is known.
    begins_after, begins_by: where it takes over from the regime before it: behind the last size at which that one is
        below it by their intervals, and at the latest at the first size at which it is below that one. None for the
        first regime, and where the intervals never say so.
    """

    strategy: str
    first: int
    last: int
    gaps: list[list[int]]
    begins_after: int | None
    begins_by: int | None


def regimes(found: Mapping[str, Curve], strategies: Sequence[str]) -> list[Regime]:
    """Which of the strategies is best where, at the sizes that at least two of them were measured at (or the one)."""
    by_size = {
        size: {name: found[name][size] for name in strategies if size in found[name]}
        for size in sorted(set().union(*(found[name] for name in strategies)))
    }
    shared = {size: times for size, times in by_size.items() if len(times) >= min(2, len(strategies))}
    best = {size: min(times, key=lambda name: times[name].ms or math.inf) for size, times in shared.items()}
    turns = [(name, list(sizes)) for name, sizes in groupby(best, key=lambda size: best[size])]
    return [
        Regime(
            name,
            sizes[0],
            sizes[-1],
            [[left, right] for left, right in pairwise(sizes) if right > left * MOST_APART],
            *(_takeover(shared, *turns[index - 1], name, sizes) if index else (None, None)),
        )
        for index, (name, sizes) in enumerate(turns)
    ]


def _takeover(
    shared: Mapping[int, Mapping[str, Time]], before: str, sizes_before: list[int], now: str, sizes_now: list[int]
) -> tuple[int | None, int | None]:
    def is_below(size: int, one: str, other: str) -> bool:
        return shared[size].get(one, UNKNOWN).is_below(shared[size].get(other, UNKNOWN))

    after = next((size for size in reversed(sizes_before) if is_below(size, before, now)), None)
    return after, next((size for size in sizes_now if is_below(size, now, before)), None)


def sort_thresholds(lookups: pd.DataFrame) -> tuple[int | None, int | None]:
    """The most row ids at which sorting, or partitioning, costs time, and the fewest from which on it saves some: by
    their intervals, where both orders of one lookup were measured on one kind of table; None where that was nowhere so.

    Args:
        lookups: measured rows of the case `lookup`.
    """
    lookups = lookups.assign(row_order=lookups["row_order"].replace(PARTITIONED, SORTED))
    through_link = lookups[(lookups["table"] != DEVICE) & lookups["row_order"].isin([AS_ASKED, SORTED])]
    rows = (through_link["rows_per_s"] * through_link["wall_ms_median"] / 1e3).round().rename("rows")
    of_one = through_link.groupby(["lookup", "table", rows, "row_order"])
    both = of_one.agg(lo=("wall_ms_lo", "min"), hi=("wall_ms_hi", "max")).unstack("row_order").dropna()
    if not {AS_ASKED, SORTED} <= set(both.columns.get_level_values("row_order")):
        return None, None
    both = both.groupby("rows").agg({column: "min" if column[0] == "lo" else "max" for column in both})
    costs = both.index[both["lo", SORTED] > both["hi", AS_ASKED]]
    saves = both["hi", SORTED] < both["lo", AS_ASKED]
    from_here_on = saves[::-1].cummin()[::-1]
    by = next((int(size) for size, clear in from_here_on.items() if clear), None)
    return int(costs.max()) if len(costs) else None, by
