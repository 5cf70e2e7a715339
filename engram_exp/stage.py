"""Strategies: stages in a row, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Args:
        name: as the case and the CSV call it.
        place: host, link or device.
        run: takes the tensors that the stage before it returned and returns its own.
    """

    name: str
    place: str
    run: Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Strategy:
    """Stages in a row; all of them, called on a batch, return keys [T, M, C] and value [T, C] on the device."""

    stages: Sequence[Stage]

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run every stage. Work on the device may still be under way when this returns, and reads buffers that the next
        call writes: the caller waits in between."""
        for stage in self.stages:
            tensors = stage.run(tensors)
        return tensors


def as_stage_function(component: Callable[..., Any]) -> Callable[[Tensors], Tensors]:
    """Let a component that takes tensors and returns one or several be chained with others."""

    def run(tensors: Tensors) -> Tensors:
        result = component(*tensors)
        return result if isinstance(result, tuple) else (result,)

    return run
