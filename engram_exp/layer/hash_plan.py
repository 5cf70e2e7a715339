"""The constants of one layer's hash, as every backend reads them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from engram_exp.layer.geometry import EngramGeometry


@dataclass(frozen=True)
class HashPlan:
    """What a hasher needs to know. Section 2.2 of arXiv 2601.07372.

    With t_k the id k positions back, compressed or raw, r_0 = t_0 m_0 and r_k = r_(k-1) xor (t_k m_k); a column of
    order n has the row id r_(n-1) mod `modulus` + `offset`. Products of compressed ids stay below 2^63; those of raw
    ids may wrap around to negative int64, of which the remainder is not negative either.

    Args:
        compressed_ids: int32 [vocab], token id -> compressed id; None: ids are hashed as they are.
        pad: the id, compressed if others are, that stands before the start of a sequence.
        multipliers: int64 [N], odd.
        moduli: int64 [H], distinct primes: the rows of each column.
        offsets: int64 [H], the first row of each column.
        first_column: int64 [N + 1]; the columns of order n are first_column[n - 1] to first_column[n] - 1.
        row_id_dtype: int32 where the table allows it, else int64.
        end: the id, compressed if others are, that no n-gram crosses: where t_k is it, k > 0, so is every older t. The
            token at hand, t_0, may be it and end an n-gram. None: n-grams cross every id.
    """

    compressed_ids: np.ndarray | None
    pad: int
    multipliers: np.ndarray
    moduli: np.ndarray
    offsets: np.ndarray
    first_column: np.ndarray
    row_id_dtype: torch.dtype
    end: int | None = None

    @classmethod
    def build(
        cls,
        geometry: EngramGeometry,
        multipliers: np.ndarray,
        pad: int,
        compressed_ids: np.ndarray | None = None,
        end: int | None = None,
    ) -> HashPlan:
        """The plan of `geometry.layer` with the constants of its hash."""
        moduli = np.array(geometry.head_rows, dtype=np.int64)
        columns_of_order = [geometry.heads * (order in geometry.orders) for order in range(1, geometry.max_order + 1)]
        return cls(
            compressed_ids=compressed_ids,
            pad=pad,
            multipliers=multipliers,
            moduli=moduli,
            offsets=np.concatenate([[0], np.cumsum(moduli)[:-1]]),
            first_column=np.concatenate([[0], np.cumsum(columns_of_order)]),
            row_id_dtype=torch.int32 if geometry.row_id_bytes == 4 else torch.int64,
            end=end,
        )

    @property
    def columns(self) -> int:
        """H, row ids per token."""
        return len(self.moduli)

    @property
    def orders(self) -> list[tuple[int, int, slice]]:
        """Of each n-gram order that has columns: itself, how many there are, and their rows."""
        found = []
        for order, (first, end) in enumerate(pairwise(self.first_column.tolist()), start=1):
            if end > first:
                last_row = int(self.offsets[end - 1] + self.moduli[end - 1])
                found.append((order, end - first, slice(int(self.offsets[first]), last_row)))
        return found

    def row_ids(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]: the readable reference, on one core."""
        batch_size, seq_len = ids.shape
        stream = np.concatenate([history.numpy(), ids.numpy()], axis=1)
        hashed = stream if self.compressed_ids is None else self.compressed_ids[stream]
        hashed = np.where(stream < 0, self.pad, hashed).astype(np.int64)
        row_ids = np.empty((batch_size, seq_len, self.columns), dtype=np.int64)
        mixed = np.zeros((batch_size, seq_len), dtype=np.int64)
        newer = np.full_like(mixed, -1)  # what was hashed one position further on; the token at hand ends nothing
        for back, multiplier in enumerate(self.multipliers):
            start = len(self.multipliers) - 1 - back
            term = hashed[:, start : start + seq_len]
            if self.end is not None:
                term = np.where(newer == self.end, self.end, term)
                newer = term if back else newer
            mixed = mixed ^ (term * multiplier)
            columns = slice(self.first_column[back], self.first_column[back + 1])
            row_ids[:, :, columns] = mixed[:, :, None] % self.moduli[columns] + self.offsets[columns]
        return torch.from_numpy(row_ids).to(self.row_id_dtype)


class Hash(Protocol):
    """A model's hash, built from those of the model's keys that its constructor names: `hash_seed`, `pad_id`,
    `vocab_size`, `eos_id`, and `compression` (of `tokenizer`).

    vocab_size: token ids that it takes.
    """

    @property
    def vocab_size(self) -> int: ...

    def __call__(self, geometry: EngramGeometry) -> HashPlan:
        """The constants of `geometry.layer`."""
