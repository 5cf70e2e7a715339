"""The weights of a run's layer, where they are read."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from engram_exp.config.derived import fuses
from engram_exp.config.options import CPU
from engram_exp.layer.fusion import FusionWeights
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.run.plan import Plan

FUSION_SEED = 2**32  # added to the seed: no run draws its other weights from these

Weights = TypeVar("Weights", ProjectionWeights, FusionWeights)


class LayerWeights:
    """Parameters of the layer's projection and fusion, drawn when they are asked for.

    Args:
        plan: of the run.
        seed: of the layer.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self._copies: dict[tuple[torch.device, int], Any] = {}

    @cached_property
    def projection(self) -> ProjectionWeights:
        """The projection's, on the CPU."""
        weights = ProjectionWeights.draw(self.plan.geometry, self.plan.dtype, self.seed)
        return replace(weights, norms_keys=not fuses(self.plan.config))

    @cached_property
    def share(self) -> ProjectionWeights:
        """Those of this rank, where ranks make the columns between them."""
        return self.projection.share(self.plan.ranks.rank, self.plan.ranks.size)

    @cached_property
    def fusion(self) -> FusionWeights:
        """The fusion's, on the CPU."""
        return FusionWeights.draw(self.plan.geometry, self.projection, self.seed + FUSION_SEED)

    def on(self, device: torch.device, weights: Weights) -> Weights:
        """One copy of some of these for all who need it there: the chunks of a pipeline share them."""
        key = device, id(weights)
        if key not in self._copies:
            self._copies[key] = weights if device == CPU else weights.to(device)
        copy: Weights = self._copies[key]
        return copy
