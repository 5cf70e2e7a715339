"""The process that the user started: it hands every composed configuration to a worker and gathers what comes back."""

from __future__ import annotations

import glob
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from engram_exp.campaign.preflight import EXIT_REFUSED, Preflight
from engram_exp.campaign.process import describe_exit, kill, turn, wait
from engram_exp.config.derived import cases_of
from engram_exp.machine.environment import PROJECT, record, stamp
from engram_exp.results.schema import RESULTS, SAMPLES, SUCCESSES
from engram_exp.results.write import write_run, write_sweep
from engram_exp.run.job import Job, earlier_runs, fingerprint, fingerprint_in, statuses_of
from engram_exp.run.terminal import Terminal
from engram_exp.vocabulary import CRASH, REFUSED, TIMEOUT

STARTUP_S = 10  # of a worker: libraries, driver, table, verification
EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


class Planned(NamedTuple):
    """A run that is still to be done: what Hydra composed, where it goes, which repetition it is, and what
    the command line or the sweep set."""

    config: DictConfig
    choices: Mapping[str, str | None]
    folder: Path
    repeat: int
    overrides: Sequence[str]


class Campaign:
    """All runs of one call of the program: Hydra composes them, and then they run, one after the other, each in a
    process of its own. No run that fails keeps the next one from running.

    A launcher of Hydra may copy the campaign to other processes, which take one configuration each and run it at once.
    """

    def __init__(self) -> None:
        self.was_copied = False
        self.planned: list[Planned] = []
        self.statuses: set[str] = set()
        self.root: Path | None = None
        self.is_sweep = False

    def take(self, config: DictConfig) -> None:
        """Take one configuration that Hydra composed."""
        hydra = HydraConfig.get()
        self.is_sweep = hydra.mode == RunMode.MULTIRUN
        self.root = Path(hydra.sweep.dir if self.is_sweep else hydra.runtime.output_dir)
        folder = Path(hydra.runtime.output_dir)
        for repeat in range(config.repeats):
            place = folder / str(repeat) if config.repeats > 1 else folder
            self.planned.append(Planned(config, dict(hydra.runtime.choices), place, repeat, _overrides(hydra)))
        if self.was_copied:
            self.run()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy in another process."""
        self.__dict__.update(state, was_copied=True)

    @property
    def launched_into(self) -> Path | None:
        """The folder of a sweep whose runs a launcher took to other processes; None if this one runs them."""
        return Preflight.sweep_dir if self.root is None else None

    def run(self) -> None:
        """Run what was planned, unless it is done already: in the order of the sweep, or shuffled where runs repeat, so
        that drift favours nobody."""
        todo, self.planned = self.planned, []
        if not todo or self.root is None:
            return
        config = todo[0].config
        if config.repeats > 1:
            random.Random(config.seed).shuffle(todo)
        known = earlier_runs(*_folders_of(self.root, self.is_sweep))
        wanted = [run for run in todo if self._is_wanted(run, known)]
        terminal = Terminal()
        if len(todo) > 1 or not wanted:
            terminal.say(_plan(todo, wanted))
        others = set(known) - {fingerprint(run.config, run.choices, run.repeat) for run in todo}
        if others and not self.was_copied:  # a copy knows none of the sweep's other configurations
            terminal.say(f"{self.root} also holds runs of other settings, code or machines: {len(others)}")
        began = time.monotonic()
        for number, run in enumerate(wanted):
            if len(wanted) > 1:
                left_s = (time.monotonic() - began) / number * (len(wanted) - number) if number else None
                left = f", about {_duration(left_s)} left" if left_s is not None else ""
                terminal.say(f"\nrun {number + 1} of {len(wanted)}{left}")
            self._run(run)

    def finish(self) -> int:
        """Close a sweep with its `sweep.csv` and summary; returns the exit code of the program."""
        if self.launched_into:
            self.root, self.is_sweep = self.launched_into, True
            found = list(self.root.rglob(RESULTS))
            new = [statuses_of(file.parent) for file in found if file.stat().st_mtime >= Preflight.began]
            self.statuses = set().union(*new) if found else {CRASH}
        if self.is_sweep and self.root is not None:
            terminal = Terminal()
            terminal.summary(write_sweep(self.root))
            terminal.say(f"{self.root}/sweep.csv")
        if self.statuses.issubset(SUCCESSES):
            return EXIT_OK
        return EXIT_REFUSED if self.statuses == {REFUSED} else EXIT_FAILED

    def _is_wanted(self, run: Planned, known: Mapping[str, set[str]]) -> bool:
        statuses = known.get(fingerprint(run.config, run.choices, run.repeat))
        good = statuses is not None and statuses.issubset(SUCCESSES)
        if run.config.retry == "failed":
            return statuses is not None and not good
        if not (run.config.resume and good):
            return True
        self.statuses |= statuses or set()
        return False

    def _run(self, run: Planned) -> None:
        with turn() as held:
            self._run_alone(run, held)

    def _run_alone(self, run: Planned, turn: IO[str]) -> None:
        config = run.config
        mark = fingerprint(config, run.choices, run.repeat)
        job = Job.create(
            config,
            run.choices,
            _folder_for(run.folder, mark),
            repeat=run.repeat,
            fingerprint=mark,
            overrides=run.overrides,
        )
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        for left_over in (RESULTS, SAMPLES):  # of an earlier run in the same folder
            (Path(job.folder) / left_over).unlink(missing_ok=True)
        job.save()
        try:
            if config.worker == "inline":
                from engram_exp.run.experiment import run as run_inline

                run_inline(job, Terminal())
            else:
                self._run_in_process(job, turn)
        except Exception as error:
            self._require_results(job, CRASH, repr(error))
        except BaseException as stopped:  # Ctrl-C, or the end of a job's time
            by_hand = isinstance(stopped, KeyboardInterrupt)
            self._require_results(job, CRASH, "interrupted by Ctrl-C" if by_hand else f"interrupted: {stopped!r}")
            raise
        self.statuses |= statuses_of(Path(job.folder))

    def _run_in_process(self, job: Job, turn: IO[str]) -> None:
        command = [sys.executable, "-m", "engram_exp.run.worker", job.folder]
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path}
        # In a process group of its own, so that Ctrl-C reaches this process alone, which then ends the whole group. It
        # holds the turn, too: should this process be killed, the next one still waits for the worker.
        worker = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[turn.fileno()]
        )
        try:
            code = wait(worker, job.config.timeout_s)
            self._require_results(job, CRASH, describe_exit(code))
        except subprocess.TimeoutExpired:
            kill(worker)
            self._require_results(job, TIMEOUT, f"killed after timeout_s={job.config.timeout_s:g}")
        except BaseException:
            kill(worker)
            raise

    def _require_results(self, job: Job, status: str, error: str) -> None:
        """Write the rows of a worker that did not live to write them."""
        if not (Path(job.folder) / RESULTS).exists():
            rows = [{**stamp(), **row} for row in job.failed_rows(status, error)]
            write_run(Path(job.folder), {"command": job.command, **record()}, rows)
            Terminal().results(rows)


def _folders_of(root: Path, is_sweep: bool) -> list[Path]:
    """Where a campaign's earlier runs are: those of single runs may stand beside each other (`_folder_for`)."""
    beside = [] if is_sweep else root.parent.glob(f"{glob.escape(root.name)}-[0-9]*")
    return [root, *beside]


def _folder_for(folder: Path, mark: str) -> Path:
    """The folder, or one beside it where results of another configuration stand."""
    number, free = 1, folder
    while (free / RESULTS).exists() and fingerprint_in(free) != mark:
        number, free = number + 1, folder.with_name(f"{folder.name}-{number + 1}")
    return free


def _overrides(hydra: Any) -> tuple[str, ...]:
    """What makes the configuration again: what was set, and where Hydra found it."""
    found = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath")]
    return (*found, *hydra.overrides.task)


def _plan(todo: Sequence[Planned], wanted: Sequence[Planned]) -> str:
    repeats = todo[0].config.repeats
    text = f"{len(todo)} runs" + (f" ({repeats} of each configuration, shuffled)" if repeats > 1 else "")
    if len(wanted) < len(todo):
        others = "did not fail" if todo[0].config.retry == "failed" else "are in the folder"
        text += f", {len(wanted)} of them to be done: the others {others}"
    if not wanted:
        return text
    most_s = sum(STARTUP_S + len(cases_of(run.config)) * run.config.budget_s for run in wanted)
    return f"{text}: at most about {_duration(most_s)}"


def _duration(seconds: float) -> str:
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200)):
        if seconds < most:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
