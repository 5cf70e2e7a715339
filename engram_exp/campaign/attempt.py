"""One run of a campaign: it leaves rows, whatever happens to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from engram_exp.campaign.earlier import folder_for
from engram_exp.campaign.nodes import OtherNodes
from engram_exp.campaign.process import Ending, interruption, measure_in_worker
from engram_exp.campaign.turn import Turn
from engram_exp.machine.environment import record, stamp
from engram_exp.results.load import DAMAGES, whole_run
from engram_exp.results.schema import RESULTS, SAMPLES
from engram_exp.results.write import SAMPLES_SO_FAR, write_run
from engram_exp.run.job import Job, fingerprint
from engram_exp.run.terminal import Terminal
from engram_exp.run.worker import code_kept
from engram_exp.vocabulary import CRASH


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


def attempt(run: Planned, turn: Turn, unwritten: list[dict[str, Any]], nodes: OtherNodes | None = None) -> set[str]:
    """Run what was planned; returns the statuses of its rows.

    Args:
        run: in its folder, or in one beside it where another run's results stand.
        turn: on this machine.
        unwritten: gets the rows that cannot be written: a full disk is no reason to forget what failed.
        nodes: the others of those that run it, if there are several.
    """
    folder = folder_for(run.folder, run.mark)
    job = Job.create(run.config, run.choices, folder, repeat=run.repeat, fingerprint=run.mark, overrides=run.overrides)
    try:
        _prepare(job)
        if run.config.worker == "inline":
            logging.getLogger("engram_exp").setLevel(logging.WARNING)  # there is no run.log for the rest
            with code_kept(job):
                from engram_exp.run.experiment import run as run_inline

                run_inline(job, Terminal())
            ending = Ending(CRASH, "the run left no results")
        else:
            ending = nodes.measure(job, turn) if nodes and run.config.nodes > 1 else measure_in_worker(job, turn)
    except Exception as error:
        ending = Ending(CRASH, repr(error))
    except BaseException as stopped:  # Ctrl-C, or the end of a job's time
        _require_rows(job, interruption(stopped), unwritten)
        raise
    return _require_rows(job, ending, unwritten)


def _prepare(job: Job) -> None:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (RESULTS, SAMPLES, SAMPLES_SO_FAR):  # of an earlier run in the same folder
        (folder / left_over).unlink(missing_ok=True)
    job.save()


def _require_rows(job: Job, ending: Ending, unwritten: list[dict[str, Any]]) -> set[str]:
    """Write the rows of a run that did not live to write them; the samples that it had taken stay."""
    folder = Path(job.folder)
    written = _statuses_of(job)
    if written:
        return written
    is_gone = not folder.is_dir()
    error = f"{ending.error}; its folder was deleted meanwhile" if is_gone else ending.error
    rows = [{**stamp(), **row} for row in job.failed_rows(ending.status, error)]
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


def _statuses_of(job: Job) -> set[str]:
    """Of this run; what an earlier one left in the folder and nobody can remove does not count."""
    try:
        return {row["status"] for row in whole_run(Path(job.folder)) if row["run_id"] == job.run_id}
    except DAMAGES:
        return set()
