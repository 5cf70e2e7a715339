"""The batches of token ids that a run takes from its source, and those behind them that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from engram_exp.config.derived import batches_of
from engram_exp.errors import ConfigError
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.tokens import Batch, distinct_batches
from engram_exp.run.plan import Plan
from engram_exp.vocabulary import HOST, OWN


class Batches:
    """Token batches of a source, no two the same.

    Args:
        plan: of the run.
        source: where token ids come from.
    """

    def __init__(self, plan: Plan, source: Any) -> None:
        self.plan, self.source = plan, source

    @cached_property
    def of_run(self) -> list[Batch]:
        """Those of this rank or of all; a source of few ids may give fewer than configured."""
        first, number = self._seeds
        batches = self.draw(range(first, first + number))
        return pinned(self.plan, batches) if self.plan.stages[0].is_upload else batches

    @property
    def _seeds(self) -> tuple[int, int]:
        """The first seed of the run's batches, and how many there are; of all layers of a step. Ranks that ask for
        their own have others each."""
        number, seed = batches_of(self.plan.config), int(self.plan.config.seed)
        if self.plan.config.rank_batches == OWN:
            seed = seed * self.plan.ranks.size + self.plan.ranks.rank
        return seed * number, number

    def draw(self, seeds: Sequence[int]) -> list[Batch]:
        """Batches of these seeds."""
        config = self.plan.config
        return distinct_batches(self.source, seeds, (config.batch_size, config.seq_len))

    def row_ids_behind(self, tokens: int, hash_plan: HashPlan) -> np.ndarray:
        """Row ids that batches behind those of the run ask for, none of which the run has: of so many tokens at least,
        or of all that the source has.

        Raises:
            ConfigError: the source has none.
        """
        (first, own), more = self._seeds, -(-tokens // self.plan.tokens)
        others = self.draw(range(first, first + own + more))[len(self.of_run) :]
        if not others:
            remedy = "holds no batch but those of the run, of which no profile is made; fewer batches would leave some"
            raise ConfigError("tokens", None, remedy)
        ids, history = map(torch.cat, zip(*others, strict=True))
        return hash_plan.row_ids(ids, history).numpy().reshape(-1)


def pinned(plan: Plan, batches: Sequence[Batch]) -> list[Batch]:
    """Copies of batches of one shape in pinned memory, ids and history of each side by side, from where one transfer
    takes them to the device."""
    numbers = [tensor.numel() for tensor in batches[0]]
    rows = plan.memory(HOST, crosses=True).empty(len(batches), sum(numbers), dtype=torch.int64)
    return [
        Batch(*(part.view(of.shape).copy_(of) for part, of in zip(row.split(numbers), batch, strict=True)))
        for row, batch in zip(rows, batches, strict=True)
    ]
