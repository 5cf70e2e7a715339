"""A report of a campaign for a colleague: one HTML page that works offline, its figures as SVG, a Markdown summary."""

from __future__ import annotations

import argparse

from engram_exp.commands.arguments import add_only, add_sizes
from engram_exp.pages.report import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp report` takes."""
    parser.add_argument("folder", help="of campaigns")
    parser.add_argument("--output", required=True, metavar="DIR", help="gets index.html, summary.md and figures/")
    add_sizes(parser)
    add_only(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write a report and say where it is.

    Raises:
        ReportError, FileNotFoundError, ValueError: as `report`.
    """
    page = report(
        arguments.folder,
        arguments.output,
        decode=arguments.decode,
        prefill=arguments.prefill,
        device_memory_gb=arguments.device_memory_gb,
        only=arguments.only,
    )
    print(page)
