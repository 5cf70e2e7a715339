"""Values that no stage made: input of a stage that is timed alone, and input that was never shown before."""

from __future__ import annotations

from dataclasses import replace

import torch

from engram_exp.layer.excerpt import by_token
from engram_exp.run.kinds import KINDS
from engram_exp.run.model_state import PATTERN_TOKENS, repeat
from engram_exp.run.parts import Parts
from engram_exp.run.verify import judge_of
from engram_exp.stage import PlannedStage, Task, Tensors
from engram_exp.vocabulary import LINK, STEPS, TOKEN_IDS


class MadeUp:
    """Makes values up as the steps of a strategy would make them.

    Args:
        parts: of the run.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.plan = parts, parts.plan

    def input_of(self, stage: PlannedStage) -> Tensors:
        """What a stage could read, in memory as the stage before it would leave it in."""
        placement = self.plan.memory(stage.read_from, crosses=stage.place == LINK)
        if stage.needs == TOKEN_IDS:
            return tuple(tensor.to(placement.device) for tensor in self.parts.batches[0])
        maker, pattern = self._maker(stage.needs), self._pattern(stage.needs)
        buffer = placement.empty(self.plan.tokens, *pattern.shape[1:], dtype=pattern.dtype)
        tensors = maker.kind.arranged(buffer, maker.load)
        self._fill(stage.needs, tensors, pattern)
        return tensors

    def renew(self, value: str, tensors: Tensors) -> None:
        """Write other contents to where a value lies."""
        if value == TOKEN_IDS:
            tensors[0].random_(self.parts.hash.of_model.vocab_size)
        else:
            self._fill(value, tensors, self._pattern(value))

    def renew_brought(self, task: Task) -> None:
        """Write other contents to where the model has what it brings to a stage."""
        for tensor in self.parts.model_state.brought(task):
            repeat(torch.randn(min(len(tensor), PATTERN_TOKENS), *tensor.shape[1:]), tensor)

    def _pattern(self, value: str) -> torch.Tensor:
        return judge_of(self._maker(value)).example(self.parts.reference, PATTERN_TOKENS)

    def _fill(self, value: str, tensors: Tensors, pattern: torch.Tensor) -> None:
        maker, tokens = self._maker(value), len(pattern)
        pieces = maker.kind.arranged(pattern, replace(maker.load, sequences=tokens, tokens=tokens))
        for tensor, piece in zip(tensors, pieces, strict=True):
            whole, few = by_token(value, tensor, self.plan.tokens), by_token(value, piece, tokens)
            assert whole is not None
            assert few is not None
            repeat(few, whole)

    def _maker(self, value: str) -> Task:
        """The step that makes a value, as the strategy has it if it does."""
        own = next((stage for stage in self.plan.stages if stage.makes == value != stage.needs), None)
        if own:
            return self.plan.task(own)
        (step,) = (step for step in STEPS if step.makes == value)
        return Task(KINDS[step.name], self.plan.task(self.plan.stages[0]).load)
