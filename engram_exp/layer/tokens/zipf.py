"""Ids drawn by Zipf's law."""

from __future__ import annotations

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import DrawnTokens


class ZipfTokens(DrawnTokens):
    """Ids drawn independently by Zipf's law: the k-th of them, id k - 1, with a probability proportional to
    1 / k^exponent. Real text repeats whole n-grams, too; this repeats tokens alone.

    Args:
        vocab_size: ids that exist.
        history_len: N - 1.
        exponent: 0 draws uniformly; word frequencies of a language follow about 1.
        history: whether sequences are preceded by ids, or start afresh.

    Raises:
        ConfigError: `exponent` below 0.
    """

    def __init__(self, vocab_size: int, history_len: int, exponent: float, history: bool) -> None:
        if not 0 <= exponent < np.inf:
            raise ConfigError("tokens.exponent", exponent, "must be at least 0")
        super().__init__(history_len, history)
        weights = np.arange(1, vocab_size + 1, dtype=np.float64) ** -exponent
        self.cumulative = np.cumsum(weights) / weights.sum()

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""
        drawn = np.random.default_rng(seed).random(tokens)
        ids = np.searchsorted(self.cumulative, drawn, side="right")
        return np.minimum(ids, len(self.cumulative) - 1).astype(np.int64)  # the last sum may round to less than 1
