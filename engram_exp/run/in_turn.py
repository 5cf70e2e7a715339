"""Several runs in one process, one behind the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.ranks import ALONE, FIRST, Ranks
from engram_exp.results.schema import SUCCESSES
from engram_exp.run.experiment import run
from engram_exp.run.job import Job
from engram_exp.run.kept_tables import KeptTables
from engram_exp.run.terminal import Terminal
from engram_exp.run.worker import EXIT_UNWRITTEN, log_to

log = logging.getLogger(__name__)


def run_in_turn(jobs: Sequence[Job], terminal: Terminal, meter: LoadMeter, ranks: Ranks = ALONE) -> int:
    """Run jobs until one fails: what it leaves of this process is no place to measure in. Tables that one run leaves
    and the next one needs are filled once.

    Args:
        jobs: that agree in what is true of the process.
        terminal: where to show them.
        meter: of the load before the first of them.
        ranks: of all of them.

    Returns:
        0 if all rows are good.
    """
    tables = KeptTables()
    for number, job in enumerate(jobs):
        job.config.hardware = jobs[0].config.hardware  # as this process was told to take it
        if len(jobs) > 1:
            terminal.say(f"\nrun {number + 1} of {len(jobs)} in this process")
        if number:
            log_to(Path(job.folder), ranks.rank)
        try:
            begun = job.begun() if ranks.rank == FIRST else job
            rows = run(begun, terminal, None if number else meter, ranks, tables)
        except OSError as error:  # of writing: whatever else fails is a row
            log.error("%s: the results cannot be written: %s", job.folder, error)
            return EXIT_UNWRITTEN
        statuses = {row["status"] for row in rows}
        if not ranks.from_first(partial(statuses.issubset, SUCCESSES)):
            return 1
    return 0
