"""What a model's step takes longer because its rows must be fetched: as measured, at least, and whether both agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engram_exp.measure.limits import is_beaten
from engram_exp.measure.loop import Timing
from engram_exp.measure.rates import Limit
from engram_exp.measure.statistics import paired
from engram_exp.run.step_plan import StepPlan
from engram_exp.stage import Task
from engram_exp.strategy.costs import work
from engram_exp.vocabulary import FETCH, IN_STEP, READY, SUSPECT, THIS_STEP


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
