"""The process that the user started: it hands every composed configuration to a worker and gathers what comes back."""

from __future__ import annotations

import glob
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from engram_exp.campaign.attempt import Planned, attempt
from engram_exp.campaign.earlier import earlier_runs, failed_before, others_in_words
from engram_exp.campaign.nodes import OtherNodes, meet
from engram_exp.campaign.preflight import EXIT_REFUSED, Preflight
from engram_exp.campaign.sharing import batches, in_order
from engram_exp.campaign.turn import last_turn, turn
from engram_exp.config.derived import cases_of
from engram_exp.results.load import statuses_of
from engram_exp.results.schema import RESULTS, SUCCESSES, SWEEP
from engram_exp.results.write import gather_sweep, write_sweep
from engram_exp.run.terminal import Terminal
from engram_exp.vocabulary import CRASH, OK, REFUSED

STARTUP_S = 10  # of a worker: libraries, driver, table, verification
PAGE = "report"  # a folder in that of the campaign
EXIT_OK, EXIT_FAILED, EXIT_NOTHING = 0, 1, 3


class Campaign:
    """All runs of one call of the program: Hydra composes them, and then they run, one after the other, each in a
    process of its own. No run that fails keeps the next one from running.

    A launcher of Hydra may copy the campaign to other processes, which take one configuration each and run it at once.
    """

    def __init__(self) -> None:
        self.was_copied = self.has_attended = False
        self.planned: list[Planned] = []
        self.values: dict[str, set[str]] = {}  # that keys were set to, of all configurations
        self.statuses: set[str] = set()
        self.unwritten: list[dict[str, Any]] = []
        self.known: Mapping[str, set[str]] = {}
        self.last_turn = ""
        self.nodes: OtherNodes | None = None
        self.root: Path | None = None
        self.is_sweep = self.reports = False

    def take(self, config: DictConfig) -> None:
        """Take one configuration that Hydra composed."""
        hydra = HydraConfig.get()
        self.is_sweep = hydra.mode == RunMode.MULTIRUN
        self.root = Path(hydra.sweep.dir if self.is_sweep else hydra.runtime.output_dir)
        for key, _, value in (text.lstrip("+").partition("=") for text in hydra.overrides.task):
            self.values.setdefault(key, set()).add(value)
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
        """Run what was planned, unless it is done already."""
        todo, self.planned = self.planned, []
        if not todo or self.root is None:
            return
        config = todo[0].config
        self.has_attended = True  # until it is known that this node is the first
        self.nodes = meet([run.config for run in todo])
        if self.nodes is None:
            return
        self.has_attended = False
        self.reports = config.report
        todo = in_order(todo)
        self._look_around()
        wanted = [run for run in todo if self._is_wanted(run)]
        terminal = Terminal()
        if len(todo) > 1 or not wanted:
            terminal.say(_plan(todo, wanted))
        others = others_in_words(self.known, {run.mark for run in todo})
        if others and not self.was_copied:  # a copy knows none of the sweep's other configurations
            terminal.say(f"{self.root} also holds runs of other {others}")
        if wanted:
            self.nodes.gather(config.rank_timeout_s)
        began, done = time.monotonic(), 0
        for runs in batches(wanted):
            if len(wanted) > 1:
                left_s = (time.monotonic() - began) / done * (len(wanted) - done) if done else None
                left = f", about {_duration(left_s)} left" if left_s is not None else ""
                which = f"run {done + 1}" if len(runs) == 1 else f"runs {done + 1} to {done + len(runs)}"
                together = ", in one process" if len(runs) > 1 else ""
                terminal.say(f"\n{which} of {len(wanted)}{together}{left}")
            self._run(runs)
            done += len(runs)
        self.nodes.part()

    def finish(self) -> int:
        """Close a sweep with its `sweep.csv` and summary; returns the exit code of the program."""
        if self.has_attended:
            return EXIT_OK
        if self.launched_into:
            self.root, self.is_sweep = self.launched_into, True
            self.statuses, self.reports = _launched_statuses(self.root), Preflight.reports
        if self.is_sweep and self.root is not None:
            self._close(self.root)
        if self.reports and self.root is not None:
            _report(self.root)
        if not self.statuses.issubset(SUCCESSES):
            return EXIT_REFUSED if self.statuses == {REFUSED} else EXIT_FAILED
        return EXIT_NOTHING if self.is_sweep and self.statuses and OK not in self.statuses else EXIT_OK

    def _close(self, root: Path) -> None:
        terminal = Terminal()
        try:
            frame, end = write_sweep(root, self.unwritten), f"{root}/{SWEEP}"
        except OSError as error:
            frame, end = gather_sweep(root, self.unwritten), f"{root}/{SWEEP} cannot be written: {error}"
            self.statuses.add(CRASH)
        terminal.summary(frame, [key for key, values in self.values.items() if len(values) > 1])
        terminal.say(end)

    def _look_around(self) -> None:
        """See what the campaign's folder holds, and who had the turn last."""
        self.last_turn = last_turn()
        if self.root is not None:
            self.known = earlier_runs(*_folders_of(self.root, self.is_sweep))

    def _is_wanted(self, run: Planned) -> bool:
        statuses = self.known.get(run.mark, set())
        if run.config.retry == "failed":
            return failed_before(self.known, run.mark)
        if not (run.config.resume and statuses and statuses.issubset(SUCCESSES)):
            return True
        self.statuses |= statuses
        return False

    def _run(self, runs: Sequence[Planned]) -> None:
        with turn() as held:
            if held.before != self.last_turn:  # of another call of the program: it may be one of the same campaign
                self._look_around()
            wanted = [run for run in runs if self._is_wanted(run)]  # that call may have had several turns by then
            if len(wanted) < len(runs):
                which = f"{len(runs) - len(wanted)} of them" if len(runs) > 1 else "it"
                Terminal().say(f"another call of the program has done {which} meanwhile")
            runs = wanted
            self.last_turn = held.own
            if runs:
                self.statuses |= attempt(runs, held, self.unwritten, self.nodes)


def _report(root: Path) -> None:
    """Write a page of all runs of a campaign, or say why there is none."""
    from engram_exp.pages.report import report

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are left out, which the page lists
            page = report(root, root / PAGE)
    except (ValueError, OSError) as error:
        Terminal().say(f"no page: {error}")
        return
    Terminal().say(str(page))


def _launched_statuses(root: Path) -> set[str]:
    """Statuses of what a launcher's processes left; of earlier runs, that they leave out, only what did not fail."""
    found = list(root.rglob(RESULTS))
    if not found:
        return {CRASH}
    new = [file for file in found if file.stat().st_mtime >= Preflight.began]
    statuses: set[str] = set().union(*(statuses_of(file.parent) or {CRASH} for file in new or found))
    return statuses if new else statuses.intersection(SUCCESSES)


def _folders_of(root: Path, is_sweep: bool) -> list[Path]:
    """Where a campaign's earlier runs are: those of single runs may stand beside each other (`folder_for`)."""
    beside = [] if is_sweep else root.parent.glob(f"{glob.escape(root.name)}-[0-9]*")
    return [root, *beside]


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
    usual_s = sum(STARTUP_S + len(cases_of(run.config)) * run.config.budget_s for run in wanted)
    return f"{text}: about {_duration(usual_s)}, more where tables are large or a call is slow"


def _duration(seconds: float) -> str:
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200)):
        if seconds < most:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
