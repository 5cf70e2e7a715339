"""The layers with tables of a model's step: built, and looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch

from engram_exp.layer.tokens import Batch
from engram_exp.run.glance import Glance
from engram_exp.run.made_up import MadeUp
from engram_exp.run.parts import Parts
from engram_exp.run.step_plan import StepPlan
from engram_exp.run.verify import Tasks, Verifier
from engram_exp.stage import BuiltStage, Strategy, Tensors
from engram_exp.strategy.step import Compute, DeviceFetch, Fetch, HostFetch, StepIds, parted
from engram_exp.vocabulary import DECODER, FETCH, IN_STEP, READY, TENSORS_OF, TOKEN_IDS

Run = Callable[[Batch], Tensors]


class TableLayer:
    """A layer with a table in a model's step.

    Args:
        parts: of its table.
        plan: of the step.
        seed: of the tokens that are compared.

    computes: it makes something of its rows; otherwise, what is fetched is its keys and value.
    rows: at the place where `ready` reads them.
    """

    def __init__(self, parts: Parts, plan: StepPlan, seed: int) -> None:
        self.parts, self.plan, self.verifier = parts, plan, Verifier(parts, seed)
        self.made_up = MadeUp(parts)
        self.computes = bool(plan.tasks_of(READY, parts.plan))
        self.rows: Tensors = ()

    def fetch(self, ids: StepIds, stream: torch.Stream | None, captured: Callable[[Compute], Compute]) -> Fetch:
        """Build how its rows come to where it reads them, in buffers of its own.

        Args:
            ids: that they are fetched for.
            stream: that they come on, beside the decoder's.
            captured: makes device work a graph, where there are graphs.
        """
        host, across = parted(self._built(FETCH))
        return HostFetch(ids, host, across, stream) if host.stages else DeviceFetch(ids, captured(across), stream)

    @cached_property
    def compute(self) -> Strategy:
        """What it makes of its rows."""
        return Strategy(self._built(READY))

    def _built(self, case: str) -> list[BuiltStage]:
        beside = self.plan.is_beside
        return [self.parts.stage(task.load.stage, beside=beside) for task in self.plan.tasks_of(case, self.parts.plan)]

    def place(self, rows: Tensors) -> None:
        """Keep a copy of rows, at the place where `ready` reads them."""
        if not self.rows:
            self.rows = tuple(tensor.clone() for tensor in rows)
        for kept, tensor in zip(self.rows, rows, strict=True):
            kept.copy_(tensor)

    def made(self, case: str) -> tuple[str, ...]:
        """The names of the tensors that a case returns of it."""
        tasks = self.tasks_of(case)
        return TENSORS_OF.get(value := tasks[-1].load.stage.makes, (value,)) if tasks else ()

    def tasks_of(self, case: str) -> Tasks:
        """The stages that what a case returns of it follows from, from token ids on; none if it returns nothing."""
        layer = self.parts.plan
        if case == DECODER or (case == READY and not self.computes):
            return []
        return self.plan.tasks_of(FETCH if case == FETCH else IN_STEP, layer)

    def renew(self, batch: Batch) -> None:
        """Write ids and a hidden state that were never shown before."""
        self.made_up.renew(TOKEN_IDS, batch)
        for task in self.plan.tasks_of(IN_STEP, self.parts.plan):
            self.made_up.renew_brought(task)


class Looks:
    """Looks at a few tokens of each layer behind samples of a case, as `Glance` does at one layer's.

    Args:
        case: to look at.
        layers: of the step.
        inputs: what the case's calls read in turn.
    """

    def __init__(self, case: str, layers: Sequence[TableLayer], inputs: Sequence[Batch]) -> None:
        self.case, self.layers, self.inputs = case, layers, inputs
        self.glances = [
            (number, Glance(layer.verifier, case, tasks, inputs))
            for number, layer in enumerate(layers)
            if (tasks := layer.tasks_of(case))
        ]

    def before(self, call: partial[Tensors]) -> None:
        """Prepare all layers for a call."""
        for _, glance in self.glances:
            glance.before(call)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """Look at what each layer made.

        Raises:
            MismatchError: it is no plain tensors; or an earlier call's differed from the reference.
        """
        assert isinstance(result, tuple)
        made = made_by(self.layers, self.case, result)
        for number, glance in self.glances:
            glance.behind(call, made[number])

    def burst(self, run: Run, synchronize: Callable[[], None]) -> None:
        """Call the case again and again for one layer after the other, and look at each of what it made.

        Raises:
            MismatchError: some of it differs from the reference.
        """
        for number, glance in self.glances:

            def made(batch: Batch, number: int = number) -> Tensors:
                return made_by(self.layers, self.case, run(batch))[number]

            glance.burst([partial(made, batch) for batch in self.inputs], synchronize)


def made_by(layers: Sequence[TableLayer], case: str, result: Tensors) -> list[Tensors]:
    """What each layer made, of what a case returned: behind the decoder's hidden state, where there is a decoder."""
    made = iter(result if case == FETCH else result[1:])
    return [tuple(next(made) for _ in layer.made(case)) for layer in layers]
