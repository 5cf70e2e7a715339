"""What several commands take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(least: int, kind: type[int] | type[float]) -> Callable[[str], float]:
    """How argparse reads a number: finite, and not below the least; anything else is refused."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {what} of at least {least}, not {text!r}")
        return value

    return parse


def share(text: str) -> float:
    """How argparse reads a share: from 0 on, and below 1."""
    value = at_least(0, float)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be a share below 1 (0.02 is 2 %), not {text!r}")
    return value


def add_only(parser: argparse.ArgumentParser) -> None:
    """Which rows a command is about."""
    text = "keep the rows that have this value there; several times: one value of each column named"
    parser.add_argument("--only", action="append", default=[], metavar="COLUMN=VALUE", help=text)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """What advice is asked for."""
    parser.add_argument(
        "--decode", type=at_least(1, int), default=64, metavar="TOKENS", help="tokens per decode step (default: 64)"
    )
    parser.add_argument(
        "--prefill", type=at_least(1, int), default=8192, metavar="TOKENS", help="of a prefill step (default: 8192)"
    )
    parser.add_argument(
        "--device-memory-gb", type=at_least(0, float), default=0.0, metavar="GB", help="for tables (default: 0)"
    )
