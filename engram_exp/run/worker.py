"""The fresh process that one run lives in: `python -m engram_exp.run.worker FOLDER` runs the job saved there."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from engram_exp.config.derived import threads_of
from engram_exp.machine.environment import code_cache
from engram_exp.results.schema import SUCCESSES
from engram_exp.run.job import Job

LOG = "run.log"

log = logging.getLogger(__name__)


def variables(job: Job) -> dict[str, str]:
    """The environment variables of a worker. Libraries read them when they are imported."""
    hardware, threads = job.config.hardware, str(threads_of(job.config))
    chosen = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "NUMBA_CACHE_DIR": str(code_cache(job.config.cache_dir).absolute() / "numba"),
        "TOKENIZERS_PARALLELISM": "true",
    }
    if hardware.pin_threads:
        chosen |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return chosen


def main(folder: Path) -> int:
    """Run the job of a folder; 0 if all of its rows are good."""
    job = Job.load(folder)
    os.environ.update(variables(job))
    if job.config.hardware.affinity:
        os.sched_setaffinity(0, job.config.hardware.affinity)
    file, screen = logging.FileHandler(folder / LOG), logging.StreamHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    screen.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[file, screen])

    log.info("the worker starts")
    from engram_exp.run.experiment import run  # PyTorch starts its threads on import: behind the affinity
    from engram_exp.run.terminal import Terminal

    log.info("libraries are imported")
    rows = run(job, Terminal())
    return 0 if all(row["status"] in SUCCESSES for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
