"""Starting the ranks of a run with torch's own launcher, and saying which of them ended it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from engram_exp.config.derived import ranks_per_node
from engram_exp.errors import ConfigError, text_of
from engram_exp.machine.environment import record
from engram_exp.machine.files import write_text
from engram_exp.machine.rendezvous import Node
from engram_exp.results.write import write_run
from engram_exp.run.job import Job, under_way
from engram_exp.run.job_rows import failed_rows
from engram_exp.run.rank import LAUNCHER, end_with_launcher
from engram_exp.run.terminal import Terminal
from engram_exp.run.worker import EXIT_UNWRITTEN
from engram_exp.vocabulary import CRASH

SHUTDOWN_S = 2  # from asking ranks to end until they are killed; behind a failure torch takes 30
FAREWELL_S = 1  # in which the launchers of other nodes read in the first one's store that all have ended
ELASTIC_LOG = "torch.distributed.elastic"


def launch(jobs: Sequence[Job]) -> int:
    """Run jobs, one behind the other, as so many ranks of this host as they ask for; 0 if all got through.

    Where one of them dies, hangs or raises, the others are killed, and the rows of the job that was under way name it.
    Of several nodes, the first writes them, and the others leave in the job's folder what ended them.
    """
    job, node = jobs[0], Node.of_worker()
    if node.endpoint:  # whoever hears the other nodes has started this process
        end_with_launcher()
    logging.getLogger(ELASTIC_LOG).setLevel(logging.CRITICAL)  # it tells what the rows will
    os.environ |= {LAUNCHER: str(os.getpid()), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S)}
    ended: tuple[str, str] | None = None
    try:
        check_device_count(job)
        with TemporaryDirectory(prefix="engram_exp-ranks-") as folder:
            elastic_launch(_config(job, folder, node), sys.executable)(
                "-m", "engram_exp.run.rank", *(each.folder for each in jobs)
            )
        if node.endpoint and not node.number:
            time.sleep(FAREWELL_S)
    except ConfigError as error:
        ended = error.status, text_of(error, job.choices)
    except ChildFailedError as failed:
        rank, failure = _cause(failed.failures)
        if failure.exitcode == EXIT_UNWRITTEN:
            return EXIT_UNWRITTEN
        ended = in_words(rank, failure)
    if node.number:
        write_text(node.ending_file(Path(job.folder)), json.dumps(ended))
    elif ended:
        job = under_way(jobs).as_begun()
        return _write(job, failed_rows(job, *ended))
    return 0


def refuse(job: Job, error: ConfigError) -> int:
    """Leave the rows of a run that was refused before it began; the exit code."""
    return _write(job, failed_rows(job, error.status, text_of(error, job.choices)))


def check_device_count(job: Job) -> None:
    """Refuse more ranks than PyTorch finds GPUs here, unless the CPU stands in for them.

    Raises:
        ConfigError: saying how many there are.
    """
    config, found = job.config, torch.accelerator.device_count()
    if config.hardware.device != "cpu" and ranks_per_node(config) > found:
        remedy = f"each is a GPU of its own, and PyTorch finds {found}; hardware=cpu would stand in for them"
        raise ConfigError("ranks", config.ranks, remedy)


def _config(job: Job, folder: str, node: Node) -> LaunchConfig:
    """Ranks follow each other node by node, in the order of these: the first rank of all is the first node's."""
    config = job.config
    return LaunchConfig(
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        nproc_per_node=ranks_per_node(config),
        run_id=job.run_id,
        rdzv_backend="static" if node.endpoint else "c10d",
        rdzv_endpoint=node.endpoint or "localhost:0",
        rdzv_configs={"rank": node.number, "timeout": math.ceil(config.rank_timeout_s)},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


def _cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Which rank ended the others: one that says why, else one that the launcher did not ask to end, else the first."""
    told = [rank for rank, each in failures.items() if _told(each)]
    died = [rank for rank, each in failures.items() if each.exitcode != -signal.SIGTERM]
    rank = next(iter([*told, *died, *failures]))
    return rank, failures[rank]


def in_words(rank: int, failure: ProcessFailure) -> tuple[str, str]:
    """The status and the text of a run that a rank has ended."""
    told = _told(failure)
    if told:
        text = told["text"]
        return told["status"], text if told["of_run"] else f"rank {rank}: {text}"
    if failure.exitcode < 0:
        return CRASH, f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return CRASH, f"rank {rank} exited with code {failure.exitcode}"


def _told(failure: ProcessFailure) -> dict[str, Any]:
    """What a rank has left behind of why it ended; nothing if it did not come to that."""
    message = failure.error_file_data.get("message")
    return dict(json.loads(message["message"])) if isinstance(message, dict) else {}


def _write(job: Job, rows: list[dict[str, Any]]) -> int:
    """Write the rows of a run that gave none; those that it did not live to see are not written over."""
    if job.statuses():
        return 1
    try:
        write_run(Path(job.folder), {"command": job.command, **record()}, rows)
    except OSError as error:
        logging.getLogger(__name__).error("%s: the results cannot be written: %s", job.folder, error)
        return EXIT_UNWRITTEN
    Terminal().results(rows)
    return 1
