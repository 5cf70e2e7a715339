"""What memory is worth as memory for rows: how much device memory pays back, against reading all through the link, and
how much host memory, against reading all from a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from engram_exp.analysis.curves import Time, times_of
from engram_exp.analysis.subjects import STEP, with_tokens
from engram_exp.vocabulary import COLD, DEVICE, HOST, STEADY

OF_LAYER = re.compile(r"\bstrategies\.\d+=(\S+)")  # in the column `strategy`: that of one layer alone
WITHOUT = "uva"  # the strategy that reads all rows through the link
SIZES = {DEVICE: "cache_gb", HOST: "hot_gb"}  # columns: of memory for rows, by where it is ...
HIT_RATES = {DEVICE: "cache_hit_rate", HOST: "hot_hit_rate"}  # ... and of what was there


@dataclass(frozen=True)
class RowMemory:
    """So much memory for rows.

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
    """What memory for rows is worth at one size of step; times and memory are of one layer, or where steps of a model
    were measured, of all its layers with tables.

    Args:
        place: device: rows of a table in host memory; host: rows of a file.
        batch_size, seq_len: sequences, and tokens of each.
        strategy, policy: that use it, and which rows they keep there.
        held_against: the strategy that reads all rows through the link, or from the file.
        without: its time.
        sizes: of the memory, ascending.
        pays_from_gb: the least that is clearly faster than without (`Time.is_below`); None: none is.
        enough_gb: of those that are, the least than which no larger one is clearly faster.
        saved_ms_per_gb: of a step, by that one.
        tokens_per_gb: whose keys and values a decoder could keep there instead; None where its sizes do not tell.
    """

    place: str
    batch_size: int
    seq_len: int
    strategy: str
    policy: str
    held_against: str
    without: Time
    sizes: list[RowMemory]
    pays_from_gb: float | None
    enough_gb: float | None
    saved_ms_per_gb: float | None
    tokens_per_gb: int | None


def row_memory_gb(rows: pd.DataFrame, place: str = DEVICE) -> pd.Series[float]:
    """Memory for rows of a layer that rows of results tell of, of the device or of the host; 0 where there was none."""
    return pd.to_numeric(rows[SIZES[place]], errors="coerce").fillna(0.0)


def layers_of(rows: pd.DataFrame, layers: int) -> pd.Series[int]:
    """Of how many layers the memory for rows is that is told of one: those without a strategy of their own."""
    return layers - rows["strategy"].str.count(OF_LAYER.pattern)


def within_budget(rows: pd.DataFrame, layers: int, memory_gb: Mapping[str, float]) -> pd.DataFrame:
    """The rows without those of a strategy that keep more rows in memory than fit, where it was measured with less.

    Args:
        rows: measured ones of one subject.
        layers: with a table.
        memory_gb: for all of them, by place.
    """
    for place, most_gb in memory_gb.items():
        fits = row_memory_gb(rows, place) * layers_of(rows, layers) <= most_gb
        rows = rows[fits | ~fits.groupby(rows["strategy"]).transform("any")]
    return rows


def worth_of(rows: pd.DataFrame, layers: int, token_bytes: int | None) -> list[Worth]:
    """What memory for rows is worth, size by size. Caches that every call finds empty say nothing of it.

    Args:
        rows: measured ones of one case and one subject.
        layers: that their times are of.
        token_bytes: that a decoder keeps of a token; None where that is unknown.
    """
    rows = with_tokens(rows[rows["cache_state"] != COLD])
    rows = rows.assign(**{column: row_memory_gb(rows, place) for place, column in SIZES.items()})
    if not rows[[*SIZES.values()]].any(axis=None):
        return []
    found: list[Worth] = []
    for _, of_size in rows.groupby(["tokens_per_step", *STEP], dropna=False):
        plain, kept = of_size[of_size["strategy"] == WITHOUT], of_size[of_size[SIZES[DEVICE]] > 0]
        found += _of_size(DEVICE, plain, kept, layers, token_bytes)
        for _, of_file in of_size[of_size["page_cache"] != ""].groupby("strategy", sort=False):
            is_kept = of_file[SIZES[HOST]] > 0
            found += _of_size(HOST, of_file[~is_kept], of_file[is_kept], layers, None)
    return found


def _of_size(
    place: str, plain: pd.DataFrame, kept: pd.DataFrame, layers: int, token_bytes: int | None
) -> Iterator[Worth]:
    if plain.empty or kept.empty:
        return
    without = _time(plain)
    for (strategy, policy), some in kept.groupby(["strategy", "cache_policy"], sort=False):
        sizes, steady = [], some["cache_state"] == STEADY
        some = some[steady] if steady.any() else some  # batches that come again are found in a cache that is large
        for gb, of_gb in ((gb, some[some[SIZES[place]] == gb]) for gb in sorted(some[SIZES[place]].unique())):
            rate = pd.to_numeric(of_gb[HIT_RATES[place]], errors="coerce").median()
            memory_gb = float(gb) * (int(layers_of(of_gb, layers).iloc[0]) if layers > 1 else 1)
            sizes.append(RowMemory(memory_gb, None if pd.isna(rate) else float(rate), _time(of_gb)))
        paying = [size for size in sizes if size.time.is_below(without)]
        enough = next((one for one in paying if not any(other.time.is_below(one.time) for other in sizes)), None)
        saved = None if enough is None else ((without.ms or 0.0) - (enough.time.ms or 0.0)) / enough.gb
        yield Worth(
            place=place,
            batch_size=int(plain["batch_size"].iloc[0]),
            seq_len=int(plain["seq_len"].iloc[0]),
            strategy=str(strategy),
            policy=str(policy),
            held_against=str(plain["strategy"].iloc[0]),
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
