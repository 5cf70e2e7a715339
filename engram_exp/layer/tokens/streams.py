"""Streams of ids that take turns: what sequences of batches continue."""

from __future__ import annotations

import numpy as np
import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import NO_TOKEN, Batch


class Streams:
    """Sequences that continue streams in turn: of the sequences of all batches, counted through, the j-th goes on where
    stream j modulo K stopped. With K = B each sequence of a batch is a stream of its own, which the next batch
    continues; with K = 1 every sequence follows the one before it.

    Args:
        ids: [T], whole numbers; cut into streams of equal length, without what is left over.
        count: K.
        history_len: N - 1.
        history: whether sequences carry the ids that their stream had before them, or start afresh.
        path: of the file that they come from, None for what every installation has.

    Raises:
        ConfigError: `count` below 1.
    """

    def __init__(self, ids: np.ndarray, count: int, history_len: int, history: bool, path: str | None) -> None:
        if count < 1:
            raise ConfigError("tokens.concurrency", count, "must be at least 1, or null")
        self.tokens = len(ids)
        self.cut = cut_streams(ids, count)
        self.history_len, self.history, self.path = history_len, history, path

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """The `seed`-th batch of B sequences of L ids, starting over after the last.

        Raises:
            ConfigError: the streams are shorter than one batch.
        """
        count, length = self.cut.shape
        batches = count * (length // seq_len) // batch_size
        if not batches:
            needed = count * seq_len * -(-batch_size // count)
            remedy = (
                f"holds {self.tokens} ids, fewer than the {needed} of a batch of batch_size={batch_size} sequences of "
                f"seq_len={seq_len} from {count} stream{'s' * (count > 1)} (tokens.concurrency)"
            )
            raise ConfigError("tokens.path", self.path, remedy)
        turns = seed % batches * batch_size + np.arange(batch_size)
        places = (turns // count * seq_len)[:, None] + np.arange(-self.history_len, seq_len)
        drawn = self.cut[turns[:, None] % count, np.maximum(places, 0)].astype(np.int64)
        history, ids = drawn[:, : self.history_len], drawn[:, self.history_len :]
        begun = self.history & (places[:, : self.history_len] >= 0)
        return Batch(torch.from_numpy(ids.copy()), torch.from_numpy(np.where(begun, history, NO_TOKEN)))

    @property
    def concurrency(self) -> int:
        """K."""
        return len(self.cut)

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """The head of each stream, behind each other, whatever the seed: at most so many ids in all."""
        return self.cut[:, : tokens // self.concurrency].astype(np.int64).ravel()


def cut_streams(ids: np.ndarray, count: int) -> np.ndarray:
    """Ids [T] as streams [K, T // K], each a stretch of them."""
    length = len(ids) // count
    return ids[: length * count].reshape(count, length)
