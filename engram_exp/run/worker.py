"""The fresh process that a run lives in: `python -m engram_exp.run.worker FOLDER...` runs the jobs saved there."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from omegaconf import DictConfig

from engram_exp.config.derived import ranks_per_node, threads_of, usable_cpus
from engram_exp.errors import ConfigError
from engram_exp.machine import numa
from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.environment import code_cache
from engram_exp.machine.files import kept_from_children
from engram_exp.machine.rendezvous import Node
from engram_exp.run.compiled import compiled_code
from engram_exp.run.job import Job

LOG = "run.log"
NUMBA_CACHE = "NUMBA_CACHE_DIR"
EXIT_UNWRITTEN = os.EX_CANTCREAT

log = logging.getLogger(__name__)


def variables(job: Job) -> dict[str, str]:
    """The environment variables of a worker. Libraries read them when they are imported."""
    hardware, threads = job.config.hardware, str(threads_of(job.config))
    chosen = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        NUMBA_CACHE: str(code_cache(job.config.cache_dir).absolute() / f"numba{Node.of_worker().number or ''}"),
        "TOKENIZERS_PARALLELISM": "true",
    }
    if hardware.pin_threads:
        chosen |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return chosen


def main(folders: Sequence[Path], turn: int | None = None) -> int:
    """Run the jobs of some folders, which agree in all that a process keeps for its life, until one fails; 0 if all
    rows are good.

    Args:
        folders: of the jobs, and of the files that the runs leave.
        turn: descriptor of the lock that lasts as long as this process, but not as long as what it starts.
    """
    jobs = [Job.load(folder) for folder in folders]
    first, refused = jobs[0], None
    if first.config.ranks == 1:
        try:
            bind_to_node(first.config)
        except ConfigError as error:  # also where the machine that asked has such a node, and this one has not
            refused = error
    prepare(first)
    first.config.hardware.threads = threads_of(first.config)  # before a library ties this thread to one of its CPUs
    log_to(folders[0], rank=Node.of_worker().number * ranks_per_node(first.config))
    with kept_from_children(turn) if turn is not None else nullcontext(), code_kept(first):
        log.info("the worker starts")
        if refused or first.config.ranks > 1:
            from engram_exp.run.launch import launch, refuse

            return refuse(first, refused) if refused else launch(jobs)
        meter = LoadMeter()
        from engram_exp.run.in_turn import run_in_turn  # PyTorch starts its threads on import: behind the affinity
        from engram_exp.run.terminal import Terminal

        log.info("libraries are imported")
        return run_in_turn(jobs, Terminal(), meter)


def bind_to_node(config: DictConfig, local_rank: int = 0, local_size: int = 1) -> None:
    """Give this process its share of the CPUs of the node that `hardware.numa` names, and its memory, if it names one;
    the configuration then says so.

    Args:
        config: of the run.
        local_rank, local_size: which process of this host, of how many.

    Raises:
        ConfigError: as `machine.numa` does.
    """
    hardware = config.hardware
    if hardware.numa is None:
        return
    nodes = numa.nodes_of(hardware.numa, local_size)
    node = nodes[local_rank]
    beside = [rank for rank in range(local_size) if nodes[rank] == node]
    cpus = numa.cpus_of(node, hardware.affinity or os.sched_getaffinity(0))
    hardware.affinity = list(share_of(cpus, beside.index(local_rank), len(beside)))
    hardware.threads = hardware.threads or usable_cpus(hardware.affinity, local_size)
    numa.bind_memory(node)


def share_of(cpus: Sequence[int], number: int, of: int) -> Sequence[int]:
    """The CPUs of one of several processes: as many as of the others, beside each other; all, of too few."""
    each = len(cpus) // of
    return cpus[number * each : (number + 1) * each] or cpus


def prepare(job: Job) -> None:
    """Set what libraries read when they are imported, but for where numba keeps its code (`code_kept`), and the CPUs
    that they find."""
    os.environ.update({name: text for name, text in variables(job).items() if name != NUMBA_CACHE})
    if job.config.hardware.affinity:
        os.sched_setaffinity(0, job.config.hardware.affinity)


@contextmanager
def code_kept(job: Job) -> Iterator[None]:
    """Let numba, which must not have been imported yet, keep its code where it is checked, read and written."""
    with compiled_code(Path(variables(job)[NUMBA_CACHE])) as folder:
        os.environ[NUMBA_CACHE] = str(folder)
        yield


def log_to(folder: Path, rank: int = 0) -> None:
    """Log to the screen, and from now on to a file of the run in this folder; that of a rank but the first has its
    number in its name."""
    screen = logging.StreamHandler()
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    screen.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[screen], force=True)
    try:
        name = f"run.{rank}.log" if rank else LOG
        file = logging.FileHandler(folder / name)
    except OSError as error:  # a full disk
        log.warning("there will be no %s: %s", name, error)
        return
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(file)


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--turn", type=int)
    parser.add_argument("folders", type=Path, nargs="+")
    asked = parser.parse_args()
    sys.exit(main(asked.folders, asked.turn))
