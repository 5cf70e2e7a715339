"""Is B faster than A? Ratios of runs that are comparable, and a verdict that may be `undecided`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from engram_exp.analysis.disturbed import disturbance
from engram_exp.analysis.exposed_rows import EXPOSED, with_exposed
from engram_exp.analysis.ratios import Difference, Ratio, difference_of, ratio_of
from engram_exp.analysis.subjects import as_typed, asks, listed, load_campaign, spelled, with_nulls, without
from engram_exp.results import schema
from engram_exp.results.schema import OPTIONS, of_role
from engram_exp.vocabulary import CASES, IN_STEP, OK, READY

THRESHOLD = 0.02
OF_A_STEP = 0.001  # a share of a step that matters, of what is exposed in it
ENOUGH_RUNS = 4  # on each side, for an interval of 95 %; 3 and 5, or 2 and 8, are enough, too
SAME, FASTER, SLOWER, UNDECIDED = "same", "faster", "slower", "undecided"

WORKLOAD = of_role(schema.SUBJECT, schema.STEP, schema.ASKED, OPTIONS)  # two that differ here are never comparable
CHOICES = of_role(schema.STRATEGY, schema.WAY)  # what a comparison is about, or what goes with it
MACHINE = of_role(schema.MACHINE)
MIXED = (
    *of_role(schema.MACHINE, schema.CODE),
    "worker",
)  # in runs that count as repetitions of one: each may have changed the time
GOES_WITH = {
    "dtype": ("layout", "row_bytes"),
    "model": ("layer", "layout", "row_bytes", "fusion"),
    OPTIONS: ("row_bytes",),
}
# What sets a column that is no choice.
OPTIONS_OF = {"row_bytes": ("model.row_values", "dtype.values_per_scale", "dtype.one_scale")}
SET_BY_MACHINE = ("threads", "batches")  # by default: its cores, and what exceeds its caches
RANKS = "ranks", "nodes"
WITH_RANKS = ("rank_batches", "threads")  # choices of each number of them: what they ask for, and their share of CPUs
ALONE = "without a partner"
AGAINST = " / "  # between a choice of A and one of B
OTHERS = "other options"  # than those that go with what is compared

Values = tuple[Any, ...]


class ComparisonError(ValueError):
    """Two campaigns that cannot be compared, and why."""


def compare(
    a: pd.DataFrame | str | Path,
    b: pd.DataFrame | str | Path,
    *,
    threshold: float = THRESHOLD,
    other_machine: bool = False,
    case: str | None = None,
) -> pd.DataFrame:
    """Compare every case of every configuration that both sides have.

    Args:
        a, b: a folder of runs, or rows as `load_results` returns them; those that are not `ok` are left out. A run is
            one replication: what was measured once on either side is `undecided`.
        threshold: a difference below this share is of no interest: a ratio between 1 / (1 + threshold) and
            1 + threshold. Of what is exposed, a difference below a thousandth of the step with its rows in place is, or
            below this share, if that is less.
        other_machine: compare although machines or libraries differ; `marked` then says in what. What a machine sets by
            default (threads, batches) is then a choice like others.
        case: that is compared alone; `exposed` is one, too.

    Returns:
        One row for each case and each pair of ways in which it was measured: the workload, the choices (`A / B` where
        they differ; - where one does not apply), `case`, `runs_a`, `runs_b`, `wall_ms_a`, `wall_ms_b` (medians of the
        runs' medians), `ratio` (B to A), `ratio_lo`, `ratio_hi`, `verdict` on B, `marked`, and what the runs of one
        side `mixed`: machines, libraries or code. The case `exposed` is what a model's step takes longer than with its
        rows in place: it may be nothing, or less, and has a difference instead: `longer_ms` (B - A), `longer_ms_lo`,
        `longer_ms_hi`. Its `attrs["unpaired"]` says in words what had no partner,
        `attrs["disturbed"]` which times of either side were; they are empty where there is nothing to say.

    Raises:
        ComparisonError: nothing in common, no such case, or different machines.
        FileNotFoundError, ValueError: of a folder, naming its side: it does not exist, or holds no results.
    """
    free = SET_BY_MACHINE if other_machine else ()
    return _compare(_rows_of(a, "A"), _rows_of(b, "B"), threshold, other_machine, case, free, lambda option: False)


def _rows_of(side: pd.DataFrame | str | Path, name: str) -> pd.DataFrame:
    if isinstance(side, pd.DataFrame):
        return side
    try:
        return load_campaign(side)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"side {name}: {error}") from error


def _compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    threshold: float,
    other_machine: bool,
    case: str | None,
    free: Sequence[str],
    goes_along: Callable[[str], bool],
) -> pd.DataFrame:
    """As `compare`; columns that are free, and options that go along with what is compared, are choices, the others are
    part of the workload."""
    a, b = (as_typed(_measured(side, name)) for side, name in ((a, "A"), (b, "B")))
    by_default = SET_BY_MACHINE if other_machine else ()
    marked = [name for name in (*MACHINE, *by_default) if set(_plain(a[name])) != set(_plain(b[name]))]
    if marked and not other_machine:
        raise ComparisonError(f"the sides differ in {', '.join(marked)}; --other-machine compares them nevertheless")
    timed = {EXPOSED: (READY, IN_STEP), None: CASES}.get(case, (case,))
    timings = (("A", a[a["case"].isin(timed)]), ("B", b[b["case"].isin(timed)]))
    notes = [f"{name}: {text}" for name, side in timings if (text := disturbance(side))]
    a, b = (_of_case(with_exposed(side), name, case) for side, name in ((a, "A"), (b, "B")))
    a, b = (side.assign(**{OTHERS: without(side[OPTIONS], goes_along)}) for side in (a, b))
    fixed = "strategy" not in _different(a, b, ["strategy"])
    asked = [name for name in WORKLOAD if name not in (*free, OPTIONS)]
    keys = [*asked, OTHERS, *(["strategy"] if fixed else []), "case"]
    ways = [name for name in (*CHOICES, OPTIONS, *free) if name not in keys]
    found = _compared(a, b, keys, ways, threshold).drop(columns=OTHERS)
    found["marked"] = ", ".join(marked)
    found.attrs["disturbed"] = "; ".join(notes)
    return found


def _measured(side: pd.DataFrame, name: str) -> pd.DataFrame:
    rows = side[side["status"] == OK]
    if rows.empty:
        counts = ", ".join(f"{number} {status}" for status, number in side["status"].value_counts().items())
        raise ComparisonError(f"side {name} holds no measured case ({counts or 'no row'})")
    return rows


def _of_case(rows: pd.DataFrame, name: str, case: str | None) -> pd.DataFrame:
    """The rows of a side that are of one case, if it is named."""
    if case and case not in set(rows["case"]):
        raise ComparisonError(f"side {name} holds no measured case {case}; it has {listed(rows['case'])}")
    return rows[rows["case"] == case] if case else rows


def _compared(a: pd.DataFrame, b: pd.DataFrame, keys: list[str], ways: list[str], threshold: float) -> pd.DataFrame:
    """The sides, paired by what was asked (keys) and, within each of these, by what they share of how (ways)."""
    of_a, of_b = (_ways_by_workload(side, keys, ways) for side in (a, b))
    pairs = [(key, *pair) for key in of_a if key in of_b for pair in _pairs(of_a[key], of_b[key])]
    if not pairs:
        names = _different(a, b, keys)
        apart = ", ".join(names).replace(OTHERS, OPTIONS) or "how values of several columns are combined"
        hint = f"; --by {OPTIONS} compares two of one folder" if OTHERS in names else ""
        raise ComparisonError(f"no configuration in common: the sides differ in {apart}{hint}")
    rows = [
        {
            **dict(zip(keys, key, strict=True)),
            **dict(zip(ways, map(_against, way_a, way_b), strict=True)),
            **_judge(of_a[key][way_a], of_b[key][way_b], threshold),
        }
        for key, way_a, way_b in pairs
    ]
    found = pd.DataFrame(rows)
    all_a, all_b = (
        pd.DataFrame(
            [(*key, *way, (key, way) not in paired) for key in side for way in side[key]], columns=[*keys, *ways, ALONE]
        )
        for side, paired in ((of_a, {pair[:2] for pair in pairs}), (of_b, {pair[::2] for pair in pairs}))
    )
    found.attrs["unpaired"] = _unpaired(all_a, all_b, ways)
    return found


def _ways_by_workload(
    side: pd.DataFrame, keys: Sequence[str], ways: Sequence[str]
) -> dict[Values, dict[Values, pd.DataFrame]]:
    """The runs of a side, by what was asked of them and by how they did it."""
    side = with_nulls(side)
    plain = side.assign(**{name: _plain(side[name]) for name in (*keys, *ways)})
    found: dict[Values, dict[Values, pd.DataFrame]] = {}
    for values, rows in plain.groupby([*keys, *ways], sort=False):
        found.setdefault(values[: len(keys)], {})[values[len(keys) :]] = rows
    return found


def _pairs(a: Iterable[Values], b: Iterable[Values]) -> list[tuple[Values, Values]]:
    """The ways of one workload that agree in every choice that applies to both sides and of which they share a value.

    In the others they cannot agree: a strategy chooses them by itself, or the comparison is about them.
    """
    columns = zip(zip(*a, strict=True), zip(*b, strict=True), strict=True)
    values = [(set(of_a), set(of_b)) for of_a, of_b in columns]
    shared = [n for n, sides in enumerate(values) if not sides[0].isdisjoint(sides[1]) and {""} not in sides]
    return [(one, other) for one in a for other in b if all(one[n] == other[n] for n in shared)]


def _against(a: Any, b: Any) -> Any:
    return a if a == b else f"{spelled(a) or '-'}{AGAINST}{spelled(b) or '-'}"


def _unpaired(a: pd.DataFrame, b: pd.DataFrame, ways: Sequence[str]) -> str:
    """How many cases of either side have no partner, which these are unless they are all, and the columns in which they
    have values that the other has not; what differs throughout needs no word."""
    alone = [side[side[ALONE]] for side in (a, b)]
    if not any(map(len, alone)):
        return ""
    throughout = _different(a, b, ways)
    apart = [
        name
        for name in a.columns.drop([ALONE, OTHERS, *throughout])
        if set(alone[0][name]) - set(b[name]) or set(alone[1][name]) - set(a[name])
    ]
    where = ", ".join(apart) or "how values of several columns are combined"
    cases, of_all = (set().union(*(side["case"] for side in sides)) for sides in (alone, (a, b)))
    of_cases = f" ({listed(cases)})" if cases != of_all else ""
    return f"{len(alone[0])} of A, {len(alone[1])} of B{of_cases}; they differ in {where}"


def compare_values(
    frame: pd.DataFrame,
    column: str,
    a: str,
    b: str,
    *,
    threshold: float = THRESHOLD,
    other_machine: bool = False,
    case: str | None = None,
) -> pd.DataFrame:
    """Compare two values of a column within one campaign; otherwise as `compare`. Options that go with the column may
    differ along with it: those of the model with `model`, those of how it is done with a strategy or a component. What
    ranks ask for, and their threads, go with how many there are.

    Raises:
        ComparisonError: no such column or value.
    """
    if column not in frame:
        raise ComparisonError(f"no column {column}; choose from {', '.join((*CHOICES, OPTIONS))}")
    frame = as_typed(frame)
    texts = with_nulls(frame)[column].map(spelled)
    for value in (a, b):
        if value not in set(texts):
            raise ComparisonError(f"{column} is never {value}; it is {listed(texts)}")
    sides = [frame[texts == value] for value in (a, b)]
    if column in WORKLOAD:
        ignored = dict.fromkeys([column, *GOES_WITH.get(column, ())], "")
        sides = [side.assign(**ignored) for side in sides]
    free = (*(SET_BY_MACHINE if other_machine else ()), *(WITH_RANKS if column in RANKS else ()))
    options = threshold, other_machine, case, [*dict.fromkeys(free)], partial(_goes_along, column)
    return _compare(sides[0], sides[1], *options)


def _goes_along(column: str, option: str) -> bool:
    key = option.lstrip("~").partition("=")[0]
    if column in CHOICES or column in RANKS:
        return not asks(option)
    return key.partition(".")[0] == column or key in OPTIONS_OF.get(column, ())


def _different(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Columns of which the sides share no value."""
    return [name for name in columns if set(_plain(a[name])).isdisjoint(_plain(b[name]))]


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column in which empty values equal each other."""
    return column.astype(object).where(column.notna(), "")


def _judge(a: pd.DataFrame, b: pd.DataFrame, threshold: float) -> dict[str, Any]:
    of_a, of_b = a["wall_ms_median"].tolist(), b["wall_ms_median"].tolist()
    ratio, longer = Ratio(math.nan, None, None), Difference(math.nan, None, None)
    if a["case"].iloc[0] == EXPOSED:
        longer = difference_of(of_a, of_b)
        verdict = _verdict(longer, min(threshold, OF_A_STEP) * pd.concat([a, b])["ready_ms"].median())
    else:
        ratio = ratio_of(of_a, of_b)
        logarithms = [None if part is None else math.log(part) for part in (ratio.lo, ratio.hi)]
        verdict = _verdict(Difference(math.log(ratio.ratio), *logarithms), math.log1p(threshold))
    return {
        "runs_a": len(a),
        "runs_b": len(b),
        "wall_ms_a": float(a["wall_ms_median"].median()),
        "wall_ms_b": float(b["wall_ms_median"].median()),
        **dict(zip(("ratio", "ratio_lo", "ratio_hi"), ratio, strict=True)),
        **dict(zip(("longer_ms", "longer_ms_lo", "longer_ms_hi"), longer, strict=True)),
        "verdict": verdict,
        "mixed": ", ".join(name for name in MIXED if max(a[name].nunique(), b[name].nunique()) > 1),
    }


def _verdict(apart: Difference, least: float) -> str:
    """On B, by how far it is above A: the interval must say so, and less than `least` is of no interest."""
    shift, lo, hi = apart
    if lo is None or hi is None:
        return UNDECIDED
    if not lo <= 0 <= hi and abs(shift) >= least:
        return FASTER if shift < 0 else SLOWER
    return SAME if -least <= lo and hi <= least else UNDECIDED
