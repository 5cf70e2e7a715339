"""The rows of one run: what was planned, what was measured, what became of each case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from statistics import median
from typing import Any

import torch

from engram_exp.errors import status_of, text_of
from engram_exp.machine.environment import gpus
from engram_exp.machine.memory import peak_bytes
from engram_exp.measure.limits import is_beaten, possible_ms
from engram_exp.measure.loop import Timing
from engram_exp.measure.rates import Limit
from engram_exp.measure.statistics import summarise
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan, device_name
from engram_exp.stage import Task
from engram_exp.strategy.costs import bytes_moved, flops, work
from engram_exp.vocabulary import OK, SKIPPED, SUSPECT

NO_LINK = "no accelerator: host and device are the same memory"


def run_columns(plan: Plan, parts: Parts, table_bytes: int) -> dict[str, Any]:
    """What is the same in all rows of a run, beside what its job knows.

    Args:
        plan, parts: of the run, after measuring.
        table_bytes: of its table, 0 without one.
    """
    device, geometry, distinct = plan.device, plan.geometry, plan.distinct
    return {
        "device": str(device),
        "device_name": device_name(device),
        "driver": gpus()[0]["driver"] if device.type == "cuda" and gpus() else None,
        "batches": len(parts.batches),
        "true_rows": geometry.true_rows,
        "used_rows": geometry.rows,
        "table_bytes": table_bytes,
        "threads": torch.get_num_threads(),
        **peak_bytes(device),
        "unique_row_fraction": distinct.in_first if distinct else None,
        "distinct_by_order": " ".join(map("{0[0]}={0[1]:.4g}".format, distinct.by_order.items())) if distinct else None,
        "huge_page_share": parts.table.huge_page_share if plan.looks_up else None,
    }


def reading_columns(plan: Plan, case: str) -> dict[str, Any]:
    """How a kernel reads the rows of a case, where the lookup knows orders."""
    reading = plan.reading(case)
    if reading is None:
        return {}
    return {"row_order": reading.order, "rows_per_program": reading.rows_per_program, "programs": reading.programs}


def case_columns(plan: Plan, tasks: Sequence[Task], timing: Timing, limit: Limit | None) -> dict[str, Any]:
    """What was measured of a case that was right; suspect if it took less time than is possible.

    Args:
        plan: of the run.
        tasks: that the case came to.
        timing: of it.
        limit: the shortest time that this machine allows it, if it is known.
    """
    times = summarise([sample.wall_ms for sample in timing.samples])
    median_ms = times["wall_ms_median"]
    assert median_ms is not None
    per_second = 1e3 / median_ms
    moved, operations = bytes_moved(tasks), flops(tasks)
    # Of all layers of a step; a hash makes as many as a lookup reads.
    row_ids = [task.load.row_ids for task in tasks if task.kind.reads_table]
    asking = tasks[0].load.among.asking
    row_ids = row_ids or [task.load.row_ids for task in tasks if task.kind.rotates]
    return {
        **_verdict(plan, tasks, median_ms, limit),
        "iterations": len(timing.samples),
        "stop_reason": timing.stop_reason,
        "steady": timing.steady,
        "preempted": timing.preempted,
        "sm_clock_mhz_min": timing.sm_clock_mhz_min,
        **times,
        "device_ms_median": _median([sample.device_ms for sample in timing.samples]),
        "enqueue_ms_median": _median([sample.enqueue_ms for sample in timing.samples]),
        "bytes_moved": moved,
        "gb_per_s": moved * per_second / 1e9,
        "flops": operations,
        "tflop_per_s": operations * per_second / 1e12,
        "rows_per_s": asking * sum(row_ids) * per_second if row_ids else None,
        "tokens_per_s": asking * plan.tokens * per_second,
        "limit_ms": limit.ms if limit else None,
        "limit_by": limit.by if limit else None,
        "efficiency": limit.ms / median_ms if limit else None,
    }


def _verdict(plan: Plan, tasks: Sequence[Task], median_ms: float, limit: Limit | None) -> dict[str, Any]:
    if limit and is_beaten(median_ms, limit):
        reason = (
            f"{median_ms:.4g} ms are less than the {limit.ms:.4g} ms that the {limit.by} of this machine takes: the "
            "limit is wrong (limits=refresh measures it again, on an idle machine) or the time is"
        )
        return {"status": SUSPECT, "error": reason}
    fastest_ms = possible_ms(work([task for task in tasks if plan.has_link or not task.load.stage.is_upload]))
    if median_ms < fastest_ms:
        reason = f"{median_ms:.4g} ms are less than the {fastest_ms:.4g} ms that any machine takes for this work"
        return {"status": SUSPECT, "error": reason}
    return {"status": OK}


def skipped_columns() -> dict[str, Any]:
    """Of an upload where there is no link."""
    return {"status": SKIPPED, "error": NO_LINK}


def failed_columns(error: BaseException, choices: Mapping[str, str | None]) -> dict[str, Any]:
    """Of a case that ended with an error."""
    return {"status": status_of(error), "error": text_of(error, choices)}


def sample_rows(run_id: str, timings: Mapping[str, Timing], known: Counter[str]) -> list[dict[str, Any]]:
    """The timed iterations of each case behind those that are known; then they are."""
    rows = [
        {"run_id": run_id, "case": case, "iteration": iteration, "order": order, **sample._asdict()}
        for case, timing in timings.items()
        for iteration, order, sample in zip(
            count(known[case]), timing.order[known[case] :], timing.samples[known[case] :], strict=False
        )
    ]
    known.update({case: len(timing.samples) - known[case] for case, timing in timings.items()})
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
