"""One run: build, verify, time, and make rows. A failure is a row, not an exception."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from engram_exp.config.derived import batches_of
from engram_exp.errors import ConfigError, DoesNotFitError, MismatchError, SkippedError
from engram_exp.machine.environment import gpus, machine, record, stamp
from engram_exp.machine.host_memory import RegistrationError
from engram_exp.machine.memory import forget_peaks, free_device_bytes, free_host_bytes, peak_bytes
from engram_exp.measure.clock import Clock
from engram_exp.measure.limits import Limit, Limits, Workload
from engram_exp.measure.loop import Case, Timing, measure
from engram_exp.measure.peaks import machine_limits
from engram_exp.measure.statistics import summarise
from engram_exp.results import schema as results
from engram_exp.results.schema import OK, SKIPPED
from engram_exp.results.write import SampleFile, write_run
from engram_exp.run.bench import Flow
from engram_exp.run.card import make_card
from engram_exp.run.job import Job
from engram_exp.run.parts import Builder
from engram_exp.run.requirements import device_name, require_machine
from engram_exp.run.terminal import Terminal
from engram_exp.run.verify import reference_row_ids
from engram_exp.run.whole import check_schedule
from engram_exp.strategy.footprint import Footprint, Ring, check_fits, footprint
from engram_exp.strategy.plan import PlannedStage, made_up_inputs, needed_stages
from engram_exp.vocabulary import FULL, HOST, UPLOADS

log = logging.getLogger(__name__)

NO_LINK = "no accelerator: host and device are the same memory"
EXPLAINED = (ConfigError, RegistrationError, SkippedError, MismatchError, DoesNotFitError)
ALLOCATION_FAILED = "can't allocate memory"  # what PyTorch's CPU allocator says


def run(job: Job, terminal: Terminal) -> list[dict[str, Any]]:
    """Run a job, leave its files in its folder, and return its rows: one per case."""
    folder = Path(job.folder)
    samples: list[dict[str, Any]] = []
    try:
        rows = Run(job, terminal).rows(samples)
    except SkippedError as error:
        rows = _failed(job, results.SKIPPED, error)
    except (ConfigError, RegistrationError) as error:
        rows = _failed(job, results.REFUSED, error)
    except MismatchError as error:
        rows = _failed(job, results.MISMATCH, error)
    except DoesNotFitError as error:
        rows = _failed(job, results.OOM_DEVICE if error.where == "device" else results.OOM_HOST, error)
    except torch.OutOfMemoryError as error:
        rows = _failed(job, results.OOM_DEVICE, error)
    except MemoryError as error:
        rows = _failed(job, results.OOM_HOST, error)
    except Exception as error:
        log.exception("the run crashed")
        no_memory = ALLOCATION_FAILED in str(error) or getattr(error, "errno", None) == errno.ENOMEM
        rows = _failed(job, results.OOM_HOST if no_memory else results.CRASH, error)
    write_run(folder, {"command": job.command, **record()}, rows, samples)
    terminal.results(rows)
    return rows


def _failed(job: Job, status: str, error: BaseException) -> list[dict[str, Any]]:
    text = str(error) if isinstance(error, EXPLAINED) else repr(error)
    return [{**stamp(), **row} for row in job.failed_rows(status, text)]


class Run:
    """The parts of one run.

    Args:
        job: what to run.
        terminal: where to show it.
    """

    def __init__(self, job: Job, terminal: Terminal) -> None:
        self.job = job
        self.terminal = terminal
        self.builder = Builder(job.config)
        self.builder.wake_device()
        self.has_link = self.builder.device.type != "cpu"
        if job.config.worker == "inline":
            forget_peaks(self.builder.device)
        require_machine(self.builder)
        self.builder.check_components()
        if FULL in job.cases:
            check_schedule(self.builder)
        self.geometry = self.builder.geometry
        self.planned = self.builder.active
        self.skipped = [case for case in job.cases if case in UPLOADS and not self.has_link]
        self.cases = [case for case in job.cases if case not in self.skipped]
        whole_stages = not self.builder.pipelined or job.config.save_tensors  # a pipeline has stages of its own
        self.names = needed_stages([case for case in self.cases if case != FULL or whole_stages], self.planned)
        self.work: Workload | None = None
        self.limits: Limits | None = None

    def rows(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Build, verify and time; every timed iteration is added to `samples`.

        Raises:
            ConfigError, DoesNotFitError, MismatchError: as the parts of a run do.
        """
        config, builder = self.job.config, self.builder
        needed = self.footprint()
        free = free_host_bytes(), free_device_bytes(builder.device)
        check_fits(needed, *free, builder.device, config.model.table_scale)
        builder.check_dtype()
        log.info("%d batches of tokens", len(builder.batches))  # may be refused: before limits, which take their time
        self.limits = self.known_limits()
        self.terminal.card(
            make_card(self.job, builder, self.cases, needed, free, self.work_of, self.limit_of, self.limits)
        )

        clock = Clock(builder.device)
        with torch.inference_mode():
            flow = Flow(builder, self.names, self.planned, clock, whole=FULL in self.cases)
            flow.build_and_verify()
            log.info("the stages are built and verified")
            if config.save_tensors:
                flow.save_tensors(Path(self.job.folder) / "tensors.safetensors")
            cases = [
                Case(name, flow.calls(name), name == FULL or flow.stage(name).place != HOST) for name in self.cases
            ]
            with (
                self.terminal.progress(config.iterations, config.budget_s) as report,
                closing(SampleFile(Path(self.job.folder))) as kept,
            ):
                known: Counter[str] = Counter()

                def progress(case: str, timings: dict[str, Timing]) -> None:
                    report(case, timings)
                    kept.append(_sample_rows(self.job.run_id, timings, known))

                timings = measure(
                    cases,
                    clock,
                    iterations=config.iterations,
                    budget_s=config.budget_s,
                    seed=config.seed,
                    progress=progress,
                )
        samples.extend(_sample_rows(self.job.run_id, timings, Counter()))
        common = {**stamp(), **self.job.columns(), **self._run_columns(needed.table_bytes)}
        peaks = {FULL: flow.whole_peaks}
        return [
            {**common, **peaks.get(case, {}), "case": case, **self._case_columns(case, timings)}
            for case in self.job.cases
        ]

    def footprint(self) -> Footprint:
        """The memory that the run keeps."""
        config, builder = self.job.config, self.builder
        ring = None
        if builder.chunk_tokens and FULL in self.cases:
            chunk_tokens = min(builder.chunk_tokens, builder.tokens)
            chunks = -(-builder.tokens // chunk_tokens)
            ring = Ring(self.planned, chunk_tokens, min(config.schedule.ring_depth, chunks))
        return footprint(
            self.geometry,
            [PlannedStage(name, builder.place_of(name)) for name in self.names],
            made_up_inputs(self.names, self.planned),
            (config.batch_size, config.seq_len),
            batches_of(config),
            builder.kv_buffers,
            config.strategy.table,
            ring,
        )

    def known_limits(self) -> Limits | None:
        """What this machine can do, measured now if it has not been before; None if nobody asked."""
        config, device = self.job.config, self.builder.device
        if config.limits == "none":
            return None
        hardware = config.hardware
        identity = {
            **machine(),
            "device_name": device_name(self.builder),
            "threads": torch.get_num_threads(),
            "pin_threads": hardware.pin_threads,
            "affinity": list(hardware.affinity or []),
        }
        folder, refresh = Path(config.limits_dir), config.limits == "refresh"
        return machine_limits(folder, identity, device, refresh=refresh, announce=self.terminal.say)

    def limit_of(self, case: str) -> Limit | None:
        """The shortest time that this machine allows a case."""
        if self.limits is None:
            return None
        if self.work is None:
            config = self.job.config
            self.work = Workload(
                self.geometry,
                self.builder.tokens,
                config.batch_size,
                config.dtype.name,
                config.strategy.table,
                self.unique_row_fraction if self.looks_up else 1.0,
            )
        if case == FULL:
            return self.limits.of_all(self.planned, replace(self.work, staged=self.builder.pipelined))
        return self.limits.of_stage(PlannedStage(case, self.builder.place_of(case)), self.work)

    @property
    def looks_up(self) -> bool:
        """Whether the run needs the table."""
        return FULL in self.cases or "lookup" in self.names

    @cached_property
    def unique_row_fraction(self) -> float:
        """Distinct rows among those that the first batch asks for."""
        row_ids = reference_row_ids(self.builder.hash_plan, self.builder.batches[0])
        return len(torch.unique(row_ids)) / row_ids.numel()

    def work_of(self, case: str) -> tuple[int, int]:
        """What a case must move and compute; `full` is the sum of its stages."""
        names = [stage.name for stage in self.planned] if case == FULL else [case]
        tokens = self.builder.tokens
        return (
            sum(self.geometry.bytes_moved(name, tokens, self.job.config.batch_size) for name in names),
            sum(self.geometry.flops(name, tokens) for name in names),
        )

    def _run_columns(self, table_bytes: int) -> dict[str, Any]:
        device = self.builder.device
        return {
            "device": str(device),
            "device_name": device_name(self.builder),
            "driver": gpus()[0]["driver"] if device.type == "cuda" and gpus() else None,
            "batches": len(self.builder.batches),
            "true_rows": self.geometry.true_rows,
            "used_rows": self.geometry.rows,
            "table_bytes": table_bytes,
            "threads": torch.get_num_threads(),
            **peak_bytes(device),
            "unique_row_fraction": self.unique_row_fraction if self.looks_up else None,
            "huge_page_share": self.builder.table.huge_page_share if self.looks_up else None,
        }

    def _case_columns(self, case: str, timings: dict[str, Timing]) -> dict[str, Any]:
        if case in self.skipped:
            return {"status": SKIPPED, "error": NO_LINK}
        timing = timings[case]
        times = summarise([sample.wall_ms for sample in timing.samples])
        median_ms = times["wall_ms_median"]
        assert median_ms is not None
        per_second = 1e3 / median_ms
        moved, flops = self.work_of(case)
        tokens, limit = self.builder.tokens, self.limit_of(case)
        return {
            "status": OK,
            "iterations": len(timing.samples),
            "stop_reason": timing.stop_reason,
            "steady": timing.steady,
            **times,
            "device_ms_median": _median([sample.device_ms for sample in timing.samples]),
            "enqueue_ms_median": _median([sample.enqueue_ms for sample in timing.samples]),
            "bytes_moved": moved,
            "gb_per_s": moved * per_second / 1e9,
            "flops": flops,
            "tflop_per_s": flops * per_second / 1e12,
            "rows_per_s": tokens * self.geometry.columns * per_second if case in ("hashing", "lookup", FULL) else None,
            "tokens_per_s": tokens * per_second,
            "limit_ms": limit.ms if limit else None,
            "limit_by": limit.by if limit else None,
            "efficiency": limit.ms / median_ms if limit else None,
        }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _sample_rows(run_id: str, timings: dict[str, Timing], known: Counter[str]) -> list[dict[str, Any]]:
    """The samples of each case behind those that are known; then they are."""
    rows = [
        {"run_id": run_id, "case": case, "iteration": iteration, "order": order, **sample._asdict()}
        for case, timing in timings.items()
        for iteration, order, sample in zip(
            count(known[case]), timing.order[known[case] :], timing.samples[known[case] :], strict=False
        )
    ]
    known.update({case: len(timing.samples) - known[case] for case, timing in timings.items()})
    return rows
