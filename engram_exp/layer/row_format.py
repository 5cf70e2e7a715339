"""How a row is stored, and what stands in it: a pure function of (seed, row id).

So a gather from a table of any size can be checked without a second copy. A row is a string of bytes, one for each
value and one for each scale; every 8 of them are one output of SplitMix64. In a table of the compute dtype the byte b
stands for (b - 128) / 64, which every dtype of 8 or more significant bits holds exactly. In an fp8 table the bytes are
e4m3 values, with NaN left out, followed by ue8m0 scales from 2^-8 to 2^-1 (OCP Microscaling Formats v1.0, sections
5.3.1 and 5.4.1), or by none where the whole table has one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, prange

from engram_exp.layer.splitmix import GOLDEN_GAMMA, MIX_1, MIX_2, mix

BYTES_PER_WORD = 8
E4M3_NAN = 0x7F
SMALLEST_SCALE = 127 - 8  # ue8m0: the exponent of a power of two, plus 127


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a table are stored.

    Args:
        values: D.
        dtype: the compute dtype, in which rows end up.
        values_per_scale: None if rows are stored in the compute dtype; else they are e4m3 values followed by one ue8m0
            scale for so many of them, one byte each.
        split: values and scales are arrays of their own, as DeepSeek-V4.1-Flash publishes them.
        one_scale: of the whole table, whose rows are e4m3 values alone, rounded to float32; None: it has no such scale.
    """

    values: int
    dtype: torch.dtype
    values_per_scale: int | None = None
    split: bool = False
    one_scale: float | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether rows are stored in e4m3, and widened to the compute dtype."""
        return self.values_per_scale is not None or self.one_scale is not None

    @property
    def storage_dtype(self) -> torch.dtype:
        """Type of a stored element: the compute dtype, or bytes."""
        return torch.uint8 if self.is_fp8 else self.dtype

    @property
    def scales(self) -> int:
        """Scales of a row."""
        return -(-self.values // self.values_per_scale) if self.values_per_scale else 0

    @property
    def width(self) -> int:
        """Stored elements of a row: values, then scales."""
        return self.values + self.scales

    @property
    def part_widths(self) -> tuple[int, ...]:
        """Elements of a row in each array of the table."""
        return (self.values, self.scales) if self.split and self.scales else (self.width,)

    def contents(self, row_ids: torch.Tensor, seed: int) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] of a table, computed anew, on the CPU."""
        words = np.uint64(self._words)
        first = row_ids.cpu().numpy().astype(np.uint64)[..., None] * words + np.arange(words, dtype=np.uint64)
        with np.errstate(over="ignore"):
            states = _base(seed) + (first + np.uint64(1)) * GOLDEN_GAMMA
        stream = mix(states).astype("<u8").view(np.uint8)[..., : self.width]
        is_scale = (np.arange(self.width) >= self.values).astype(np.int64)
        elements = torch.from_numpy(self._elements.view(_unsigned(self.storage_dtype)).numpy()[is_scale, stream])
        return elements.view(self.storage_dtype)

    def fill(self, parts: tuple[torch.Tensor, ...], seed: int, first_row: int = 0) -> None:
        """Write the rows from `first_row` on into arrays in host memory, [rows, width of the part], on all threads."""
        unsigned = _unsigned(self.storage_dtype)
        elements = self._elements.view(unsigned).numpy()
        first = 0
        for part in parts:
            out = part.view(unsigned).numpy()
            _fill(out, np.uint64(first_row), _base(seed), elements, first, self.values, self._words)
            first += part.shape[1]

    def widen(self, rows: torch.Tensor) -> torch.Tensor:
        """The values [..., D] of stored rows [..., width] in the compute dtype: the plain reference."""
        if not self.is_fp8:
            return rows
        values = rows[..., : self.values].contiguous().view(torch.float8_e4m3fn).float()
        if self.values_per_scale is None:
            return (values * torch.tensor(self.one_scale, dtype=torch.float32)).to(self.dtype)
        scales = rows[..., self.values :].contiguous().view(torch.float8_e8m0fnu).float()
        scales = scales.repeat_interleave(self.values_per_scale, dim=-1)[..., : self.values]
        return (values * scales).to(self.dtype)

    def values_and_scales(self, *stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Arrays [N, *] that hold the values of N fp8 rows, from column 0 on, and their scales, from the column on that
        is returned: the same array twice for rows [N * width], two of their own for values and scales apart."""
        if len(stored) == 1:  # with one scale of the whole table, always
            rows = stored[0].view(-1, self.width)
            return rows, rows, self.values
        values, scales = stored
        return values.view(-1, self.values), scales.view(-1, self.scales), 0

    @property
    def _words(self) -> int:
        return -(-self.width // BYTES_PER_WORD)

    @property
    def _elements(self) -> torch.Tensor:
        """What a byte stands for, [2, 256]: as a value, and as a scale."""
        byte = torch.arange(256)
        if not self.is_fp8:
            return ((byte - 128) / 64).to(self.dtype).expand(2, 256).contiguous()
        value = torch.where(byte & E4M3_NAN == E4M3_NAN, byte - 1, byte)
        return torch.stack([value, SMALLEST_SCALE + byte % 8]).to(torch.uint8)


def _unsigned(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[dtype.itemsize]


def _base(seed: int) -> np.uint64:
    return np.random.SeedSequence(seed).generate_state(1, dtype=np.uint64)[0]


@njit(parallel=True, cache=True, error_model="numpy")
def _fill(out: Any, first_row: Any, base: Any, elements: Any, first: int, values: int, words: int) -> None:
    rows, width = out.shape
    for row in prange(rows):
        first_word = (first_row + np.uint64(row)) * np.uint64(words) + np.uint64(1)
        for word in range(first // 8, (first + width + 7) // 8):
            z = base + (first_word + np.uint64(word)) * GOLDEN_GAMMA
            z = (z ^ (z >> np.uint64(30))) * MIX_1
            z = (z ^ (z >> np.uint64(27))) * MIX_2
            z = z ^ (z >> np.uint64(31))
            begin, end = max(first, word * 8), min(first + width, word * 8 + 8)
            if end - begin == 8 and (begin >= values) == (end > values):  # of one kind: a loop that is unrolled
                kind = np.int64(begin >= values)
                for byte in range(8):
                    out[row, begin - first + byte] = elements[kind, (z >> np.uint64(8 * byte)) & np.uint64(255)]
            else:
                for column in range(begin, end):
                    byte = (z >> np.uint64(8 * (column - word * 8))) & np.uint64(255)
                    out[row, column - first] = elements[np.int64(column >= values), byte]
