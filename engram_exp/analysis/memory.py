"""Memory that tables take at full size: of the device by strategy, and of the host as an allocator hands it out."""

from __future__ import annotations

import math

import pandas as pd

from engram_exp.analysis.worth import row_memory_gb
from engram_exp.vocabulary import DEVICE

VALUES_PER_SCALE = 32  # of one byte each, before the byte of their scale: the rows that `layout` tells of


def table_gb(rows: pd.DataFrame, layers: int) -> tuple[float, dict[str, float]]:
    """Of all layers at full size: the tables, and what of them each strategy keeps in device memory."""
    full_size = rows["row_bytes"] * rows["true_rows"] * layers / 1e9
    on_device = full_size.where(rows["table"] == DEVICE, row_memory_gb(rows) * layers).groupby(rows["strategy"]).max()
    return float(full_size.max()), on_device.to_dict()


def rounded_up_gb(rows: pd.DataFrame, layers: int) -> float:
    """Host memory that an engine's tables take if its allocator, as PyTorch's of pinned memory, rounds each array up to
    a power of two: those of all layers at full size, values and their scales in arrays of their own. NaN where rows do
    not tell their size."""
    first = rows.iloc[0]
    if first[["row_bytes", "true_rows"]].isna().any():
        return math.nan
    row_bytes, number = int(first["row_bytes"]), int(first["true_rows"])
    scale_bytes, rest = divmod(row_bytes, VALUES_PER_SCALE + 1)
    parts = (row_bytes - scale_bytes, scale_bytes) if first["layout"] and not rest else (row_bytes,)
    return layers * sum(1 << (number * part - 1).bit_length() for part in parts) / 1e9
