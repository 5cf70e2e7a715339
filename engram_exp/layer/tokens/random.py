"""Ids drawn uniformly."""

from __future__ import annotations

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import DrawnTokens


class RandomTokens(DrawnTokens):
    """Ids drawn uniformly: the worst case for every cache.

    Args:
        vocab_size: ids that exist.
        history_len: N - 1.
        share: ids are drawn from the first `share` of the vocabulary, 0 < share <= 1.
        history: whether sequences are preceded by ids, or start afresh.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(self, vocab_size: int, history_len: int, share: float, history: bool) -> None:
        if not 0 < share <= 1:
            raise ConfigError("tokens.share", share, "must be above 0 and at most 1")
        super().__init__(history_len, history)
        self.limit = max(1, int(vocab_size * share))

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""
        return np.random.default_rng(seed).integers(0, self.limit, size=tokens, dtype=np.int64)
