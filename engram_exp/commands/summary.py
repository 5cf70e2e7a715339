"""Tables of medians, as Markdown: what a campaign's page shows."""

from __future__ import annotations

import argparse

from engram_exp.analysis.subjects import load_campaign
from engram_exp.analysis.summary import markdown
from engram_exp.commands.arguments import add_only
from engram_exp.vocabulary import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp summary` takes."""
    parser.add_argument("folder", help="of a campaign, or of any runs")
    parser.add_argument("index", nargs="*", default=["strategy"], metavar="COLUMN", help="tells the lines apart")
    parser.add_argument("--columns", default="case", help="becomes the table's columns (default: case)")
    parser.add_argument("--value", default="wall_ms_median", help="what stands in it (default: wall_ms_median)")
    parser.add_argument("--case", help="only this case")
    add_only(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the table of a folder.

    Raises:
        ValueError: a column that does not exist, nothing to show, or as `markdown`.
        FileNotFoundError: no such folder.
    """
    frame = load_campaign(arguments.folder, arguments.only)
    for name in (*arguments.index, arguments.columns, arguments.value):
        if name not in frame:
            raise ValueError(f"no column {name}")
    if arguments.case:
        frame = frame[frame["case"] == arguments.case]
    if not (frame["status"] == OK).any():
        raise ValueError(f"no measured case{f' {arguments.case}' if arguments.case else ''} in {arguments.folder}")
    print(markdown(frame, arguments.index, arguments.columns, arguments.value))
