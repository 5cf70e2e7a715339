"""The caches of rows of a model's layers: what steps that are timed read, and what they are to find kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from engram_exp.layer.tokens import Batch
from engram_exp.measure.clock import Clock
from engram_exp.run.row_cache import SteadyAgain, is_in, require_kept, restore_of
from engram_exp.run.step_layer import TableLayer
from engram_exp.run.step_runs import StepRuns
from engram_exp.stage import Tensors
from engram_exp.vocabulary import COLD, FETCH, IN_STEP, STEADY, WARM


class StepCaches:
    """The caches of the layers of a model's step, by the cases that fetch rows with them; none where no lookup keeps
    rows.

    Args:
        layers: with tables.
        runs: of all cases.
        clock: of their device.
    """

    def __init__(self, layers: Sequence[TableLayer], runs: StepRuns, clock: Clock) -> None:
        self.layers, self.runs, self.clock = layers, runs, clock

    def inputs(self, case: str) -> list[Batch]:
        """The batches of a case: all where each has rows of its own to be fetched; behind those that caches have seen,
        if they are to be steady."""
        batches = self.runs.batches
        if case not in (FETCH, IN_STEP):
            return batches[:1]
        return batches[len(batches) // 2 :] if self._is_in(case, STEADY) else batches

    def are_restored(self, case: str) -> bool:
        """Whether caches of a case are put back to a state before each call."""
        return self._is_in(case, COLD) or self._is_in(case, STEADY)

    def restore(
        self, case: str, before: Callable[[Batch], Sequence[Batch]]
    ) -> Callable[[partial[Tensors]], None] | None:
        """What is done before each call: the rows of its first step are fetched, if the step before that does it; rows
        that are to be fetched again are forgotten.

        Args:
            case: that is timed.
            before: the batches of the steps that come before one in a sample.
        """
        if self._is_in(case, STEADY):
            return SteadyAgain(self._warm_steady, lambda call: (*before(*call.args), *call.args))
        forget = restore_of([layer.counting[case] for layer in self._counting(case)])
        ahead = self.runs.ahead
        if case != IN_STEP or not ahead:
            return forget

        def restore(call: partial[Tensors]) -> None:
            (batch,) = call.args
            ahead.expect((*before(batch), batch)[0])
            if forget:
                forget(call)

        return restore

    def warm(self, case: str) -> None:
        """Let the caches of a case that are not to be cold see the batches that they are to have seen."""
        if self._is_in(case, STEADY):
            self._warm_steady()
        elif self._is_in(case, WARM):
            for batch in self.inputs(case):
                self.runs.runs[case](batch)
                self.clock.synchronize()

    def verify(self, case: str) -> None:
        """Compare all rows that the caches of a case keep with their tables.

        Raises:
            MismatchError: some differ.
        """
        for layer in self._counting(case):
            if layer.counting[case].keeps_rows:
                require_kept(case, layer.counting[case], layer.parts.table)

    def _counting(self, case: str) -> list[TableLayer]:
        """The layers whose rows a case fetches with a lookup that counts."""
        return [layer for layer in self.layers if case in layer.counting]

    def _is_in(self, case: str, state: str) -> bool:
        """Whether some caches of a case are to be found so."""
        return any(is_in(layer.counting[case], state) for layer in self._counting(case))

    def _warm_steady(self) -> None:
        """Empty the caches, and show them the first half of the batches."""
        for layer in self._counting(FETCH):
            if is_in(layer.counting[FETCH], STEADY):
                layer.counting[FETCH].reset()
        for batch in self.runs.batches[: len(self.runs.batches) // 2]:
            self.runs.runs[FETCH](batch)
            self.clock.synchronize()
