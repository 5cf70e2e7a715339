"""Several runs in one process, one behind the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.ranks import ALONE, FIRST, Ranks
from engram_exp.results.schema import HARMLESS, SUCCESSES
from engram_exp.run.experiment import Before, run
from engram_exp.run.job import Job
from engram_exp.run.kept_tables import KeptTables
from engram_exp.run.terminal import Terminal
from engram_exp.run.worker import EXIT_UNWRITTEN, log_to

log = logging.getLogger(__name__)


def run_in_turn(jobs: Sequence[Job], terminal: Terminal, meter: LoadMeter, ranks: Ranks = ALONE) -> int:
    """Run jobs until one fails in a way that may have harmed this process. Tables that one run leaves and the next one
    needs are filled once.

    Args:
        jobs: that agree in what is true of the process; the first has begun.
        terminal: where to show them.
        meter: of the load before the first of them.
        ranks: of all of them.

    Returns:
        0 if all rows are good.
    """
    hardware, tables, found = jobs[0].config.hardware, KeptTables(), set[str]()
    for number, job in enumerate(jobs):
        if len(jobs) > 1:
            terminal.say(f"\nrun {number + 1} of {len(jobs)} in this process")
        try:
            if number:
                log_to(Path(job.folder), ranks.rank)
                job = job.begun() if ranks.rank == FIRST else job
                job.config.hardware = hardware  # as this process was told to take it
                meter = LoadMeter(meter.cpus)
            rows = run(job, terminal, meter, ranks, Before(number, tables))
        except OSError as error:  # of writing: whatever else fails is a row
            log.error("%s: the results cannot be written: %s", job.folder, error)
            return EXIT_UNWRITTEN
        statuses: set[str] = ranks.from_first({row["status"] for row in rows}.copy)
        found |= statuses
        if not statuses.issubset(HARMLESS):
            break
    return 0 if found.issubset(SUCCESSES) else 1
