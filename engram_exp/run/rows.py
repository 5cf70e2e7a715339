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
from engram_exp.measure.statistics import paired, summarise
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan, bytes_moved, device_name, flops, work
from engram_exp.run.step_plan import StepPlan
from engram_exp.stage import Task
from engram_exp.vocabulary import FETCH, IN_STEP, OK, READY, SKIPPED, SUSPECT, THIS_STEP

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


def exposed_columns(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """What a model's step takes longer because its rows are not in place yet, and the share of fetching them that is
    hidden; nothing unless both kinds of step were timed."""
    step_ms, ready_ms, fetch_ms = (
        [sample.wall_ms for sample in timings[case].samples] if case in timings else []
        for case in (IN_STEP, READY, FETCH)
    )
    if not (step_ms and ready_ms):
        return {}
    exposed_ms, low, high = paired(step_ms, ready_ms)
    hidden_share = 1 - exposed_ms / median(fetch_ms) if fetch_ms else None
    return {
        "exposed_ms_median": exposed_ms, "exposed_ms_lo": low, "exposed_ms_hi": high, "hidden_share": hidden_share,
    }  # fmt: skip


def least_exposed(step: StepPlan, windows_ms: Sequence[float]) -> Limit | None:
    """The least that a model's step takes longer because its rows must be fetched, and what sets it: fetching those of
    the layers up to one takes at least so long on this machine, beyond the time until that one is reached. It is a
    bound if the decoder is as quick as with rows in place, and other ranks are as quick as this one. None where that is
    unknown, where rows are not fetched beside the decoder during their step, or where the device is spared what it
    computes with rows in place.

    Args:
        step: its plan.
        windows_ms: until each layer is reached, with the rows of all of them in place.
    """
    limits, tasks, found = step.plan.limits, list[Task](), list[Limit]()
    if limits is None or not (step.is_beside and step.is_alike) or step.plan.config.prefetch.lead != THIS_STEP:
        return None
    for layer, window_ms in zip(step.layers.values(), windows_ms, strict=True):
        tasks += step.tasks_of(FETCH, layer)
        if limit := limits.of(work(tasks), tasks[0].load):
            found.append(Limit(max(0.0, limit.ms - window_ms), limit.by))
    return max(found, default=None)


def exposed_verdict(ready_ms: float, high_ms: float | None, least: Limit) -> dict[str, Any]:
    """That a step is suspect, if it is quicker than its rows can come by more than two like steps differ; else nothing.

    Args:
        ready_ms: that it takes with its rows in place.
        high_ms: more that it takes at most, by its interval, if it has one.
        least: more that it must take, as `least_exposed` has it.
    """
    if high_ms is None or not is_beaten(ready_ms + high_ms, Limit(ready_ms + least.ms, least.by)):
        return {}
    reason = (
        f"it takes at most {high_ms:.4g} ms longer than with its rows in place, and must take {least.ms:.4g} ms, by "
        f"the {least.by} of this machine: the limit is wrong (limits=refresh measures it again, on an idle machine), "
        "or the two did not run alike"
    )
    return {"status": SUSPECT, "error": reason}


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
