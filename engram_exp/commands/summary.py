"""Tables of medians, as Markdown: what a campaign's page shows."""

from __future__ import annotations

import argparse

from engram_exp.analysis.subjects import load_campaign
from engram_exp.analysis.summary import markdown
from engram_exp.commands.arguments import add_only
from engram_exp.vocabulary import OK

ASKED = ("model", "dtype", "tokens", "decoder", "batch_size", "seq_len")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp summary` takes."""
    parser.add_argument("folder", help="of a campaign, or of any runs")
    text = f"tells the lines apart (default: strategy, and those of {', '.join(ASKED)} that differ)"
    parser.add_argument("index", nargs="*", metavar="COLUMN", help=text)
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
    good = frame[frame["status"] == OK]
    differ = [name for name in ASKED if name != arguments.columns and good[name].nunique(dropna=False) > 1]
    index = [name for name in ("strategy", *differ) if name != arguments.columns]
    print(markdown(frame, arguments.index or index, arguments.columns, arguments.value))
