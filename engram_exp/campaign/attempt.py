"""Runs of a campaign: each leaves rows, whatever happens to it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from engram_exp.campaign.earlier import folder_for
from engram_exp.campaign.nodes import OtherNodes
from engram_exp.campaign.process import NO_RESULTS, Ending, interruption, measure_in_worker
from engram_exp.campaign.turn import Turn
from engram_exp.machine.environment import record
from engram_exp.results.write import write_run
from engram_exp.run.fingerprint import fingerprint
from engram_exp.run.job import Job
from engram_exp.run.job_rows import failed_rows
from engram_exp.run.terminal import Terminal
from engram_exp.run.worker import code_kept
from engram_exp.vocabulary import CRASH, INLINE


@dataclass(frozen=True)
class Planned:
    """A run that is still to be done: what Hydra composed, where it goes, which repetition it is, and what the command
    line or the sweep set."""

    config: DictConfig
    choices: Mapping[str, str | None]
    folder: Path
    repeat: int
    overrides: Sequence[str]

    @cached_property
    def mark(self) -> str:
        """The fingerprint."""
        return fingerprint(self.config, self.choices, self.repeat)


def attempt(
    runs: Sequence[Planned], turn: Turn, unwritten: list[dict[str, Any]], nodes: OtherNodes | None = None
) -> set[str]:
    """Run what was planned, in one worker as long as none of it fails; returns the statuses of all rows.

    Args:
        runs: each in its folder, or in one beside it where another run's results stand.
        turn: on this machine.
        unwritten: gets the rows that cannot be written: a full disk is no reason to forget what failed.
        nodes: the others of those that run it, if there are several.
    """
    statuses: set[str] = set()
    left: deque[Job] = deque()
    for run in runs:
        job = _job_of(run)
        try:
            Path(job.folder).mkdir(parents=True, exist_ok=True)
            job.save()
            left.append(job)
        except Exception as error:
            statuses |= _require_rows(job, Ending(CRASH, repr(error)), unwritten)
    measured = _measured_inline if runs[0].config.worker == INLINE else measure_in_worker
    if nodes and runs[0].config.nodes > 1:
        measured = nodes.measure
    while left:
        try:
            left[0] = left[0].begun()
            with closing(measured(tuple(left), turn)) as endings:
                for ending in endings:
                    statuses |= _require_rows(left[0], ending, unwritten)
                    left.popleft()
        except Exception as error:
            statuses |= _require_rows(left.popleft(), Ending(CRASH, repr(error)), unwritten)
        except BaseException as stopped:  # Ctrl-C, or the end of a job's time
            if left:
                _require_rows(left.popleft(), interruption(stopped), unwritten)
            raise
    return statuses


def _job_of(run: Planned) -> Job:
    folder = folder_for(run.folder, run.mark)
    return Job.create(run.config, run.choices, folder, repeat=run.repeat, fingerprint=run.mark, overrides=run.overrides)


def _measured_inline(jobs: Sequence[Job], turn: Turn) -> Generator[Ending, None, None]:
    """Run the first of some jobs in this process."""
    logging.getLogger("engram_exp").setLevel(logging.WARNING)  # there is no run.log for the rest
    with code_kept(jobs[0]):
        from engram_exp.run.experiment import run

        run(jobs[0], Terminal())
    yield Ending(CRASH, NO_RESULTS)


def _require_rows(job: Job, ending: Ending, unwritten: list[dict[str, Any]]) -> set[str]:
    """Write the rows of a run that did not live to write them; the samples that it had taken stay."""
    written = job.statuses()
    if written:
        return written
    job, folder = job.as_begun(), Path(job.folder)
    is_gone = not folder.is_dir()
    error = f"{ending.error}; its folder was deleted meanwhile" if is_gone else ending.error
    rows = failed_rows(job, ending.status, error)
    try:
        if is_gone:
            folder.mkdir(parents=True)
            job.save()
        write_run(folder, {"command": job.command, **record()}, rows)
    except OSError as reason:
        Terminal().say(f"the rows of {folder} cannot be written: {reason}")
        reasons = dict.fromkeys((error, str(reason.strerror)))
        rows = [{**row, "error": "; ".join(reasons)} for row in rows]
        unwritten += rows
    Terminal().results(rows)
    return {ending.status}
