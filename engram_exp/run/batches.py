"""The batches of token ids that a run takes from its source, and those behind them that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch

from engram_exp.config.derived import batches_of
from engram_exp.errors import ConfigError
from engram_exp.layer.profile import profile_file, read_profile
from engram_exp.layer.tokens import Batch, distinct_batches
from engram_exp.run.layer_hash import LayerHash
from engram_exp.run.plan import Plan
from engram_exp.vocabulary import HOST, OWN


class Batches(Sequence[Batch]):
    """The run's token batches, of this rank or of all, no two the same; drawn when they are asked for. A source of few
    ids may give fewer than configured.

    Args:
        plan: of the run.
        layer_hash: of its layer.
        make_source: makes what token ids come from.
    """

    def __init__(self, plan: Plan, layer_hash: LayerHash, make_source: Callable[[], Any]) -> None:
        self.plan, self.layer_hash, self.make_source = plan, layer_hash, make_source

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        return self._of_run[index]

    def __len__(self) -> int:
        return len(self._of_run)

    @cached_property
    def source(self) -> Any:
        """Where token ids come from."""
        return self.make_source()

    @cached_property
    def _of_run(self) -> list[Batch]:
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

    def profile(self, tokens: int, path: str | None = None) -> np.ndarray:
        """Row ids that batches behind those of the run ask for, none of which the run has: of so many tokens at least,
        or of all that the source has; or what the file at `path` holds.

        Raises:
            ConfigError: the source has none, or the file is no profile of this table.
        """
        if path is not None:
            return read_profile(profile_file(path, self.plan.geometry.layer), self.layer_hash.plan)
        (first, own), more = self._seeds, -(-tokens // self.plan.tokens)
        others = self.draw(range(first, first + own + more))[len(self) :]
        if not others:
            remedy = "holds no batch but those of the run, of which no profile is made; fewer batches would leave some"
            raise ConfigError("tokens", None, remedy)
        ids, history = map(torch.cat, zip(*others, strict=True))
        return self.layer_hash.plan.row_ids(ids, history).numpy().reshape(-1)


def pinned(plan: Plan, batches: Sequence[Batch]) -> list[Batch]:
    """Copies of batches of one shape in pinned memory, ids and history of each side by side, from where one transfer
    takes them to the device."""
    numbers = [tensor.numel() for tensor in batches[0]]
    rows = plan.memory(HOST, crosses=True).empty(len(batches), sum(numbers), dtype=torch.int64)
    return [
        Batch(*(part.view(of.shape).copy_(of) for part, of in zip(row.split(numbers), batch, strict=True)))
        for row, batch in zip(rows, batches, strict=True)
    ]
