"""One run: build, verify, time, verify again, and make rows. A failure is a row, not an exception."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engram_exp.config.checks import check_host_load
from engram_exp.errors import status_of
from engram_exp.machine import memory_group
from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.environment import record, stamp
from engram_exp.machine.memory import forget_peaks, free_device_bytes
from engram_exp.machine.placement import wake
from engram_exp.machine.ranks import ALONE, FIRST, Ranks
from engram_exp.measure.clock import Clock
from engram_exp.measure.host_load import host_load
from engram_exp.measure.link_load import LinkLoad, check_link, link_load
from engram_exp.measure.loop import Timing, measure
from engram_exp.measure.rates import Limit
from engram_exp.results.write import SampleFile, write_run
from engram_exp.run.again import distinct_among, reuse_columns
from engram_exp.run.bench import Bench
from engram_exp.run.card import make_card
from engram_exp.run.graph_calls import graph_calls_of
from engram_exp.run.job import Job
from engram_exp.run.job_rows import failed_rows, job_case_columns, job_columns
from engram_exp.run.kept_tables import KeptTables
from engram_exp.run.known_limits import known_limits
from engram_exp.run.on_disk import disk_tables, proven
from engram_exp.run.parts import Parts, tables_of
from engram_exp.run.plan import Plan
from engram_exp.run.rank_plan import free_here
from engram_exp.run.ranked import check_rank, clock_of, of_all_ranks, whole_table_bytes
from engram_exp.run.requirements import check_plan, check_time, require_accelerator
from engram_exp.run.rows import (
    case_columns,
    failed_columns,
    reading_columns,
    run_columns,
    sample_rows,
    skipped_columns,
)
from engram_exp.run.saved_tensors import save_tensors
from engram_exp.run.step_bench import StepBench
from engram_exp.run.terminal import Terminal
from engram_exp.run.verify import Verifier
from engram_exp.steps.lookup.in_front import keeps_recent
from engram_exp.strategy.costs import work
from engram_exp.strategy.footprint import check_fits
from engram_exp.vocabulary import CRASH, DEVICE, HOST, OK

log = logging.getLogger(__name__)

KIB = 1024


class Before(NamedTuple):
    """What a process has done before a run.

    runs: that it made.
    tables: that they have left.
    """

    runs: int = 0
    tables: KeptTables | None = None


def run(
    job: Job,
    terminal: Terminal,
    meter: LoadMeter | None = None,
    ranks: Ranks = ALONE,
    before: Before | None = None,
) -> list[dict[str, Any]]:
    """Run a job, leave its files in its folder, and return its rows: one per case. Of several ranks the first does so.

    Args:
        job: what to run.
        terminal: where to show it.
        meter: of the load before the run, if it was started earlier; None: this one waits for what it shows.
        ranks: of the run.
        before: what this process has done before; None: nothing.

    Raises:
        Exception: of one rank among several, whatever ends it: its launcher makes rows.
    """
    meter = meter or LoadMeter()
    load = meter.read()
    samples: list[dict[str, Any]] | None
    try:
        rows, samples = Experiment(job, terminal, meter.cpus, ranks, before).measured()
    except Exception as error:
        if ranks.size > 1:
            raise
        if status_of(error) == CRASH:
            log.exception("the run crashed")
        rows, samples = failed_rows(job, **failed_columns(error, job.choices)), None
    if ranks.rank != FIRST:
        return rows
    write_run(Path(job.folder), {"command": job.command, "load_before": load, **record()}, rows, samples)
    terminal.results(rows)
    return rows


class Experiment:
    """One run under way.

    Args:
        job: what to run.
        terminal: where to show it.
        cpus: that it may use, whichever of them a library has tied this thread to.
        ranks: of the run.
        before: what this process has done before; None: nothing.
    """

    link: LinkLoad | None = None  # what else went through the link while samples were taken

    def __init__(
        self,
        job: Job,
        terminal: Terminal,
        cpus: Collection[int],
        ranks: Ranks = ALONE,
        before: Before | None = None,
    ) -> None:
        self.job, self.terminal, self.cpus, self.ranks = job, terminal, cpus, ranks
        if job.config.memory_limit_gb is not None:
            memory_group.join(round(job.config.memory_limit_gb * 1e9))
        self.plan = Plan(job.config, job.choices, ranks)
        wake(self.plan.device)
        if find_spec("triton") is None:
            require_accelerator(self.plan)  # before its kernels, which cannot be imported, are asked for anything
        self.before = before or Before()
        self.parts = Parts(self.plan, tables=self.before.tables)
        self.parts.tables.keep_only(tables_of(self.parts))
        if job.config.worker != "process":
            forget_peaks(self.plan.device)
        check_plan(self.plan)
        check_rank(self.plan)
        for layer in self.plan.step.layers.values() if self.plan.step else ():
            check_plan(layer)
        check_host_load(job.config.host_load, cpus)
        check_link(job.config.link_load_gb_per_s, self.plan.device)

    def measured(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Build, verify, time and verify again: a row for each case, and every timed iteration of those that are right.

        Raises:
            ConfigError, DoesNotFitError, SkippedError, RegistrationError: as the parts of a run do.
        """
        self._look_ahead()
        plan, config = self.plan, self.job.config
        clock = clock_of(self.ranks, plan.device, self.job, shared=config.link_load_gb_per_s > 0)
        seed = zlib.crc32(self.job.run_id.encode())
        with torch.inference_mode():
            bench = Bench(self.parts, clock, Verifier(self.parts, seed))
            bench.build()
            step = StepBench(self.parts, plan.step, clock, seed) if plan.step else None
            if step:
                step.build()
            bench.capture()
            log.info("the stages are built and verified")
            if config.save_tensors:
                save_tensors(bench.built, Path(self.job.folder))
            benches: list[Bench | StepBench] = [bench, step] if step else [bench]
            timings = of_all_ranks(self._measure(benches, clock), self.ranks)
            # Before verification writes other ids to the batches.
            of_run = {**bench.graphs.peaks, **reuse_columns(plan, self.parts)}
            for each in benches:
                each.look_again()
            for each in benches:
                each.verify_again()
        errors = {case: error for each in benches for case, error in each.errors.items()}
        right = {case: timing for case, timing in timings.items() if case not in errors}
        rows = self._rows(right, errors, benches, of_run)
        return rows, sample_rows(self.job.run_id, right, Counter())

    def _look_ahead(self) -> None:
        """Refuse what does not fit, draw the batches, find out what they ask for and what this machine can do, and show
        the card."""
        plan, config = self.plan, self.job.config
        needed = plan.footprint()
        free = self._free_bytes()
        if plan.step:
            plan.step.check_fits(needed, *free)
        check_fits(needed, *free, config.model.table_scale, config.hardware.numa)
        self.ranks.agree()  # nobody has taken any of it yet
        log.info("%d batches of tokens", len(self.parts.batches))  # may be refused: before limits, which take time
        on_disk = disk_tables([self.parts])
        limits = known_limits(plan, on_disk, self.terminal.say)
        for table in on_disk if config.memory_limit_gb is not None else ():
            table.make_cold()  # pages that others have read before count in no group of ours
        distinct = None
        if plan.looks_up:
            distinct = distinct_among(self.parts.hash.plan, self.parts.batches, plan.geometry.rows)
        plan.know(limits, distinct)
        self.terminal.card(make_card(self.job, plan, needed, free, self.limit_of))
        check_time(config.timeout_s, {case: self.limit_of(case) for case in plan.cases})

    def _free_bytes(self) -> tuple[int, int | None]:
        """Host and device memory that the run may take, or has already: tables that it finds; None where the CPU stands
        in for the device."""
        kept = self.parts.tables.bytes_by_place(self.ranks.local_size)
        host = free_here(self.plan) + kept[HOST]
        device = self.plan.device
        return (host, free_device_bytes(device) + kept[DEVICE]) if self.plan.has_link else (host + kept[DEVICE], None)

    def limit_of(self, case: str) -> Limit | None:
        """The shortest time that this machine allows a case; None where it is not known."""
        if self.plan.limits is None:
            return None
        tasks = self.plan.tasks_of(case)
        return self.plan.limits.of(work(tasks), tasks[0].load)

    def _measure(self, benches: Sequence[Bench | StepBench], clock: Clock) -> dict[str, Timing]:
        config = self.job.config
        asked = set(self.plan.cases)  # others are built only to make what these read
        cases = [bench.timed(case) for bench in benches for case in bench.cases if case in asked - set(bench.errors)]
        kept, known = SampleFile(Path(self.job.folder)), Counter[str]()
        block_bytes = config.link_load_block_kib * KIB
        with (
            host_load(config.host_load if self.ranks.local_rank == 0 else 0, self.cpus),
            link_load(self.plan.device, config.link_load_gb_per_s, block_bytes, self.cpus) as self.link,
            self.terminal.progress(config.iterations, config.budget_s) as report,
        ):

            def progress(case: str, timings: dict[str, Timing]) -> None:
                report(case, timings)
                # Only now and then: the next call should follow soon, since threads that wait for long go to sleep.
                if kept.is_due and self.ranks.rank == FIRST:
                    kept.append(sample_rows(self.job.run_id, timings, known))

            timings = measure(
                cases,
                clock,
                iterations=config.iterations,
                budget_s=config.budget_s,
                pause_ms=config.pause_ms,
                seed=config.seed,
                progress=progress,
            )
        for bench in benches:
            for name in bench.cases:
                if name in timings and (error := timings[name].error):
                    bench.errors[name] = error
        return timings

    def _rows(
        self,
        timings: dict[str, Timing],
        errors: dict[str, Exception],
        benches: Sequence[Bench | StepBench],
        of_run: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """A row for each case.

        Args:
            timings, errors: of those that are right, and of those that are not.
            benches: that made them.
            of_run: columns that all rows have in common, beside those that follow from the plan.
        """
        table_bytes = whole_table_bytes(self.plan)
        run_wide = run_columns(self.plan, self.parts, table_bytes)
        reached = self.link.reached_gb_per_s if self.link else None
        run_wide |= {**of_run, "link_load_reached_gb_per_s": reached}
        common = {**stamp(), **job_columns(self.job), **run_wide, "runs_before": self.before.runs}
        disk = {case: found for bench in benches for case, found in bench.files.found.items()}
        distinct = self.plan.distinct.in_first if self.plan.distinct else None
        recent = keeps_recent(self.job.config.lookup)
        own = {
            case: proven(self._own(case, timings, errors), disk.get(case, {}), distinct, keeps_recent=recent)
            for case in self.job.cases
        }
        right = {case: timing for case, timing in timings.items() if own[case]["status"] == OK}
        rows = []
        for case in self.job.cases:
            told = [bench.columns(case, right) for bench in benches if case in bench.cases]
            known = {**reading_columns(self.plan, case), **job_case_columns(self.job, case), "case": case}
            known["graph_calls"] = graph_calls_of(self.plan, case)
            rows.append({**common, **disk.get(case, {}), **known, **own[case], **(told[0] if told else {})})
        return rows

    def _own(self, case: str, timings: dict[str, Timing], errors: dict[str, Exception]) -> dict[str, Any]:
        """What became of a case."""
        if case in errors:
            return failed_columns(errors[case], self.job.choices)
        if case in timings:
            return case_columns(self.plan, self.plan.tasks_of(case), timings[case], self.limit_of(case))
        return skipped_columns()
