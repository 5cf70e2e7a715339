"""The hash of Qwen3.8-Flash-Next's tables, of raw ids, as a released serving engine computes it."""

from __future__ import annotations

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.splitmix import GOLDEN_GAMMA, mix

LAYER_SEED_STEP = 10007


class QwenHash:
    """Hashes token ids as they are; nothing crosses an end-of-text id, which also stands before each sequence.

    Args:
        vocab_size: token ids that exist; multipliers are so small that no product of one of them reaches 2^63.
        eos_id: the end-of-text id.
        hash_seed: of the multipliers.

    Raises:
        ConfigError: no ids, or the end-of-text id is none of them.
    """

    def __init__(self, vocab_size: int, eos_id: int, hash_seed: int) -> None:
        if vocab_size < 1:
            raise ConfigError("model.vocab_size", vocab_size, "must be at least 1")
        if not 0 <= eos_id < vocab_size:
            raise ConfigError("model.eos_id", eos_id, f"must be 0 to {vocab_size - 1}, below model.vocab_size")
        self.vocab_size, self.eos_id, self.hash_seed = vocab_size, eos_id, hash_seed

    def __call__(self, geometry: EngramGeometry) -> HashPlan:
        """The constants of `geometry.layer`. Multiplier i is 2 (s_i mod half) + 1, where s_i is the output i + 2 of
        SplitMix64 (the first is left out) from a state that grows with the layer's number among those with tables, and
        half is (2^63 - 1) / vocab_size / 2, rounded down but at least 1."""
        half = max(1, np.iinfo(np.int64).max // self.vocab_size // 2)
        seed = np.array((self.hash_seed + LAYER_SEED_STEP * geometry.number) % 2**64, dtype=np.uint64)
        with np.errstate(over="ignore"):
            states = seed + GOLDEN_GAMMA * np.arange(2, geometry.max_order + 2, dtype=np.uint64)
        draws = (mix(states) % np.uint64(half)).astype(np.int64)
        return HashPlan.build(geometry, draws * 2 + 1, pad=self.eos_id, end=self.eos_id)
