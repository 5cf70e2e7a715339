"""What device memory is worth as memory for rows: how much of it pays back, against reading all through the link."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from engram_exp.analysis.curves import Time, times_of
from engram_exp.analysis.subjects import STEP, with_tokens
from engram_exp.vocabulary import COLD, STEADY

WITHOUT = "uva"  # the strategy that reads all rows through the link


@dataclass(frozen=True)
class RowMemory:
    """So much device memory for rows.

    Args:
        gb: 10^9 bytes.
        hit_rate: share of the rows asked for that were there; None where it was not measured.
        time: with it.
    """

    gb: float
    hit_rate: float | None
    time: Time


@dataclass(frozen=True)
class Worth:
    """What device memory for rows is worth at one size of step; times and memory are of one layer, or where steps of a
    model were measured, of all its layers with tables.

    Args:
        batch_size, seq_len: sequences, and tokens of each.
        strategy, policy: that use it, and which rows they keep there.
        without: the time of reading all rows through the link.
        sizes: of the memory, ascending.
        pays_from_gb: the least that is clearly faster than without, by the intervals; None: none is.
        enough_gb: of those that are, the least than which no larger one is clearly faster.
        saved_ms_per_gb: of a step, by that one.
        tokens_per_gb: whose keys and values a decoder could keep instead; None where its sizes do not tell.
    """

    batch_size: int
    seq_len: int
    strategy: str
    policy: str
    without: Time
    sizes: list[RowMemory]
    pays_from_gb: float | None
    enough_gb: float | None
    saved_ms_per_gb: float | None
    tokens_per_gb: int | None


def row_memory_gb(rows: pd.DataFrame) -> pd.Series[float]:
    """Device memory for rows of a layer that rows of results tell of; 0 where there was none."""
    return pd.to_numeric(rows["cache_gb"], errors="coerce").fillna(0.0)


def within_budget(rows: pd.DataFrame, layers: int, device_memory_gb: float) -> pd.DataFrame:
    """The rows without those of a strategy that keep more rows in device memory than fit, where it was measured with
    less, too.

    Args:
        rows: measured ones of one subject.
        layers: with a table.
        device_memory_gb: for all of them.
    """
    fits = row_memory_gb(rows) * layers <= device_memory_gb
    return rows[fits | ~fits.groupby(rows["strategy"]).transform("any")]


def worth_of(rows: pd.DataFrame, layers: int, token_bytes: int | None) -> list[Worth]:
    """What device memory for rows is worth, size by size. Caches that every call finds empty say nothing of it.

    Args:
        rows: measured ones of one case and one subject.
        layers: that their times are of.
        token_bytes: that a decoder keeps of a token; None where that is unknown.
    """
    rows = with_tokens(rows[rows["cache_state"] != COLD])
    sizes = rows.assign(cache_gb=row_memory_gb(rows)).groupby(["tokens_per_step", *STEP], dropna=False)
    return [worth for _, of_size in sizes for worth in _of_size(of_size, layers, token_bytes)]


def _of_size(rows: pd.DataFrame, layers: int, token_bytes: int | None) -> Iterator[Worth]:
    plain, kept = rows[rows["strategy"] == WITHOUT], rows[rows["cache_gb"] > 0]
    if plain.empty or kept.empty:
        return
    without = _time(plain)
    for (strategy, policy), some in kept.groupby(["strategy", "cache_policy"], sort=False):
        sizes, steady = [], some["cache_state"] == STEADY
        some = some[steady] if steady.any() else some  # batches that come again are found in a cache that is large
        for gb, of_gb in some.groupby("cache_gb"):
            rate = pd.to_numeric(of_gb["cache_hit_rate"], errors="coerce").median()
            sizes.append(RowMemory(float(gb) * layers, None if pd.isna(rate) else float(rate), _time(of_gb)))
        paying = [size for size in sizes if size.time.is_below(without)]
        enough = next((one for one in paying if not any(other.time.is_below(one.time) for other in sizes)), None)
        saved = None if enough is None else ((without.ms or 0.0) - (enough.time.ms or 0.0)) / enough.gb
        yield Worth(
            batch_size=int(rows["batch_size"].iloc[0]),
            seq_len=int(rows["seq_len"].iloc[0]),
            strategy=str(strategy),
            policy=str(policy),
            without=without,
            sizes=sizes,
            pays_from_gb=paying[0].gb if paying else None,
            enough_gb=enough.gb if enough else None,
            saved_ms_per_gb=saved,
            tokens_per_gb=int(1e9 // token_bytes) if token_bytes else None,
        )


def _time(rows: pd.DataFrame) -> Time:
    """Of one strategy at one size: that of its fastest way."""
    return next(time for _, time in times_of(rows))
