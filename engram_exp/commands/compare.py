"""Is B faster than A? Ratios of runs that are comparable, and a verdict that may be `undecided`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from engram_exp.analysis.compare import (
    AGAINST,
    CHOICES,
    ENOUGH_RUNS,
    MIXED,
    THRESHOLD,
    WORKLOAD,
    compare,
    compare_values,
)
from engram_exp.analysis.disturbed import ONE_PROCESS
from engram_exp.analysis.exposed_rows import EXPOSED
from engram_exp.analysis.subjects import load_campaign, spelled
from engram_exp.commands.arguments import add_only, share
from engram_exp.results.schema import OPTIONS

ALWAYS_TOLD = ("strategy", "components", "decoder", "batch_size", "seq_len")  # where what is compared differs in them


def _telling_apart(found: pd.DataFrame) -> list[str]:
    """The columns that are needed beside the case to tell what is compared apart, and those that differ in some of
    it."""
    told = [name for name in ALWAYS_TOLD if found[name].nunique(dropna=False) > 1]
    groups = len(found[["case", *told]].drop_duplicates())
    for name in dict.fromkeys([*WORKLOAD, *CHOICES]):
        if (more := len(found[["case", *told, name]].drop_duplicates())) > groups:
            told, groups = [*told, name], more
    differs = {name: found[name].astype(str).str.contains(AGAINST, regex=False) for name in (*CHOICES, OPTIONS)}
    shown = [name for name in differs if differs[name].nunique() > 1 or (name == OPTIONS and differs[name].any())]
    return told + [name for name in shown if name not in told]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp compare` takes."""
    parser.add_argument("a", metavar="A", help="a folder; with --by, a value of the column")
    parser.add_argument("b", metavar="B", help="a folder; with --by, another value of the column")
    parser.add_argument("--by", metavar="COLUMN", help="compare two values of this column within one folder")
    parser.add_argument("--folder", default="outputs", help="with --by: the folder (default: outputs)")
    text = "a share that matters (default: %(default)s)"
    parser.add_argument("--threshold", type=share, default=THRESHOLD, metavar="SHARE", help=text)
    parser.add_argument("--other-machine", action="store_true", help="although machines or libraries differ")
    parser.add_argument("--case", help=f"only this case; {EXPOSED} is one, too, where steps of a model were timed")
    add_only(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV")


def run(arguments: argparse.Namespace) -> None:
    """Print a comparison.

    Raises:
        ComparisonError, FileNotFoundError, ValueError: as `compare` and `load_campaign`.
    """
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("threshold", "other_machine", "case")}
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
    for row in found.sort_values([name for name in ALWAYS_TOLD if name in varying], kind="stable").to_dict("records"):
        told = f"{row['runs_a']}, {row['runs_b']}", f"{row['wall_ms_a']:.4g}", f"{row['wall_ms_b']:.4g}"
        ways = (spelled(row[name]) for name in varying)
        table.add_row(*ways, row["case"], *told, *_apart(row), row["verdict"])
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note)


def _apart(row: Mapping[Any, Any]) -> tuple[str, str]:
    """How far B is from A, and the interval: a ratio, or a difference in ms."""
    name, form, unit = ("ratio", "{:.3f}", "") if pd.notna(row["ratio"]) else ("longer_ms", "{:+.4f}", " ms")
    lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
    interval = "" if pd.isna(lo) else f"{form} .. {form}{unit}".format(lo, hi)
    return f"{form}{unit}".format(row[name]), interval


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
    if found[["ratio_lo", "longer_ms_lo"]].isna().all(axis=1).any():
        notes.append(
            f"no interval: too few runs; {ENOUGH_RUNS} on each side (or 3 and 5, 2 and 8) are enough: "
            "measure with repeats=5"
        )
    if (found["case"] == EXPOSED).any():
        notes.append(f"{EXPOSED}: what a step takes longer than with its rows in place; of it B - A, not B / A")
    if (found[["runs_a", "runs_b"]] == 1).any(axis=None):
        notes.append(f"a side of 1 run: its time is {ONE_PROCESS}, and what changes from one to the next is unknown")
    if found.attrs["disturbed"]:
        notes.append(found.attrs["disturbed"])
    return notes
