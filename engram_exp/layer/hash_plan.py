"""The constants of one layer's hash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.compression import TokenCompression
from engram_exp.layer.geometry import EngramGeometry

LAYER_SEED_STEP = 10007


@dataclass(frozen=True)
class HashPlan:
    """What a hasher needs to know. Section 2.2 of arXiv 2601.07372, with the constants of its public demonstration.

    With t_k the compressed id k positions back, r_0 = t_0 m_0 and r_k = r_(k-1) xor (t_k m_k); a column of order n has
    the row id r_(n-1) mod `modulus` + `offset`. Products stay below 2^63, so nothing overflows.

    Args:
        compressed_ids: int32 [vocab], token id -> compressed id.
        pad: the compressed id that stands before the start of a sequence.
        multipliers: int64 [N], odd.
        moduli: int64 [H], distinct primes: the rows of each column.
        offsets: int64 [H], the first row of each column.
        first_column: int64 [N + 1]; the columns of order n are first_column[n - 1] to first_column[n] - 1.
        row_id_dtype: int32 where the table allows it, else int64.
    """

    compressed_ids: np.ndarray
    pad: int
    multipliers: np.ndarray
    moduli: np.ndarray
    offsets: np.ndarray
    first_column: np.ndarray
    row_id_dtype: torch.dtype

    @classmethod
    def build(cls, geometry: EngramGeometry, compression: TokenCompression) -> HashPlan:
        """Draw the constants of `geometry.layer`.

        Raises:
            ConfigError: the pad id is outside the vocabulary.
        """
        if geometry.pad_id >= compression.vocab_size:
            raise ConfigError("model.pad_id", geometry.pad_id, f"the tokenizer has {compression.vocab_size} ids")
        bound = max(1, np.iinfo(np.int64).max // compression.compressed_vocab_size // 2)
        random = np.random.default_rng(geometry.hash_seed + LAYER_SEED_STEP * geometry.layer)
        draws = random.integers(0, bound, size=geometry.max_order, dtype=np.int64)
        moduli = np.array(geometry.head_rows, dtype=np.int64)
        columns_of_order = [geometry.heads * (order in geometry.orders) for order in range(1, geometry.max_order + 1)]
        return cls(
            compressed_ids=compression.lookup_table,
            pad=int(compression.lookup_table[geometry.pad_id]),
            multipliers=draws * 2 + 1,
            moduli=moduli,
            offsets=np.concatenate([[0], np.cumsum(moduli)[:-1]]),
            first_column=np.concatenate([[0], np.cumsum(columns_of_order)]),
            row_id_dtype=torch.int32 if geometry.row_id_bytes == 4 else torch.int64,
        )

    @property
    def columns(self) -> int:
        """H, row ids per token."""
        return len(self.moduli)

    def row_ids(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]: the readable reference, on one core."""
        batch_size, seq_len = ids.shape
        stream = np.concatenate([history.numpy(), ids.numpy()], axis=1)
        compressed = np.where(stream < 0, self.pad, self.compressed_ids[stream]).astype(np.int64)
        row_ids = np.empty((batch_size, seq_len, self.columns), dtype=np.int64)
        mixed = np.zeros((batch_size, seq_len), dtype=np.int64)
        for back, multiplier in enumerate(self.multipliers):
            start = len(self.multipliers) - 1 - back
            mixed = mixed ^ (compressed[:, start : start + seq_len] * multiplier)
            columns = slice(self.first_column[back], self.first_column[back + 1])
            row_ids[:, :, columns] = mixed[:, :, None] % self.moduli[columns] + self.offsets[columns]
        return torch.from_numpy(row_ids).to(self.row_id_dtype)
