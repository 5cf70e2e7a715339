"""What the references of a layer are computed from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from hydra.utils import get_class

from engram_exp.layer.fusion import FusionWeights
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.run.layer_hash import LayerHash
from engram_exp.run.layer_weights import LayerWeights
from engram_exp.run.plan import Plan


class LayerReference:
    """A layer's rows and parameters as they should be, on the CPU: the `Reference` of its stages.

    Args:
        plan: of the run.
        seed: of the table.
        layer_hash, weights: of the layer.
        table: gives the layer's, which is asked only where it was found.
    """

    def __init__(
        self, plan: Plan, seed: int, layer_hash: LayerHash, weights: LayerWeights, table: Callable[[], Any]
    ) -> None:
        self.geometry, self.row_format = plan.geometry, plan.row_format
        self.tolerance = float(plan.config.dtype.tolerance)
        self._plan, self._hash, self._weights, self._seed, self._table = plan, layer_hash, weights, seed, table

    @property
    def hash_plan(self) -> HashPlan:
        """The layer's hash constants."""
        return self._hash.plan

    @cached_property
    def reference_weights(self) -> ProjectionWeights:
        """The projection's parameters, in float32."""
        return self._weights.projection.to(torch.float32)

    @cached_property
    def reference_fusion(self) -> FusionWeights:
        """The fusion's, likewise."""
        return self._weights.fusion.to(torch.float32)

    def stored(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] of row ids: computed anew, or read plainly where the table was
        found."""
        if getattr(get_class(self._plan.config.table._target_), "is_found", False):
            found: torch.Tensor = self._table().contents(row_ids)
            return found
        return self.row_format.contents(row_ids, self._seed)
