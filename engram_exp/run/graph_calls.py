"""Several calls of a stage as one CUDA graph, as an engine replays its step: what it takes is then the time of the
device, and not that in which Python launches a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from math import gcd
from typing import Any, TypeVar

import torch

from engram_exp.machine.memory import peak_bytes
from engram_exp.machine.placement import cache_bytes
from engram_exp.run.plan import Plan
from engram_exp.stage import Tensors
from engram_exp.steps.lookup.step import Lookup
from engram_exp.strategy.schedule import Replay
from engram_exp.vocabulary import COLD, DEVICE, OF_A_STEP, WHOLES

CACHE_SIZES = 4  # that are written to put out of a cache what it holds
MOST_GRAPHS = 64  # of a case: each takes time to capture, and memory

Call = partial[Tensors]
T = TypeVar("T")


def graph_calls_of(plan: Plan, case: str) -> int:
    """Calls of a case that are timed as one graph; 0: each is launched by itself. It is a single stage that the device
    does alone, but no lookup that waits for the host, nor one that must find no row kept: those before it keep some."""
    calls = int(plan.config.graph_calls)
    if not calls or case not in plan.cases or case in (*WHOLES, *OF_A_STEP):
        return 0
    ((kind, load),) = plan.tasks_of(case)
    if issubclass(kind, Lookup) and (kind.asks_host or load.options.get("state") == COLD):
        return 0
    return calls if load.stage.place == DEVICE else 0


def in_groups(calls: Sequence[T], size: int) -> list[list[T]]:
    """Groups of so many calls, `MOST_GRAPHS` at most, each call as often as the others and as far from its next turn as
    can be: of more calls than a group has, those that would not fill one are left out; of fewer, all are taken in turn,
    from group to group. The last ones are left out, too, where there would be more groups.

    Args:
        calls: one at least.
        size: of a group, 1 at least.
    """
    most = len(calls) - len(calls) % size or len(calls)
    used = next(used for used in range(most, 0, -1) if used // gcd(used, size) <= MOST_GRAPHS)
    groups = range(used // gcd(used, size))
    return [[calls[(group * size + each) % used] for each in range(size)] for group in groups]


def _in_turn(calls: Sequence[Call]) -> Callable[[Any], Tensors]:
    def run(_: Tensors) -> Tensors:
        for call in calls:
            result = call()
        return result

    return run


class Graphs:
    """The cases of a run that are timed in graphs, and the memory that only this takes: nothing that a strategy keeps.

    Args:
        device: of the run.

    of_case: its graphs, each captured. It looks like its last call: it has that one's input, and returns its result.
    peaks: of the run's memory, before the first was captured; {}: none was.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.of_case: dict[str, list[Call]] = {}
        self.peaks: dict[str, int] = {}

    def capture(self, case: str, calls: Sequence[Call], size: int, run_alone: Callable[[Call], Tensors]) -> None:
        """Make graphs of a case, each of `size` calls. All graphs share memory: none of them runs beside another.

        Args:
            case, calls: what is timed so, and all its calls.
            size: of a graph, in calls.
            run_alone: makes a call and waits for it.
        """
        self.peaks = self.peaks or peak_bytes(self.device)
        groups = in_groups(calls, size)
        graphs = [partial(Replay(_in_turn(group), self.pool), group[-1].args[0]) for group in groups]
        for graph in graphs:
            run_alone(graph)  # which captures it: samples replay
        self.of_case[case] = graphs

    def prepare(self, restore: Callable[[object], None] | None, graph: object) -> None:
        """Prepare for a sample that is a graph, so that a GPU's cache has nothing left of the samples before: the rows
        of many small batches would all stay there. It writes to a few times as much other memory, and does not wait.

        Args:
            restore: what else is done before a sample, first.
            graph: that comes.
        """
        if restore:
            restore(graph)
        self.scratch.zero_()

    @cached_property
    def scratch(self) -> torch.Tensor:
        """Memory that is written before each graph, uint8: a few times as much as the device's cache. A case takes
        it when it warms up, and ends alone where there is not as much."""
        return torch.empty(CACHE_SIZES * cache_bytes(self.device), dtype=torch.uint8, device=self.device)

    @cached_property
    def pool(self) -> Any:
        """The memory of all graphs; None without a CUDA device."""
        return torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
