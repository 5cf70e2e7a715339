"""Streams of ids that take turns: what sequences of batches continue."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import NO_TOKEN, Batch, split


class Streams:
    """Sequences that continue streams in turn: of the sequences of all batches, counted through, the j-th goes on where
    stream j modulo K stopped. With K = B each sequence of a batch is a stream of its own, which the next batch
    continues; with K = 1 every sequence follows the one before it.

    Args:
        ids: [K, N - 1 + T], streams of T ids, each behind the N - 1 ids before it, -1 where there are none.
        history_len: N - 1.
        history: whether sequences carry the ids that their stream had before them, or start afresh.
        path: of the file that they come from, None for what every installation has.
    """

    def __init__(self, ids: np.ndarray, history_len: int, history: bool, path: str | None) -> None:
        self.ids, self.history_len, self.history, self.path = ids, history_len, history, path

    @property
    def concurrency(self) -> int:
        """K."""
        return len(self.ids)

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """The `seed`-th batch of B sequences of L ids, starting over after the last.

        Raises:
            ConfigError: the streams are shorter than one batch.
        """
        count, length = self.concurrency, self.ids.shape[1] - self.history_len
        batches = count * (length // seq_len) // batch_size
        if not batches:
            needed = -(-batch_size // count) * seq_len
            remedy = (
                f"{count} stream{'s' * (count > 1)} (tokens.concurrency) of {length} ids are shorter than a batch of "
                f"batch_size={batch_size} sequences of seq_len={seq_len}, which takes {needed} of each"
            )
            raise ConfigError("tokens.path", self.path, remedy)
        turns = seed % batches * batch_size + np.arange(batch_size)[:, None]
        places = turns // count * seq_len + np.arange(self.history_len + seq_len)
        return split(self.ids[turns % count, places].astype(np.int64), self.history_len, self.history)

    def heads(self, tokens: int) -> np.ndarray:
        """The streams up to a length at which they have so many ids in all, at most: [K, N - 1 + T]."""
        return self.ids[:, : self.history_len + tokens // self.concurrency]

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """The ids of these behind each other, whatever the seed."""
        return self.heads(tokens)[:, self.history_len :].astype(np.int64).ravel()


def cut_streams(ids: np.ndarray, count: int, history_len: int) -> np.ndarray:
    """Ids [T] as K streams of equal length, one where the other ends: [K, N - 1 + T // K], each behind the N - 1 ids
    before it, -1 where there are none.

    Raises:
        ConfigError: `count` below 1.
    """
    if count < 1:
        raise ConfigError("tokens.concurrency", count, "must be at least 1, or null")
    length = len(ids) // count
    begun = np.concatenate([np.full(history_len, NO_TOKEN, dtype=np.int32), ids.astype(np.int32)])
    return sliding_window_view(begun, history_len + length)[np.arange(count) * length]
