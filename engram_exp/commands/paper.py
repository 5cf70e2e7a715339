"""What a table in host memory costs the paper's workload: continuous batching, replayed over measured steps."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import pandas as pd
from rich.console import Console
from rich.table import Table

from engram_exp.analysis.compare import MIXED
from engram_exp.analysis.disturbed import ONE_PROCESS, disturbance
from engram_exp.analysis.paper import CASES, FEWEST_ROUNDS, SUBJECT, paper_table
from engram_exp.analysis.replay import DECODE, PROMPT, Step, draw, steps_of
from engram_exp.analysis.subjects import ABOUT, load_campaign, spelled
from engram_exp.commands.arguments import add_only, at_least
from engram_exp.results.load import load_samples

ALWAYS_TOLD = ("table_scale", "row_bytes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp paper` takes."""
    parser.add_argument("folder", help="of the campaign of experiment=paper and experiment=paper_prompts")
    for name, usual, text in (
        ("sequences", 512, "that are served, all waiting from the beginning"),
        ("shortest", 100, "tokens of a prompt, and of an output, at least"),
        ("longest", 1024, "tokens of a prompt, and of an output, at most"),
        ("max-sequences", 512, "that run at a time"),
        ("max-tokens", 8192, "of prompts in a step, at most"),
    ):
        text = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=at_least(1, int), default=usual, metavar="N", help=text)
    text = "of a sequence's length that is its prompt; without it, prompt and output have a length each"
    parser.add_argument("--prompt-share", type=_share, metavar="SHARE", help=text)
    parser.add_argument(
        "--seed",
        type=at_least(0, int),
        default=0,
        metavar="N",
        help="of the lengths, and of the intervals (default: 0)",
    )
    add_only(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV")


def run(arguments: argparse.Namespace) -> None:
    """Print the table of a campaign.

    Raises:
        PaperError, ReplayError, FileNotFoundError, ValueError: as `paper_table`, `draw`, `steps_of` and
            `load_campaign`.
    """
    frame = load_campaign(arguments.folder, arguments.only)
    lengths = arguments.shortest, arguments.longest
    requests = draw(arguments.sequences, *lengths, arguments.seed, arguments.prompt_share)
    steps = list(steps_of(requests, arguments.max_sequences, arguments.max_tokens))
    found = paper_table(frame, load_samples(arguments.folder), steps, arguments.seed)
    found = found.sort_values(["decoder", "strategy"], kind="stable")
    notes = [_workload(arguments, steps), *_notes(found, frame)]
    if arguments.csv:
        print(found.to_csv(index=False), end="")
        for note in notes:
            print(note, file=sys.stderr)
        return
    told = _told(found)
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    console.print(_table(found, told))
    for note in (*_below(found, told), *notes):
        console.print(note, markup=False, soft_wrap=True)


def _share(text: str) -> float:
    share = at_least(0, float)(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, not {text!r}")
    return share


def _told(found: pd.DataFrame) -> list[str]:
    """The columns of the table beside the strategy: the decoder, and what differs between lines of one."""
    several = found.groupby("decoder")[[*SUBJECT]].nunique(dropna=False) > 1
    return ["decoder", *several.columns[several.any()]]


def _table(found: pd.DataFrame, told: list[str]) -> Table:
    speeds = "tokens/s\nwithout\na table", "its rows\nin place", "as the\nstrategy\nhas them"
    losses = "loss\n%", "95 %\ninterval", "exposed\n%", "95 %\ninterval", "paper's\n%"
    table = Table(*told, "strategy", *speeds, *losses)
    for row in found.to_dict("records"):
        cells = [f"{row[name]:.2f}" for name in ("tokens_per_s_without", "tokens_per_s_in_place", "tokens_per_s")]
        for name in ("loss", "exposed"):
            low, high = row[f"{name}_lo"], row[f"{name}_hi"]
            cells += [f"{row[f'{name}_percent']:.2f}", "" if low != low else f"{low:.2f} .. {high:.2f}"]
        paper = row["paper_loss_percent"]
        cells.append("" if paper != paper else f"{paper:.2f}")
        table.add_row(*(spelled(row[name]) for name in told), row["strategy"], *cells)
    return table


def _below(found: pd.DataFrame, told: list[str]) -> list[str]:
    """What needs no column: values of all lines, and those that lines of one decoder share."""
    numbers = found[[*SUBJECT]].nunique(dropna=False)
    of_all = {name: found[name].iloc[0] for name in ALWAYS_TOLD if numbers[name] == 1}
    differ = [name for name in SUBJECT if numbers[name] > 1 and name not in told]
    values = {"in all lines": of_all, **found.drop_duplicates("decoder").set_index("decoder")[differ].to_dict("index")}
    texts = {
        of: [ABOUT[name].format(value) for name, value in own.items() if spelled(value)] for of, own in values.items()
    }
    return [f"{of}: {', '.join(text)}" for of, text in texts.items() if text]


def _workload(arguments: argparse.Namespace, steps: list[Step]) -> str:
    """What is replayed, in words."""
    kinds = Counter(step.shape.kind for step in steps)
    made = sum(len(step.members) for step in steps)
    lengths, share = f"{arguments.shortest} to {arguments.longest} tokens", arguments.prompt_share
    split = f"prompts and outputs of {lengths} each" if share is None else f"{lengths}, {share:.3g} of them a prompt"
    return (
        f"{arguments.sequences} sequences, {split} (seed {arguments.seed}), {made} tokens made: "
        f"{kinds[PROMPT]} steps of prompts (up to {arguments.max_tokens} tokens), "
        f"{kinds[DECODE]} decode steps (up to {arguments.max_sequences} sequences)"
    )


def _notes(found: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """What must be known beside the table."""
    steps = frame[frame["case"].isin(CASES)]
    fewest = found["processes"].min()
    covers = f"of {fewest} processes a shape or more" if fewest > 1 else f"{ONE_PROCESS} a shape: what rounds differ in"
    notes = [f"intervals are {covers}; the paper gives none"] if found["loss_lo"].notna().any() else []
    notes.append(
        "every decode step attends to a fixed context; prompts that share a step are timed as one of as many tokens"
    )
    for few, lines in found[found["few_rounds"] != ""].groupby("few_rounds", sort=False):
        of = "; ".join(lines["decoder"] + ", " + lines["strategy"])
        notes.append(
            f"no interval ({of}): a process needs {FEWEST_ROUNDS} rounds (a larger budget_s takes more), and has fewer "
            f"of {few}"
        )
    if (found["table_scale"] < 1).any():
        notes.append("table_scale is below 1: rows of a smaller table are read faster than those of the paper's")
    if mixed := [name for name in MIXED if steps[name].nunique() > 1]:
        notes.append(f"steps of several {', '.join(mixed)} are mixed: --only COLUMN=VALUE keeps those of one")
    if text := disturbance(steps):
        notes.append(text)
    return notes
