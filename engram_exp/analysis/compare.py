"""Is B faster than A? Ratios of runs that are comparable, and a verdict that may be `undecided`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from engram_exp.analysis.ratios import ratio_of
from engram_exp.analysis.subjects import WAYS, listed, load_campaign, spelled, with_nulls
from engram_exp.commands.arguments import add_only, at_least
from engram_exp.results.schema import OK

THRESHOLD = 0.02
ENOUGH_RUNS = 4  # on each side, for an interval of 95 %; 3 and 5, or 2 and 8, are enough, too
SAME, FASTER, SLOWER, UNDECIDED = "same", "faster", "slower", "undecided"

# What is asked of a run: two that differ here are never comparable.
WORKLOAD = (
    "model", "layer", "dtype", "layout", "row_bytes", "table_scale", "tokens", "history", "seed", "batches",
    "batch_size", "seq_len", "threads",
)  # fmt: skip
# How it is done: a difference here is what a comparison is about, or goes with it.
CHOICES = ("strategy", *WAYS)
GOES_WITH = {"dtype": ("layout", "row_bytes"), "model": ("layer", "layout", "row_bytes")}
MACHINE = ("host", "cpu_name", "device_name", "driver", "torch_version")
MIXED = (*MACHINE, "git_sha")  # in runs that count as repetitions of one: each may have changed the time
SET_BY_MACHINE = ("threads", "batches")  # by default: its cores, and what exceeds its caches
ALONE = "without a partner"
AGAINST = " / "  # between a choice of A and one of B


Values = tuple[Any, ...]


class ComparisonError(ValueError):
    """Two campaigns that cannot be compared, and why."""


def compare(
    a: pd.DataFrame, b: pd.DataFrame, *, threshold: float = THRESHOLD, other_machine: bool = False
) -> pd.DataFrame:
    """Compare every case of every configuration that both sides have.

    Args:
        a, b: rows as `load_results` returns them; those that are not `ok` are left out. A run is one replication: what
            was measured once on either side is `undecided`.
        threshold: a difference below this share is of no interest: a ratio between 1 / (1 + threshold) and
            1 + threshold.
        other_machine: compare although machines or libraries differ; `marked` then says in what. What a machine sets by
            default (threads, batches) is then a choice like others.

    Returns:
        One row for each case and each pair of ways in which it was measured: the workload, the choices (`A / B` where
        they differ; - where one does not apply), `case`, `runs_a`, `runs_b`, `wall_ms_a`, `wall_ms_b` (medians of the
        runs' medians), `ratio` (B to A), `ratio_lo`, `ratio_hi`, `verdict` on B, `marked`, and what the runs of one
        side `mixed`: machines, libraries or code. Its `attrs["unpaired"]` says in words what had no partner; it is
        empty where all had one.

    Raises:
        ComparisonError: nothing in common, or different machines.
    """
    a, b = a[a["status"] == OK], b[b["status"] == OK]
    if a.empty or b.empty:
        raise ComparisonError(f"side {'A' if a.empty else 'B'} holds no measured case")
    free = SET_BY_MACHINE if other_machine else ()
    marked = [name for name in (*MACHINE, *free) if set(_plain(a[name])) != set(_plain(b[name]))]
    if marked and not other_machine:
        raise ComparisonError(f"the sides differ in {', '.join(marked)}; --other-machine compares them nevertheless")
    fixed = "strategy" not in _different(a, b, ["strategy"])
    keys = [*(name for name in WORKLOAD if name not in free), *(["strategy"] if fixed else []), "case"]
    ways = [name for name in (*CHOICES, *free) if name not in keys]
    found = _compared(a, b, keys, ways, threshold)
    found["marked"] = ", ".join(marked)
    return found


def _compared(a: pd.DataFrame, b: pd.DataFrame, keys: list[str], ways: list[str], threshold: float) -> pd.DataFrame:
    """The sides, paired by what was asked (keys) and, within each of these, by what they share of how (ways)."""
    of_a, of_b = (_ways_by_workload(side, keys, ways) for side in (a, b))
    pairs = [(key, *pair) for key in of_a if key in of_b for pair in _pairs(of_a[key], of_b[key])]
    if not pairs:
        apart = ", ".join(_different(a, b, keys)) or "how values of several columns are combined"
        raise ComparisonError(f"no configuration in common: the sides differ in {apart}")
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
    """How many cases of either side have no partner, and the columns in which these have values that the other has
    not; what differs throughout needs no word."""
    alone = [side[side[ALONE]] for side in (a, b)]
    if not any(map(len, alone)):
        return ""
    throughout = _different(a, b, ways)
    apart = [
        name
        for name in a.columns.drop([ALONE, *throughout])
        if set(alone[0][name]) - set(b[name]) or set(alone[1][name]) - set(a[name])
    ]
    where = ", ".join(apart) or "how values of several columns are combined"
    return f"{len(alone[0])} of A, {len(alone[1])} of B; they differ in {where}"


def compare_values(frame: pd.DataFrame, column: str, a: str, b: str, **options: Any) -> pd.DataFrame:
    """Compare two values of a column within one campaign; otherwise as `compare`.

    Raises:
        ComparisonError: no such column or value.
    """
    if column not in frame:
        raise ComparisonError(f"no column {column}; choose from {', '.join(CHOICES)}")
    texts = with_nulls(frame)[column].map(spelled)
    for value in (a, b):
        if value not in set(texts):
            raise ComparisonError(f"{column} is never {value}; it is {listed(texts)}")
    sides = [frame[texts == value] for value in (a, b)]
    if column in WORKLOAD:
        ignored = dict.fromkeys([column, *GOES_WITH.get(column, ())], "")
        sides = [side.assign(**ignored) for side in sides]
    return compare(*sides, **options)


def _different(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Columns of which the sides share no value."""
    return [name for name in columns if set(_plain(a[name])).isdisjoint(_plain(b[name]))]


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column in which empty values equal each other."""
    return column.astype(object).where(column.notna(), "")


def _judge(a: pd.DataFrame, b: pd.DataFrame, threshold: float) -> dict[str, Any]:
    ratio, lo, hi = ratio_of(a["wall_ms_median"].tolist(), b["wall_ms_median"].tolist())
    verdict = UNDECIDED
    if lo is not None and hi is not None:
        significant = not lo <= 1 <= hi
        if significant and abs(math.log(ratio)) >= math.log1p(threshold):
            verdict = FASTER if ratio < 1 else SLOWER
        elif 1 / (1 + threshold) <= lo and hi <= 1 + threshold:
            verdict = SAME
    return {
        "runs_a": len(a),
        "runs_b": len(b),
        "wall_ms_a": float(a["wall_ms_median"].median()),
        "wall_ms_b": float(b["wall_ms_median"].median()),
        "ratio": ratio,
        "ratio_lo": lo,
        "ratio_hi": hi,
        "verdict": verdict,
        "mixed": ", ".join(name for name in MIXED if max(a[name].nunique(), b[name].nunique()) > 1),
    }


def _telling_apart(found: pd.DataFrame) -> list[str]:
    """The columns that are needed to tell the compared configurations apart, and those that differ in some of them."""
    told: list[str] = []
    groups = 1
    for name in dict.fromkeys(["strategy", "batch_size", "seq_len", *WORKLOAD, *CHOICES]):
        if name in found and (more := len(found[[*told, name]].drop_duplicates())) > groups:
            told, groups = [*told, name], more
    differs = {name: found[name].astype(str).str.contains(AGAINST, regex=False) for name in CHOICES}
    return told + [name for name in differs if name not in told and differs[name].nunique() > 1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp compare` takes."""
    parser.add_argument("a", metavar="A", help="a folder; with --by, a value of the column")
    parser.add_argument("b", metavar="B", help="a folder; with --by, another value of the column")
    parser.add_argument("--by", metavar="COLUMN", help="compare two values of this column within one folder")
    parser.add_argument("--folder", default="outputs", help="with --by: the folder (default: outputs)")
    share = "a share that matters (default: %(default)s)"
    parser.add_argument("--threshold", type=at_least(0, float), default=THRESHOLD, metavar="SHARE", help=share)
    parser.add_argument("--other-machine", action="store_true", help="although machines or libraries differ")
    add_only(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV")


def run(arguments: argparse.Namespace) -> None:
    """Print a comparison.

    Raises:
        ComparisonError, FileNotFoundError, ValueError: as `compare` and `load_campaign`.
    """
    options: dict[str, Any] = {"threshold": arguments.threshold, "other_machine": arguments.other_machine}
    if arguments.by:
        frame = load_campaign(arguments.folder, arguments.only)
        found = compare_values(frame, arguments.by, arguments.a, arguments.b, **options)
    else:
        found = compare(*(load_campaign(side, arguments.only) for side in (arguments.a, arguments.b)), **options)
    notes = _notes(found)
    if arguments.csv:
        print(found.to_csv(index=False), end="")
        for note in notes:
            print(note, file=sys.stderr)
        return
    varying = _telling_apart(found)
    table = Table(*varying, "case", "runs", "A ms", "B ms", "B / A", "95 % interval", "B is")
    for row in found.to_dict("records"):
        interval = "" if pd.isna(row["ratio_lo"]) else f"{row['ratio_lo']:.3f} .. {row['ratio_hi']:.3f}"
        times = f"{row['wall_ms_a']:.4g}", f"{row['wall_ms_b']:.4g}", f"{row['ratio']:.3f}"
        runs = f"{row['runs_a']}, {row['runs_b']}"
        table.add_row(*(spelled(row[name]) for name in varying), row["case"], runs, *times, interval, row["verdict"])
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note)


def _notes(found: pd.DataFrame) -> list[str]:
    """What must be known beside the table."""
    notes = []
    if found.attrs["unpaired"]:
        notes.append(f"without a partner: {found.attrs['unpaired']}")
    if found["marked"].any():
        notes.append(f"different machines or libraries: {found['marked'].iloc[0]}")
    mixed = [name for name in MIXED if any(name in names.split(", ") for names in found["mixed"])]
    if mixed:
        notes.append(f"runs of one side mix several {', '.join(mixed)}: --only COLUMN=VALUE keeps those of one")
    if found["ratio_lo"].isna().any():
        notes.append(
            f"no interval: too few runs; {ENOUGH_RUNS} on each side (or 3 and 5, 2 and 8) are enough: "
            "measure with repeats=5"
        )
    return notes
