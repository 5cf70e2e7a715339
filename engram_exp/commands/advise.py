"""Which strategy for decoding and for prefill, within a budget of device memory, and what it costs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from engram_exp.analysis.advice import advise
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.subjects import load_campaign
from engram_exp.commands.arguments import add_only, add_sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp advise` takes."""
    parser.add_argument("folder", help="of campaigns; --model, --dtype and --ids choose among them")
    parser.add_argument("--model", default="demo", help="as the column calls it (default: demo)")
    add_sizes(parser)
    parser.add_argument("--dtype", help="where the data hold several")
    parser.add_argument("--ids", help="the kind of tokens, where the data hold several: text, random or ids")
    add_only(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    """Print the advice.

    Raises:
        AdviceError, FileNotFoundError, ValueError: as `advise` and `load_campaign`.
    """
    advice = advise(
        load_campaign(arguments.folder, arguments.only),
        arguments.model,
        decode=arguments.decode,
        prefill=arguments.prefill,
        device_memory_gb=arguments.device_memory_gb,
        dtype=arguments.dtype,
        ids=arguments.ids,
    )
    if arguments.json:
        print(json.dumps(asdict(advice), indent=1))
        return
    print("\n".join(lines_of(advice)))
