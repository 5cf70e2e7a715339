"""DeepSeek's hash, of compressed ids: section 2.2 of arXiv 2601.07372, with constants of its public demonstration."""

from __future__ import annotations

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.compression import TokenCompression
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.layer.hash_plan import HashPlan

LAYER_SEED_STEP = 10007


class DeepSeekHash:
    """Hashes compressed ids; multipliers are drawn for each layer.

    Args:
        compression: of the model's tokenizer.
        hash_seed: of the multipliers.
        pad_id: the token id that stands before the start of a sequence.

    Raises:
        ConfigError: the pad id is outside the vocabulary.
    """

    def __init__(self, compression: TokenCompression, hash_seed: int, pad_id: int) -> None:
        if pad_id >= compression.vocab_size:
            raise ConfigError("model.pad_id", pad_id, f"the tokenizer has {compression.vocab_size} ids")
        self.compression, self.hash_seed, self.pad_id = compression, hash_seed, pad_id

    @property
    def vocab_size(self) -> int:
        """The tokenizer's ids."""
        return self.compression.vocab_size

    def __call__(self, geometry: EngramGeometry) -> HashPlan:
        """Draw the constants of `geometry.layer`: multipliers so small that no product reaches 2^63."""
        table = self.compression.lookup_table
        bound = max(1, np.iinfo(np.int64).max // self.compression.compressed_vocab_size // 2)
        random = np.random.default_rng(self.hash_seed + LAYER_SEED_STEP * geometry.layer)
        draws = random.integers(0, bound, size=geometry.max_order, dtype=np.int64)
        return HashPlan.build(geometry, draws * 2 + 1, pad=int(table[self.pad_id]), compressed_ids=table)
