"""What a run of several ranks does beside what every run does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.ranks import Ranks
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Timing
from engram_exp.measure.rank_clock import RankClock, Watch
from engram_exp.run.job import Job
from engram_exp.run.plan import Plan, device_name
from engram_exp.run.rank import end


def clock_of(ranks: Ranks, device: torch.device, job: Job, *, shared: bool) -> Clock:
    """The clock of a run: one for all of its ranks. On the CPU, every exchange ends by itself."""
    if ranks.size == 1:
        return Clock(device, shared=shared)
    watch = None if device.type == "cpu" else Watch(ranks, partial(end, job=job))
    return RankClock(device, ranks, shared=shared, watch=watch)


def check_rank(plan: Plan) -> None:
    """Refuse what ranks cannot do together.

    Raises:
        ConfigError: GPUs of different names.
    """
    ranks = plan.ranks
    if ranks.size == 1:
        return
    names = sorted(set(ranks.gather(device_name(plan.device))))
    if len(names) > 1 and not plan.config.mixed_gpus:
        raise ConfigError(
            "ranks", ranks.size, f"their GPUs differ: {', '.join(names)}; mixed_gpus=true takes them all the same"
        )


def of_all_ranks(timings: Mapping[str, Timing], ranks: Ranks) -> dict[str, Timing]:
    """What the loop found out on this rank, with what the others saw beside the samples, which are the same on all:
    preemptions add up, and the lowest clock is the lowest of all."""
    seen = {case: (timing.preempted, timing.sm_clock_mhz_min) for case, timing in timings.items()}
    every = ranks.gather(seen)
    for case, timing in timings.items():
        timing.preempted = sum(of_rank[case][0] for of_rank in every)
        clocks = [of_rank[case][1] for of_rank in every]
        timing.sm_clock_mhz_min = min((mhz for mhz in clocks if mhz is not None), default=None)
    return dict(timings)


def whole_table_bytes(plan: Plan) -> int:
    """Bytes of the run's tables, however many ranks keep them between them; 0 where it needs none."""
    if plan.ranks.size == 1:
        return plan.footprint().table_bytes
    layers = [layer for layer in (plan.step.layers.values() if plan.step else ()) if layer is not plan]
    return sum(layer.geometry.table_bytes for layer in (*layers, *([plan] if plan.looks_up else [])))
