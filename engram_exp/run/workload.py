"""The row ids of a workload, in the order in which a model would ask for them, without a table or a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import split
from engram_exp.layer.tokens.streams import Streams, cut_streams
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
        self.geometry, self.seed = self.parts.plan.geometry, int(config.seed)

    @property
    def shape(self) -> TableShape:
        """What curves need to know of the layer's table."""
        orders = [order for order in self.geometry.orders for _ in range(self.geometry.heads)]
        return TableShape(orders, self.geometry.row_bytes)

    @property
    def concurrency(self) -> int:
        """Streams that the source itself has; 1 if it says nothing of them."""
        return self._own.concurrency if self._own else 1

    def row_ids(self, most_tokens: int, streams: int) -> np.ndarray:
        """Row ids [T, H] of at most so many tokens, in streams of equal length that take a token each in turn, as
        batches of one-token sequences continue them: those of the source, if it has as many, else cut from it.

        Raises:
            ConfigError: the source knows no order of its ids, or has too few of them.
        """
        source: Any = self.parts.batches.source
        if not hasattr(source, "stream"):
            raise ConfigError("tokens", None, f"{type(source).__name__} has no `stream` of ids in their order")
        history_len = self.geometry.max_order - 1
        if self._own and self._own.concurrency == streams:
            cut = self._own.heads(most_tokens)
        else:
            cut = cut_streams(source.stream(most_tokens, self.seed), streams, history_len)
        length = cut.shape[1] - history_len
        if length < 2:
            raise ConfigError("tokens", None, f"has {length} ids for each of {streams} streams, fewer than two")
        batch = split(cut.astype(np.int64), history_len, keep_history=True)
        hasher = NumbaHasher(self.parts.hash.plan, batch.ids.numel(), Placement(torch.device("cpu")))
        return hasher(*batch).transpose(0, 1).reshape(batch.ids.numel(), -1).contiguous().numpy()

    @property
    def _own(self) -> Streams | None:
        source: Any = self.parts.batches.source
        return source if isinstance(source, Streams) else getattr(source, "streams", None)
