"""Is B faster than A? Ratios of runs that are comparable, and a verdict that may be `undecided`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from engram_exp.analysis.arguments import add_only, at_least
from engram_exp.analysis.ranks import ratio_of
from engram_exp.analysis.subjects import WAYS, listed, load_campaign, spelled
from engram_exp.results import OK

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
        other_machine: compare although machines or libraries differ; `marked` then says in what.

    Returns:
        One row for each case: the columns that it was paired by, `case`, `runs_a`, `runs_b`, `wall_ms_a`, `wall_ms_b`
        (medians of the runs' medians), `ratio` (B to A), `ratio_lo`, `ratio_hi`, `verdict` on B, `marked`. Its
        `attrs["unpaired"]` says in words what had no partner; it is empty where all had one.

    Raises:
        ComparisonError: nothing in common, or different machines.
    """
    a, b = a[a["status"] == OK], b[b["status"] == OK]
    if a.empty or b.empty:
        raise ComparisonError(f"side {'A' if a.empty else 'B'} holds no measured case")
    marked = [name for name in MACHINE if set(_plain(a[name])) != set(_plain(b[name]))]
    if marked and not other_machine:
        raise ComparisonError(f"the sides differ in {', '.join(marked)}; --other-machine compares them nevertheless")
    keys = [*WORKLOAD, *(name for name in CHOICES if name not in _different(a, b, CHOICES)), "case"]
    sides = [
        frame.assign(**{name: _plain(frame[name]) for name in keys})
        .groupby(keys, sort=False)["wall_ms_median"]
        .agg(list)
        for frame in (a, b)
    ]
    pairs = pd.concat(sides, axis=1, keys=["a", "b"], join="inner")
    if pairs.empty:
        apart = ", ".join(_different(a, b, WORKLOAD)) or "how values of several columns are combined"
        raise ComparisonError(f"no configuration in common: the sides differ in {apart}")
    rows = [
        {**dict(zip(keys, key, strict=True)), **_judge(pair.a, pair.b, threshold), "marked": ", ".join(marked)}
        for key, pair in zip(pairs.index, pairs.itertuples(), strict=True)
    ]
    found = pd.DataFrame(rows)
    found.attrs["unpaired"] = _unpaired(sides[0].index, sides[1].index, pairs.index, keys)
    return found


def _unpaired(a: pd.Index[Any], b: pd.Index[Any], pairs: pd.Index[Any], keys: Sequence[str]) -> str:
    """How many cases of either side have no partner, and the columns in which these share no value with the other."""
    alone_a, alone_b = a.difference(pairs, sort=False), b.difference(pairs, sort=False)
    if alone_a.empty and alone_b.empty:
        return ""
    frames = [(alone_a.to_frame(), b.to_frame()), (alone_b.to_frame(), a.to_frame())]
    apart = {name for alone, other in frames if len(alone) for name in _different(alone, other, keys)}
    where = ", ".join(name for name in keys if name in apart) or "how values of several columns are combined"
    return f"{len(alone_a)} of A, {len(alone_b)} of B; they differ in {where}"


def compare_values(frame: pd.DataFrame, column: str, a: str, b: str, **options: Any) -> pd.DataFrame:
    """Compare two values of a column within one campaign; otherwise as `compare`.

    Raises:
        ComparisonError: no such column or value.
    """
    if column not in frame:
        raise ComparisonError(f"no column {column}; choose from {', '.join(CHOICES)}")
    texts = frame[column].map(spelled)
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


def _judge(a: list[float], b: list[float], threshold: float) -> dict[str, Any]:
    ratio, lo, hi = ratio_of(a, b)
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
        "wall_ms_a": float(pd.Series(a).median()),
        "wall_ms_b": float(pd.Series(b).median()),
        "ratio": ratio,
        "ratio_lo": lo,
        "ratio_hi": hi,
        "verdict": verdict,
    }


def _telling_apart(found: pd.DataFrame) -> list[str]:
    """The columns that are needed to tell the compared configurations apart."""
    told: list[str] = []
    groups = 1
    for name in dict.fromkeys(["strategy", "batch_size", "seq_len", *WORKLOAD, *CHOICES]):
        if name in found and (more := len(found[[*told, name]].drop_duplicates())) > groups:
            told, groups = [*told, name], more
    return told


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
        table.add_row(*(str(row[name]) for name in varying), row["case"], runs, *times, interval, row["verdict"])
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
    if found["ratio_lo"].isna().any():
        notes.append(
            f"no interval: too few runs; {ENOUGH_RUNS} on each side (or 3 and 5, 2 and 8) are enough: "
            "measure with repeats=5"
        )
    return notes
