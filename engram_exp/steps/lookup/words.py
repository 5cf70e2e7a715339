"""Rows as whole words, which are copied faster than their elements."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.steps.tables import Table

WORD_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Words:
    """The widest words that a row, and each part of it, is made of.

    dtype: of a word.
    per_row: words of a whole row.
    per_part: words of a row in each array of the table.
    first: the first word of each part within the whole row.
    """

    def __init__(self, row_format: RowFormat) -> None:
        part_bytes = [width * row_format.storage_dtype.itemsize for width in row_format.part_widths]
        self.dtype = next(d for d in WORD_DTYPES if all(size % d.itemsize == 0 for size in part_bytes))
        self.per_part = [size // self.dtype.itemsize for size in part_bytes]
        self.per_row = sum(self.per_part)
        self.first = [0, *accumulate(self.per_part[:-1])]

    def parts_of(self, table: Table) -> list[Part]:
        """The arrays of a table, as words."""
        arrays = (part.view(self.dtype) for part in table.parts)
        return [Part(array, first) for array, first in zip(arrays, self.first, strict=True)]


class Part(NamedTuple):
    """An array of a table, [rows, words], and the first of its words within a whole row."""

    array: torch.Tensor
    first_word: int
