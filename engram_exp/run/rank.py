"""The process of one rank: torch's launcher starts `python -m engram_exp.run.rank FOLDER...` once for each."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engram_exp.config.derived import threads_of
from engram_exp.errors import ConfigError, LostRank, status_of, text_of
from engram_exp.machine.disturbance import LoadMeter
from engram_exp.run.job import Job, under_way
from engram_exp.run.worker import EXIT_UNWRITTEN, bind_to_node, log_to, prepare, share_of

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where the launcher looks for what ended a rank
LAUNCHER = "ENGRAM_EXP_LAUNCHER"  # its process
PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger(__name__)


def main(folders: Sequence[Path]) -> int:
    """Be one rank of the jobs of some folders; 0 if it got through, whatever its rows say."""
    end_with_launcher()
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    jobs = [Job.load(folder) for folder in folders]
    job = jobs[0]
    try:
        bind_to_node(job.config, local_rank, local_size)
    except ConfigError as error:
        _tell(error, job)
        return 1
    prepare(job)
    hardware = job.config.hardware
    if hardware.numa is None:
        hardware.threads = threads_of(job.config)  # of what all ranks may use; now this one gets its share
        cpus = share_of(sorted(os.sched_getaffinity(0)), local_rank, local_size)
        os.sched_setaffinity(0, cpus)
        hardware.affinity = list(cpus) if hardware.affinity else None
    log_to(folders[0], rank=int(os.environ["RANK"]))
    meter = LoadMeter()
    from engram_exp.config.options import resolve_device  # PyTorch starts its threads on import: behind the affinity

    try:
        import torch

        from engram_exp.machine.ranks import FIRST, Ranks
        from engram_exp.run.in_turn import run_in_turn
        from engram_exp.run.terminal import Terminal

        device = resolve_device(job.config.hardware.device)
        if device.type != "cpu":
            torch.accelerator.set_device_index(local_rank)
            device = torch.device(device.type, local_rank)
        ranks = Ranks.join(device, job.config.rank_timeout_s, job.config.timeout_s)
        code = run_in_turn(jobs, Terminal(quiet=ranks.rank != FIRST), meter, ranks)
        if code == EXIT_UNWRITTEN:
            return code
        ranks.leave()
    except (Exception, LostRank) as error:
        log.exception("the rank ends")
        _tell(error, under_way(jobs))
        return 1
    return 0


def end_with_launcher() -> None:
    """Let the kernel kill this process when its launcher ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(LAUNCHER) not in (None, str(os.getppid())):  # it has ended meanwhile
        os.kill(os.getpid(), signal.SIGKILL)


def end(error: BaseException, job: Job) -> None:
    """End this process, whatever its other threads are in, and leave why."""
    log.error("the rank ends: %s", error)
    _tell(error, job)
    logging.shutdown()
    os._exit(1)


def _tell(error: BaseException, job: Job) -> None:
    """Leave what ended this rank where the launcher looks for it, as torch's own handler would."""
    told = {
        "status": status_of(error),
        "text": text_of(error, job.choices),
        "of_run": isinstance(error, LostRank),
    }
    message = {"message": json.dumps(told), "extraInfo": {"timestamp": int(time.time())}}
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": message}))


if __name__ == "__main__":
    code = main([Path(folder) for folder in sys.argv[1:]])
    logging.shutdown()
    with suppress(OSError):  # whoever listened has gone
        sys.stdout.flush()
    os._exit(code)  # an exchange that broke keeps threads of its library waiting for ever
