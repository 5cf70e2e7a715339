"""Tables of medians: what the README shows of a campaign, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engram_exp.analysis.subjects import load_campaign
from engram_exp.plan import CASES
from engram_exp.results import OK

if TYPE_CHECKING:
    import pandas as pd


def markdown(frame: pd.DataFrame, index: Sequence[str], columns: str = "case", value: str = "wall_ms_median") -> str:
    """A table of one value of the runs in a campaign, four digits, by the given columns.

    Args:
        frame: as `load_results` returns it; rows that are not `ok` are left out.
        index: columns that tell the lines of the table apart.
        columns: the column whose values become the table's.
        value: what stands in it; several runs of the same configuration are averaged by their median.
    """
    good = frame[frame["status"] == OK]
    table = good.pivot_table(index=list(index), columns=columns, values=value, aggfunc="median")
    if columns == "case":
        table = table[[case for case in CASES if case in table]]
    heads = [*index, *map(str, table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(index) + "---:|" * len(table.columns)]
    for key, row in table.iterrows():
        keys = key if isinstance(key, tuple) else (key,)
        lines.append("| " + " | ".join([*map(str, keys), *map(_digits, row)]) + " |")
    return "\n".join(lines)


def _digits(value: float) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp summary` takes."""
    parser.add_argument("folder", help="of a campaign, or of any runs")
    parser.add_argument("index", nargs="*", default=["strategy"], metavar="COLUMN", help="tells the lines apart")
    parser.add_argument("--columns", default="case", help="becomes the table's columns (default: case)")
    parser.add_argument("--value", default="wall_ms_median", help="what stands in it (default: wall_ms_median)")
    parser.add_argument("--case", help="only this case")


def run(arguments: argparse.Namespace) -> None:
    """Print the table of a folder.

    Raises:
        ValueError: a column that does not exist, or nothing to show.
        FileNotFoundError: no such folder.
    """
    frame = load_campaign(arguments.folder)
    for name in (*arguments.index, arguments.columns, arguments.value):
        if name not in frame:
            raise ValueError(f"no column {name}")
    if arguments.case:
        frame = frame[frame["case"] == arguments.case]
    if not (frame["status"] == OK).any():
        raise ValueError(f"no measured case{f' {arguments.case}' if arguments.case else ''} in {arguments.folder}")
    print(markdown(frame, arguments.index, arguments.columns, arguments.value))
