"""What campaigns say, and texts: `python -m engram_exp advise|compare|paper|report|reuse|summary ...`.

`run.py` measures.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from engram_exp.commands import advise, compare, paper, report, reuse, summary

COMMANDS = {
    "advise": (advise, "which strategy for decode and prefill, and what it costs"),
    "compare": (compare, "is B faster than A? two folders, or two values of a column"),
    "paper": (paper, "tokens/s of the paper's workload with a table and without, by the steps of experiment=paper"),
    "report": (report, "a page with figures, to be sent to a colleague"),
    "reuse": (reuse, "which rows a text asks for again: what a cache, or a larger step, would gain"),
    "summary": (summary, "a table of medians, as Markdown"),
}


def main() -> int:
    """Run one command: 0, or 2 where it refuses."""
    parser = argparse.ArgumentParser(prog="python -m engram_exp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
