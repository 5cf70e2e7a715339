"""Memory that tables take at full size: by place and strategy, and of the host as an allocator hands it out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import pandas as pd

from engram_exp.analysis.placements import share_on_device, tables_on_host
from engram_exp.analysis.selection import AdviceError
from engram_exp.analysis.ways import Bundles
from engram_exp.analysis.worth import OF_LAYER, row_memory_gb
from engram_exp.machine.data_sheets import most_memory_gb
from engram_exp.vocabulary import DISK, HOST

VALUES_PER_SCALE = 32  # of one byte each, before the byte of their scale: the rows that `layout` tells of


class Files(Bundles, Protocol):
    """What configuration files say of names that rows hold, as `engram_exp.config.decoders` tells it."""

    def kept_of(self, decoder: str, options: str, dtype: str) -> tuple[int, int] | None: ...
    def tables_of(self, strategy: str) -> tuple[str, str, float] | None: ...
    def columns_of(self, model: str, options: str) -> int | None: ...


class Memory(NamedTuple):
    """What a strategy keeps of the tables of all layers, and of their rows, 10^9 bytes: of each device's memory, and of
    each host's."""

    device_gb: float
    host_gb: float


def memory_of(rows: pd.DataFrame, layers: int, files: Files | None) -> tuple[float, dict[str, Memory]]:
    """The tables of all layers at full size, 10^9 bytes; and what each strategy keeps of them.

    Args:
        rows: measured ones of one subject.
        layers: with a table; some of them may have a strategy of their own.
        files: that say where such a strategy keeps its table; None: where the others have theirs.
    """
    layer_gb = float((rows["row_bytes"] * rows["true_rows"]).max()) / 1e9
    columns = files.columns_of(*rows[["model", "options"]].iloc[0]) if files else None
    found = {}
    for name, of_one in rows.groupby("strategy"):
        own = [told for each in OF_LAYER.findall(str(name)) if files and (told := files.tables_of(each))]
        usual = files.tables_of(str(name).split()[0]) if files and own else None
        on_disk = usual[0] == DISK if usual else bool(of_one["page_cache"].iloc[0])
        kept = [_of_layer(of_one, layer_gb, columns, on_disk)] * (layers - len(own))
        layers_own = ((of_one.assign(table=table, cache_gb=gb, hot_gb=0.0), place) for place, table, gb in own)
        kept += [_of_layer(as_own, layer_gb, columns, place == DISK) for as_own, place in layers_own]
        found[str(name)] = Memory(*map(sum, zip(*kept, strict=True)))
    return layer_gb * layers, found


def _of_layer(rows: pd.DataFrame, table_gb: float, columns: int | None, on_disk: bool) -> Memory:
    """Of one layer, whose table is so large and of so many columns, under one strategy."""
    share = float(share_on_device(rows, columns).max())
    on_device = table_gb * share if share else float(row_memory_gb(rows).max())
    in_front = float(row_memory_gb(rows, HOST).max())
    return Memory(on_device, in_front if on_disk else table_gb * float(tables_on_host(rows, columns).max()))


def too_small_gb(rows: pd.DataFrame, tables_gb: float) -> float | None:
    """The memory that a GPU has at most, by its name, if tables of this size do not fit there, 10^9 bytes; None where
    they may.

    Args:
        rows: of one subject, on one kind of GPU.
    """
    most_gb = most_memory_gb(str(rows["device_name"].iloc[0]))
    return most_gb if most_gb is not None and tables_gb > most_gb else None


def fitting_in(needed: Mapping[str, Memory], device_memory_gb: float, host_memory_gb: float) -> list[str]:
    """The strategies within a budget.

    Args:
        needed: of tables, by strategy.
        device_memory_gb, host_memory_gb: of the budget.

    Raises:
        AdviceError: there are none; it names the nearest.
    """
    in_host = [name for name in sorted(needed) if needed[name].host_gb <= host_memory_gb]
    if not in_host:
        most = f"everything that was measured keeps {max(memory.host_gb for memory in needed.values()):.1f} GB there"
        remedy = f"{most}; strategy=disk lookup.hot_gb=0 does without"
        raise AdviceError(f"host_memory_gb={host_memory_gb:g}: {remedy}")
    fitting = [name for name in in_host if needed[name].device_gb <= device_memory_gb]
    if not fitting:
        nearest = min(in_host, key=lambda name: needed[name].device_gb)
        asked = f"device_memory_gb={device_memory_gb:g}"
        asked += f", host_memory_gb={host_memory_gb:g}" if math.isfinite(host_memory_gb) else ""
        raise AdviceError(
            f"{asked}: nothing that was measured fits; the nearest is {nearest}, with "
            f"{needed[nearest].device_gb:.1f} GB of tables on the device and {needed[nearest].host_gb:.1f} on the host"
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
