"""What stands in a table: row contents as a pure function of (seed, row id).

So a gather from a table of any size can be checked without a second copy. Each run of 8 values is one output of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), a byte a value; the
byte b stands for (b - 128) / 64, which every dtype of 8 or more significant bits holds exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
VALUES_PER_WORD = 8


def contents(row_ids: torch.Tensor, row_values: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """The rows of a table, computed anew.

    Args:
        row_ids: whole numbers of any shape.
        row_values: D.
        dtype: of the values.
        seed: of the table.

    Returns:
        [*row_ids.shape, D] on the CPU.
    """
    words = np.uint64(_words(row_values))
    first = row_ids.cpu().numpy().astype(np.uint64)[..., None] * words + np.arange(words, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = _base(seed) + (first + np.uint64(1)) * GOLDEN_GAMMA
        z = (z ^ (z >> np.uint64(30))) * MIX_1
        z = (z ^ (z >> np.uint64(27))) * MIX_2
        z = z ^ (z >> np.uint64(31))
    values = z.astype("<u8").view(np.uint8)[..., :row_values]
    return _value_of_byte(dtype)[torch.from_numpy(values.astype(np.int64))]


def fill(storage: torch.Tensor, seed: int) -> None:
    """Write every row of a table in host memory, [rows, D], on all CPU threads."""
    unsigned = {2: torch.uint16, 4: torch.uint32}[storage.itemsize]
    bits_of_byte = _value_of_byte(storage.dtype).view(unsigned).numpy()
    _fill(storage.view(unsigned).numpy(), _base(seed), bits_of_byte, _words(storage.shape[1]))


def _words(row_values: int) -> int:
    return -(-row_values // VALUES_PER_WORD)


def _base(seed: int) -> np.uint64:
    return np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64)[0]


def _value_of_byte(dtype: torch.dtype) -> torch.Tensor:
    return ((torch.arange(256) - 128) / 64).to(dtype)


@njit(parallel=True, cache=True, error_model="numpy")
def _fill(out, base, bits_of_byte, words):  # type: ignore[no-untyped-def]
    rows, row_values = out.shape
    for row in prange(rows):
        for word in range(words):
            z = base + np.uint64(np.uint64(row) * np.uint64(words) + np.uint64(word) + np.uint64(1)) * GOLDEN_GAMMA
            z = (z ^ (z >> np.uint64(30))) * MIX_1
            z = (z ^ (z >> np.uint64(27))) * MIX_2
            z = z ^ (z >> np.uint64(31))
            for column in range(word * 8, min(word * 8 + 8, row_values)):
                out[row, column] = bits_of_byte[z & np.uint64(255)]
                z >>= np.uint64(8)
