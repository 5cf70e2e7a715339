"""Memory that tables take at full size: of the device by strategy, and of the host as an allocator hands it out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from engram_exp.analysis.placements import share_on_device
from engram_exp.analysis.selection import AdviceError
from engram_exp.analysis.worth import row_memory_gb

VALUES_PER_SCALE = 32  # of one byte each, before the byte of their scale: the rows that `layout` tells of


def table_gb(rows: pd.DataFrame, layers: int) -> tuple[float, dict[str, float]]:
    """Of all layers at full size: the tables, and what of them each strategy keeps in the memory of a device."""
    full_size = rows["row_bytes"] * rows["true_rows"] * layers / 1e9
    share = share_on_device(rows)
    on_device = (full_size * share).where(share > 0, row_memory_gb(rows) * layers)
    return float(full_size.max()), on_device.groupby(rows["strategy"]).max().to_dict()


def fitting_in(
    needed_gb: Mapping[str, float], host_gb: Mapping[str, float], device_memory_gb: float, host_memory_gb: float
) -> list[str]:
    """The strategies within a budget.

    Args:
        needed_gb, host_gb: of tables, by strategy.
        device_memory_gb, host_memory_gb: of the budget.

    Raises:
        AdviceError: there are none; it names the nearest.
    """
    in_host = [name for name in sorted(needed_gb) if host_gb[name] <= host_memory_gb]
    if not in_host:
        most = f"everything that was measured keeps {max(host_gb.values()):.1f} GB there"
        remedy = f"{most}; strategy=disk lookup.hot_gb=0 does without"
        raise AdviceError(f"host_memory_gb={host_memory_gb:g}: {remedy}")
    fitting = [name for name in in_host if needed_gb[name] <= device_memory_gb]
    if not fitting:
        nearest = min(in_host, key=lambda name: needed_gb[name])
        raise AdviceError(
            f"device_memory_gb={device_memory_gb:g}: nothing that was measured fits; the nearest is {nearest}, "
            f"with {needed_gb[nearest]:.1f} GB of tables on the device"
        )
    return fitting


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
