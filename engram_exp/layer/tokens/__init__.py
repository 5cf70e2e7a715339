"""Workloads: where token ids come from.

Every source is called as `(batch_size, seq_len, seed)` and returns a `Batch`; equal arguments give equal ids. Its
`stream(tokens, seed)` returns ids in the order in which a model would meet them, int64, at most so many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

NO_TOKEN = -1  # in a history: before the start of the sequence


class Batch(NamedTuple):
    """Token ids on the CPU.

    ids: int64 [B, L], in [0, vocab).
    history: int64 [B, N - 1], the ids before each sequence, oldest first; -1 before its start.
    """

    ids: torch.Tensor
    history: torch.Tensor


class DrawnTokens(ABC):
    """Sequences cut from a stream of ids that a subclass draws.

    Args:
        history_len: N - 1.
        history: whether sequences are preceded by ids, or start afresh.
    """

    def __init__(self, history_len: int, history: bool) -> None:
        self.history_len, self.history = history_len, history

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Draw B sequences of L ids."""
        stream = self.stream(batch_size * (self.history_len + seq_len), seed).reshape(batch_size, -1)
        return split(stream, self.history_len, self.history)

    @abstractmethod
    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""


def distinct_batches(
    source: Callable[[int, int, int], Batch], seeds: Iterable[int], shape: tuple[int, int]
) -> list[Batch]:
    """A batch of [B, L] ids for each seed, but no two the same: a file of ids may hold fewer."""
    drawn = (source(*shape, seed) for seed in seeds)
    return list({tuple(tensor.numpy().tobytes() for tensor in batch): batch for batch in drawn}.values())


def split(stream: np.ndarray, history_len: int, keep_history: bool) -> Batch:
    """Sequences of ids [B, N - 1 + L] as a batch, with the first N - 1 of each as history or without."""
    history, ids = stream[:, :history_len].copy(), stream[:, history_len:].copy()
    if not keep_history:
        history.fill(NO_TOKEN)
    return Batch(torch.from_numpy(ids), torch.from_numpy(history))
