"""The process that the user started: it hands every composed configuration to a worker and gathers what comes back."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from engram_exp.job import Job
from engram_exp.measure.environment import PROJECT, record, stamp
from engram_exp.results import (
    CRASH,
    REFUSED,
    RESULTS,
    SAMPLES,
    SUCCESSES,
    TIMEOUT,
    write_environment,
    write_results,
    write_sweep,
)  # fmt: skip
from engram_exp.terminal import Terminal

EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 0, 1, 2, 130


class Campaign:
    """All runs of one call of the program. No run that fails keeps the next one from running."""

    def __init__(self) -> None:
        self.statuses: set[str] = set()
        self.sweep_folder: Path | None = None

    def run(self, config: DictConfig) -> None:
        """Run one configuration that Hydra composed."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            self.sweep_folder = Path(hydra.sweep.dir)
        job = Job.create(config, hydra.runtime.choices, Path(hydra.runtime.output_dir))
        for left_over in (RESULTS, SAMPLES):  # of an earlier run in the same folder
            (Path(job.folder) / left_over).unlink(missing_ok=True)
        job.save()
        try:
            if config.worker == "inline":
                from engram_exp.experiment import run

                run(job, Terminal())
            else:
                self._run_in_process(job)
        except KeyboardInterrupt:
            self._require_results(job, CRASH, "interrupted by Ctrl-C")
            raise
        with (Path(job.folder) / RESULTS).open(encoding="utf-8", newline="") as file:
            self.statuses.update(row["status"] for row in csv.DictReader(file))

    def finish(self) -> int:
        """Close a sweep with its `sweep.csv` and summary; returns the exit code of the program."""
        if self.sweep_folder is not None:
            terminal = Terminal()
            terminal.summary(write_sweep(self.sweep_folder))
            terminal.say(f"{self.sweep_folder}/sweep.csv")
        if self.statuses.issubset(SUCCESSES):
            return EXIT_OK
        return EXIT_REFUSED if self.statuses == {REFUSED} else EXIT_FAILED

    def _run_in_process(self, job: Job) -> None:
        command = [sys.executable, "-m", "engram_exp.worker", job.folder]
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path}
        # In a process group of its own, so that Ctrl-C reaches this process alone, which then ends the whole group.
        worker = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = worker.wait(timeout=job.config.timeout_s)
            self._require_results(job, CRASH, _describe_exit(code))
        except subprocess.TimeoutExpired:
            _kill(worker)
            self._require_results(job, TIMEOUT, f"killed after timeout_s={job.config.timeout_s:g}")
        except KeyboardInterrupt:
            _kill(worker)
            raise

    def _require_results(self, job: Job, status: str, error: str) -> None:
        """Write the rows of a worker that did not live to write them."""
        if not (Path(job.folder) / RESULTS).exists():
            rows = [{**stamp(), **row} for row in job.failed_rows(status, error)]
            write_environment(Path(job.folder), record())
            write_results(Path(job.folder), rows)
            Terminal().results(rows)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it may have ended just now
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _describe_exit(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker exited with code {code} and left no results"
