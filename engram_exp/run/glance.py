"""A look at what samples returned, so light that the next one hardly feels it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle

import torch

from engram_exp.layer.excerpt import by_token
from engram_exp.machine.placement import poison_of
from engram_exp.measure.clock import Clock
from engram_exp.run.verify import Tasks, Verifier, judge_of, require_like
from engram_exp.stage import Tensors, Tolerance

BURST_CALLS, BURST_S = 40, 0.4  # behind the last sample, whichever comes first
MOST_LOOKS = 64  # that are kept before they are compared, which takes the host, and the device a wait


class Glance:
    """Looks at a few tokens behind samples of a case, and of enough calls to see what is wrong in one of ten.

    What they must be is worked out beforehand. Behind a sample they are copied aside, where they lie and without
    waiting; they are compared when there are many, or all samples are taken.

    Args:
        verifier: of the run.
        case: to look at.
        tasks: what it comes to.
        inputs: what its calls read in turn. Where it is always the same, other cases may write to it meanwhile: what is
            looked at is put back before each sample.
    """

    def __init__(self, verifier: Verifier, case: str, tasks: Tasks, inputs: Sequence[Tensors]) -> None:
        self.verifier, self.case, self.tasks = verifier, case, tasks
        self.value, self.tokens = verifier.value(tasks), verifier.parts.plan.tokens
        self.positions = verifier.few_positions()
        self.places: dict[tuple[int, torch.device], torch.Tensor] = {}
        self.want = self._wanted(inputs)
        self.needs = tasks[0].load.stage.needs
        self.read = judge_of(tasks[0]).reads(tasks[0].load, self.positions)
        self.put_back = self._copies(self.needs, inputs[0], self.read) if len(inputs) == 1 else ()
        self.looks: list[tuple[int, Tensors]] = []
        self.last: Tensors = ()
        self.began_s = self.call_s = 0.0

    def before(self, call: partial[Tensors]) -> None:
        """Put back what is read at these tokens, and poison what was returned there last."""
        if self.put_back:
            for tensor, values in zip(call.args[0], self.put_back, strict=True):
                if (view := by_token(self.needs, tensor, self.tokens)) is not None:
                    view.index_copy_(0, self._places(view, self.read), values)
        for tensor in self.last:
            if (view := by_token(self.value, tensor, self.tokens)) is not None:
                view.index_fill_(0, self._places(view, self.positions), poison_of(view.dtype))
        self.last = ()  # a fresh result finds the memory of the one before it
        self.began_s = time.monotonic()

    def behind(self, call: partial[Tensors], result: object) -> None:
        """Copy aside what a call on one of the inputs returned.

        Raises:
            MismatchError: it is no plain tensors; or an earlier call's differed from the reference.
        """
        self.call_s = time.monotonic() - self.began_s
        self.last = self.verifier.tensors_of(self.case, self.tasks, result)
        self.looks.append((id(call.args[0]), self._copies(self.value, self.last, self.positions)))
        if len(self.looks) == MOST_LOOKS:
            self.settle()

    def burst(self, calls: Sequence[partial[Tensors]], clock: Clock) -> None:
        """Call the case again and again, and look at each of what it returns.

        Raises:
            MismatchError: some of it differs from the reference.
        """
        spent_s = clock.slowest(self.call_s)  # of the last sample: a slow case gets none
        for _, call in zip(range(BURST_CALLS), cycle(calls), strict=False):
            if spent_s > BURST_S:
                break
            self.before(call)
            result = call()
            clock.synchronize()
            self.behind(call, result)
            spent_s += clock.slowest(self.call_s)
        self.settle()

    def settle(self) -> None:
        """Compare what was copied aside.

        Raises:
            MismatchError: some of it differs from the reference.
        """
        looks, self.looks = self.looks, []
        for number, copies in looks:
            got = tuple(tensor.cpu() for tensor in copies)
            require_like(self.case, self.value, got, *self.want[number])

    def _wanted(self, inputs: Sequence[Tensors]) -> dict[int, tuple[Tensors, Tolerance]]:
        """What the calls must return at these tokens, and the tolerance, by the identity of their input."""
        excerpts = [self.verifier.excerpt(self.tasks, tensors, self.positions) for tensors in inputs]
        few = len(self.positions)
        if len(inputs) == 1:
            want, tolerance = self.verifier.wanted(self.tasks, excerpts[0])
            return {id(inputs[0]): (tuple(tensor[:few] for tensor in want), tolerance)}
        together = tuple(tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*excerpts, strict=True))
        want, tolerance = self.verifier.wanted(self.tasks, together)  # one matrix product for all
        parts = zip(*(tensor.split(few) for tensor in want), strict=True)
        tolerances = tolerance.split(few) if isinstance(tolerance, torch.Tensor) else [tolerance] * len(inputs)
        return {id(tensors): (part, own) for tensors, part, own in zip(inputs, parts, tolerances, strict=True)}

    def _copies(self, value: str, tensors: Tensors, positions: torch.Tensor) -> Tensors:
        """What tensors hold at some tokens; the first rows of those without tokens, such as a history."""
        copies = []
        for tensor in tensors:
            view = by_token(value, tensor, self.tokens)
            few = (
                tensor[: len(positions)].clone()
                if view is None
                else view.index_select(0, self._places(view, positions))
            )
            copies.append(few)
        return tuple(copies)

    def _places(self, view: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        key = id(positions), view.device
        if key not in self.places:
            self.places[key] = positions.to(view.device)
        return self.places[key]
