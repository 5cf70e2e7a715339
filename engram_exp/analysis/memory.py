"""Memory that tables take at full size: by place and strategy, and of the host as an allocator hands it out."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, Protocol

import pandas as pd

from engram_exp.analysis.worth import row_memory_gb
from engram_exp.vocabulary import DEVICE, DISK, HOST

VALUES_PER_SCALE = 32  # of one byte each, before the byte of their scale: the rows that `layout` tells of
OF_LAYER = re.compile(r"\bstrategies\.\d+=(\S+)")  # in the column `strategy`: that of one layer alone


class Files(Protocol):
    """What configuration files say of names that rows hold, as `engram_exp.config.decoders` tells it."""

    def kept_of(self, decoder: str, options: str, dtype: str) -> tuple[int, int] | None: ...
    def tables_of(self, strategy: str) -> tuple[str, float] | None: ...


class Memory(NamedTuple):
    """What a strategy keeps of the tables of all layers, and of their rows, 10^9 bytes."""

    device_gb: float
    host_gb: float


def memory_of(rows: pd.DataFrame, layers: int, files: Files | None) -> tuple[float, dict[str, Memory]]:
    """The tables of all layers at full size, 10^9 bytes; and what each strategy keeps of them.

    Args:
        rows: measured ones of one subject.
        layers: with a table; some of them may have a strategy of their own.
        files: that say where such a strategy keeps its table; None: in host memory.
    """
    tables_gb = float((rows["row_bytes"] * rows["true_rows"]).max()) * layers / 1e9
    found = {}
    for name, of_one in rows.groupby("strategy"):
        own = OF_LAYER.findall(str(name))
        kept = [_kept(files, each) for each in own]
        kept += [_kept_by_run(of_one, files if own else None)] * (layers - len(own))
        on_device = sum(tables_gb / layers if place == DEVICE else gb for place, gb in kept)
        on_host = sum(tables_gb / layers for place, _ in kept if place == HOST)
        found[str(name)] = Memory(on_device, on_host)
    return tables_gb, found


def _kept_by_run(rows: pd.DataFrame, files: Files | None) -> tuple[str, float]:
    """Where runs of one strategy keep the table of a layer that has no other, and device memory for some of its rows.

    Args:
        files: where other layers have strategies of their own: whether the file that `page_cache` tells of is theirs.
    """
    first, rows_gb = rows.iloc[0], float(row_memory_gb(rows).max())
    if first["table"] == DEVICE:
        return DEVICE, rows_gb
    place, _ = _kept(files, first["strategy"].split()[0]) if files else (DISK if first["page_cache"] else HOST, 0.0)
    return place, rows_gb


def _kept(files: Files | None, strategy: str) -> tuple[str, float]:
    return (files and files.tables_of(strategy)) or (HOST, 0.0)


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
