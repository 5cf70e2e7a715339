"""Which strategy for decoding and for prefill, within a budget of device memory, and what it costs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict

from engram_exp.analysis.advice_in_words import lines_of_all
from engram_exp.analysis.answers import advise_all
from engram_exp.analysis.subjects import load_campaign
from engram_exp.commands.arguments import add_only, add_sizes, at_least
from engram_exp.config import decoders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp advise` takes."""
    parser.add_argument("folder", help="of campaigns; each kind of runs in it is answered for")
    parser.add_argument("--model", help="as the column calls it (default: all of them)")
    add_sizes(parser)
    text = "of host memory, for tables (default: no limit); what does not fit there may lie on a disk"
    parser.add_argument("--host-memory-gb", type=at_least(0, float), default=math.inf, metavar="GB", help=text)
    parser.add_argument("--dtype", help="as the column calls it (default: all of them)")
    parser.add_argument("--ids", help="the kind of tokens: text, random or ids (default: all of them)")
    add_only(parser)
    text = "for programs: an object where one kind of runs is answered for, a list of them where several are"
    parser.add_argument("--json", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Print the advice.

    Raises:
        AdviceError, FileNotFoundError, ValueError: as `advise_all` and `load_campaign`.
    """
    answers = advise_all(
        load_campaign(arguments.folder, arguments.only),
        decode=arguments.decode,
        prefill=arguments.prefill,
        device_memory_gb=arguments.device_memory_gb,
        host_memory_gb=arguments.host_memory_gb,
        model=arguments.model,
        dtype=arguments.dtype,
        ids=arguments.ids,
        files=decoders,
    )
    if not arguments.json:
        print("\n".join(lines_of_all(answers)))
        return
    for one in answers:
        if one.advice is None:
            print(f"{one.subject.label}: no advice: {one.why_none}", file=sys.stderr)
    found = [asdict(one.advice) for one in answers if one.advice]
    print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
