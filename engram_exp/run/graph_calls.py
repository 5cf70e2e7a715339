"""Several calls of a stage as one CUDA graph, as an engine replays its step: what it takes is then the time of the
device, and not that in which Python launches a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm
from typing import Any, TypeVar

import torch

from engram_exp.machine.placement import cache_bytes
from engram_exp.run.plan import Plan
from engram_exp.stage import Tensors
from engram_exp.steps.lookup.step import Lookup
from engram_exp.strategy.schedule import Replay
from engram_exp.vocabulary import DEVICE, OF_A_STEP, WHOLES

CACHE_SIZES = 4  # that are written to put out of a cache what it holds

Call = partial[Tensors]
T = TypeVar("T")


def graph_calls_of(plan: Plan, case: str) -> int:
    """Calls of a case that are timed as one graph; 0: each is launched by itself. It is a single stage that the device
    does alone, and no lookup that leaves rows behind: those of the calls before would be found by the next."""
    calls = int(plan.config.graph_calls)
    if not calls or case not in plan.cases or case in (*WHOLES, *OF_A_STEP):
        return 0
    ((kind, load),) = plan.tasks_of(case)
    keeps_state = issubclass(kind, Lookup) and (kind.asks_host or kind.leaves_rows(load.options))
    return calls if load.stage.place == DEVICE and not keeps_state else 0


def in_groups(calls: Sequence[T], size: int) -> list[list[T]]:
    """Groups of so many calls, each call as often as the others and as far from its next turn as can be: of more calls
    than a group has, those that would not fill one are left out; of fewer, all are taken in turn, from group to group.

    Args:
        calls: one at least.
        size: of a group, 1 at least.
    """
    number = len(calls) // size or lcm(len(calls), size) // size
    return [[calls[(group * size + each) % len(calls)] for each in range(size)] for group in range(number)]


def in_graphs(calls: Sequence[Call], size: int) -> list[Call]:
    """Groups of so many calls, each a graph that is captured when it is first called. It looks like its last call: it
    has that one's input, and returns its result."""
    return [partial(Replay(_in_turn(group)), group[-1].args[0]) for group in in_groups(calls, size)]


def _in_turn(calls: Sequence[Call]) -> Callable[[Any], Tensors]:
    def run(_: Tensors) -> Tensors:
        for call in calls:
            result = call()
        return result

    return run


def put_out_of_cache(device: torch.device) -> Callable[[object], None]:
    """What is done before each graph, so that a GPU's cache has nothing left of the samples before: the rows of many
    small batches would all stay there. It writes to a few times as much other memory, and does not wait."""
    other = torch.empty(CACHE_SIZES * cache_bytes(device), dtype=torch.uint8, device=device)

    def put_out(_: object) -> None:
        other.zero_()

    return put_out
