"""What a model brings to its layer: the hidden state of a step's tokens, and what was before them."""

from __future__ import annotations

from functools import cached_property

import torch

from engram_exp.run.plan import Plan
from engram_exp.stage import Task, Tensors
from engram_exp.vocabulary import DEVICE

MODEL_SEED = 2**33  # added to the seed: no run draws its weights from these
PATTERN_TOKENS = 256  # of random hidden state, repeated


class ModelState:
    """Tensors of the model, on the device and always at one place, drawn from the run's seed.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.geometry = plan, plan.geometry

    @cached_property
    def hidden(self) -> torch.Tensor:
        """The hidden state [T, M, C] in the compute dtype."""
        geometry = self.geometry
        return self._draw(0, self.plan.tokens, geometry.hc_mult, geometry.hidden_size, dtype=self.plan.dtype)

    @cached_property
    def history_value(self) -> torch.Tensor:
        """What the convolution reads of what was before each sequence, beside the hidden state: values [B, R, C] ..."""
        geometry, sequences = self.geometry, self.plan.config.batch_size
        return self._draw(1, sequences, geometry.conv_reach, geometry.hidden_size, dtype=self.plan.dtype)

    @cached_property
    def history_scale(self) -> torch.Tensor:
        """... and their scales, float32 [B, R, M]; 0 where `tokens.history=false` lets sequences start afresh."""
        geometry, sequences = self.geometry, self.plan.config.batch_size
        scales = self._draw(2, sequences, geometry.conv_reach, geometry.hc_mult, dtype=torch.float32)
        return scales.zero_() if self.plan.config.tokens.get("history") is False else scales.abs_()

    def brought(self, task: Task) -> Tensors:
        """What the model brings to a stage, as the stage's kind names it."""
        return tuple(getattr(self, name) for name in task.kind.brings(task.load))

    def _draw(self, number: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(self.plan.config.seed) + MODEL_SEED + number)
        buffer = self.plan.memory(DEVICE).empty(*shape, dtype=dtype)
        repeat(torch.randn(min(shape[0], PATTERN_TOKENS), *shape[1:], generator=generator), buffer)
        return buffer


def repeat(pattern: torch.Tensor, tensor: torch.Tensor) -> None:
    """Fill a tensor with a pattern of the same shape, but for the first dimension, again and again."""
    pattern = pattern.to(tensor.device, tensor.dtype)
    for part in tensor.split(len(pattern)):
        part.copy_(pattern[: len(part)])
