"""Strategies: stages in a row, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engram_exp.tokens import Batch


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Args:
        name: as the case and the CSV call it.
        place: host, link or device.
        run: takes the tensors that the stage before it returned and returns its own.
        bytes_moved: the fewest bytes it must move (see `EngramGeometry.bytes_moved`).
        flops: floating-point operations.
    """

    name: str
    place: str
    run: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
    bytes_moved: int
    flops: int


@dataclass(frozen=True)
class Strategy:
    """Stages in order; called on a batch, it returns keys [T, M, C] and value [T, C] on the device."""

    stages: Sequence[Stage]

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Run every stage. Work on the device may still be under way when this returns."""
        tensors: tuple[torch.Tensor, ...] = batch
        for stage in self.stages:
            tensors = stage.run(tensors)
        return tensors


def as_stage_function(component: Callable[..., Any]) -> Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """Let a component that takes tensors and returns one or several be chained with others."""

    def run(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        result = component(*tensors)
        return result if isinstance(result, tuple) else (result,)

    return run
