"""The layers with tables of a model's step: built, and looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from engram_exp.layer.tokens import Batch
from engram_exp.measure.clock import Clock
from engram_exp.run.glance import MOST_LOOKS, Glance
from engram_exp.run.made_up import MadeUp
from engram_exp.run.parts import Parts
from engram_exp.run.row_cache import CountingGlance, counting_of
from engram_exp.run.step_plan import StepPlan
from engram_exp.run.verify import Tasks, Verifier, require_close
from engram_exp.stage import BuiltStage, PlannedStage, Strategy, Task, Tensors
from engram_exp.strategy.fetch import Compute, DeviceFetch, Fetch, HostFetch, StepIds, host_and_across
from engram_exp.vocabulary import DECODER, FETCH, IN_STEP, READY, TENSORS_OF, TOKEN_IDS

Run = Callable[[Batch], Tensors]


class How(NamedTuple):
    """How rows are fetched.

    stream: beside the decoder's; None: on it.
    captured: makes device work a graph, where there are graphs.
    """

    stream: torch.Stream | None
    captured: Callable[[Compute], Compute]


class TableLayer:
    """A layer with a table in a model's step.

    Args:
        parts: of its table.
        plan: of the step.
        seed: of the tokens that are compared.

    places: where `ready` reads rows.
    counting: by case, the lookup that fetches its rows and counts those that cross the link; none where none counts.
    """

    def __init__(self, parts: Parts, plan: StepPlan, seed: int) -> None:
        self.parts, self.plan, self.verifier = parts, plan, Verifier(parts, seed)
        self.made_up = MadeUp(parts)
        self.places: Tensors = ()
        self.rows: Tensors = ()  # that belong there
        self.tasks_of, self.made = cache(self._tasks_of), cache(self._made)  # asked for behind each sample
        self.counting: dict[str, Any] = {}
        self.built: dict[PlannedStage, BuiltStage] = {}  # that cases share, since none runs beside another

    def fetch(self, case: str, ids: StepIds, how: How, *, ahead: bool = False) -> Fetch:
        """How its rows come to where it reads them in a case.

        Args:
            case: `step` or `ready`.
            ids: that they are fetched for.
            how: and where.
            ahead: in buffers of their own, since others are fetched meanwhile.
        """
        fetching, _ = self.plan.parted(self.parts.plan, case)
        built = [self._build(task) if ahead else self._shared(task) for task in fetching]
        if lookup := counting_of(built):
            self.counting |= {IN_STEP: lookup} if ahead else {FETCH: lookup, IN_STEP: lookup}
        host, across = host_and_across(built)
        if host.stages:
            return HostFetch(ids, host, across, how.stream)
        asks_host = any(getattr(stage.kind, "asks_host", False) for stage in built)
        return DeviceFetch(ids, across if asks_host else how.captured(across), how.stream, asks_host=asks_host)

    def compute(self, case: str) -> Strategy:
        """What it makes of its rows in a case."""
        _, computing = self.plan.parted(self.parts.plan, case)
        return Strategy(list(map(self._shared, computing)))

    def _shared(self, task: Task) -> BuiltStage:
        stage = task.load.stage
        if stage not in self.built:
            self.built[stage] = self._build(task)
        return self.built[stage]

    def _build(self, task: Task) -> BuiltStage:
        return self.parts.stage(task.load.stage, beside=self.plan.is_beside)

    def place(self, rows: Tensors) -> None:
        """Keep a copy of rows, and put it where `ready` reads them."""
        self.rows = tuple(map(torch.clone, rows))
        self.places = self.places or tuple(map(torch.clone, rows))
        self.put_back()

    def put_back(self) -> None:
        """Put the rows of `ready` where it reads them."""
        for place, tensor in zip(self.places, self.rows, strict=True):
            place.copy_(tensor)

    def glance(self, case: str, inputs: Sequence[Batch]) -> Glance:
        """A look at what a case makes of it, behind samples."""
        looked_at = self.verifier, case, self.tasks_of(case), inputs
        return CountingGlance(self.counting[case], *looked_at) if case in self.counting else Glance(*looked_at)

    def _tasks_of(self, case: str) -> Tasks:
        """The stages that what a case returns of it follows from, from token ids on; none if it returns nothing."""
        fetching, computing = self.plan.parted(self.parts.plan, case)
        return {FETCH: fetching, DECODER: []}.get(case, [*fetching, *computing])

    def _made(self, case: str) -> tuple[str, ...]:
        """The names of the tensors that a case returns of it."""
        tasks = self.tasks_of(case)
        return TENSORS_OF.get(value := tasks[-1].load.stage.makes, (value,)) if tasks else ()

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
        hidden: the decoder's state [T, C] behind a step on the first of them; None of a case without a decoder.
    """

    def __init__(
        self, case: str, layers: Sequence[TableLayer], inputs: Sequence[Batch], hidden: torch.Tensor | None
    ) -> None:
        self.case, self.layers, self.inputs, self.hidden = case, layers, inputs, hidden
        self.aside: list[torch.Tensor] = []
        if hidden is not None:
            self.positions = layers[0].verifier.few_positions().to(hidden.device)
        self.glances = [
            (number, layer.glance(case, inputs)) for number, layer in enumerate(layers) if layer.tasks_of(case)
        ]

    def before(self, call: partial[Tensors]) -> None:
        """Prepare all layers for a call."""
        self._put_back()
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
        if self.hidden is not None and call.args[0] is self.inputs[0]:
            self.aside.append(result[0].index_select(0, self.positions))
            if len(self.aside) == MOST_LOOKS:
                self._settle()

    def burst(self, run: Run, clock: Clock) -> None:
        """Call the case again and again for one layer after the other, and look at each of what it made.

        Raises:
            MismatchError: some of it differs from the reference.
        """
        self._put_back()
        for number, glance in self.glances:

            def made(batch: Batch, number: int = number) -> Tensors:
                return made_by(self.layers, self.case, run(batch))[number]

            glance.burst([partial(made, batch) for batch in self.inputs], clock)
        self._settle()

    def _put_back(self) -> None:
        """Leave the rows of `ready` where it reads them: the step before it left others there."""
        if self.case == READY:
            for layer in self.layers:
                layer.put_back()

    def _settle(self) -> None:
        """Compare what was copied aside of the decoder's hidden states."""
        aside, self.aside = self.aside, []
        if self.hidden is not None:
            want = self.hidden[self.positions].float().cpu()
            for got in aside:
                require_close(f"{self.case}, {DECODER}", got.cpu(), want, self.layers[0].parts.reference.tolerance)


def made_by(layers: Sequence[TableLayer], case: str, result: Tensors) -> list[Tensors]:
    """What each layer made, of what a case returned: behind the decoder's hidden state, where there is a decoder."""
    made = iter(result if case == FETCH else result[1:])
    return [tuple(next(made) for _ in layer.made(case)) for layer in layers]
