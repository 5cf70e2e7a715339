"""The row ids of a workload, in the order in which a model would ask for them, without a table or a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import NO_TOKEN
from engram_exp.layer.tokens.streams import cut_streams
from engram_exp.machine.placement import Placement
from engram_exp.reuse.curves import TableShape
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan
from engram_exp.steps.hashing.numba import NumbaHasher


class Workload:
    """Token ids of a source, and the row ids that a layer's hash makes of them.

    Args:
        config: as a run has it; its tokens, model, dtype, layer and seed count.
    """

    def __init__(self, config: DictConfig) -> None:
        self.parts = Parts(Plan(config))
        self.geometry, self.seed = self.parts.geometry, int(config.seed)

    @property
    def shape(self) -> TableShape:
        """What curves need to know of the layer's table."""
        orders = [order for order in self.geometry.orders for _ in range(self.geometry.heads)]
        return TableShape(orders, self.geometry.row_bytes)

    @property
    def concurrency(self) -> int:
        """Streams that the source itself has; 1 if it says nothing of them."""
        return getattr(self.parts.token_source, "concurrency", None) or 1

    def row_ids(self, most_tokens: int, streams: int) -> np.ndarray:
        """Row ids [T, H] of at most so many tokens, cut into streams of equal length that take a token each in turn: as
        batches of one-token sequences continue them (`tokens.streams.Streams`).

        Raises:
            ConfigError: the source knows no order of its ids, or has too few of them.
        """
        source: Any = self.parts.token_source
        if not hasattr(source, "stream"):
            raise ConfigError("tokens", None, f"{type(source).__name__} has no `stream` of ids in their order")
        ids = source.stream(most_tokens, self.seed)
        cut = torch.from_numpy(cut_streams(ids, streams).copy())
        if cut.shape[1] < 2:
            raise ConfigError("tokens", None, f"has {len(ids)} ids, fewer than two for each of {streams} streams")
        history = torch.full((streams, self.geometry.max_order - 1), NO_TOKEN)
        hasher = NumbaHasher(self.parts.hash_plan, cut.numel(), Placement(torch.device("cpu")))
        return hasher(cut, history).transpose(0, 1).reshape(cut.numel(), -1).contiguous().numpy()
