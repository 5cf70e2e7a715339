"""What caches and larger steps gain from rows that come again: curves of a workload under a model's hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engram_exp.reuse.distances import Uses, count_firsts, count_hits, find_uses
from engram_exp.vocabulary import ALL_ORDERS, COLD, LRU, STATIC, WARM

MOST_USES = 2**31 - 1
SMALLEST_CACHE_BYTES = 2**20
MOST_POWERS = 17  # of two: steps of up to 65,536 tokens


@dataclass(frozen=True)
class TableShape:
    """What the curves need to know of a layer's table.

    orders: the n-gram order of each column.
    row_bytes: of a stored row.
    """

    orders: Sequence[int]
    row_bytes: int

    def columns_of(self) -> dict[str, np.ndarray]:
        """Numbers of the columns of each order, and of all."""
        orders = np.array(self.orders)
        return {
            ALL_ORDERS: np.arange(len(orders)),
            **{str(order): np.flatnonzero(orders == order) for order in sorted(set(self.orders))},
        }


def curves(row_ids: np.ndarray, table: TableShape) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hit rates over the size of a cache, and distinct rows over the tokens of a step.

    Args:
        row_ids: [T, H], in the order of their uses.
        table: that they are rows of.

    Returns:
        cache: a row for each policy, state, order and size: `hit_rate`, the share of uses that hit, and
            `saved_bytes_per_token`, what they spare the memory behind the cache. `lru` keeps the rows used last,
            `static` those that the first half of the tokens used most. `warm`: hits of the second half, behind the
            first; `cold`: of all tokens, from an empty cache on.
        steps: a row for each order and step size: `distinct_share` of the uses of a step, and `rows_per_step`.

    Raises:
        ValueError: fewer than two tokens, or 2^31 uses or more.
    """
    tokens, columns = row_ids.shape
    if not 2 <= tokens <= MOST_USES // columns:
        raise ValueError(f"{tokens} tokens: must be 2 to {MOST_USES // columns}, so that their uses can be counted")
    uses = find_uses(row_ids)
    return _cache_curve(uses, table), _step_curve(uses.before, table)


def cache_sizes(rows: int, row_bytes: int) -> np.ndarray:
    """Rows of caches of 1 MiB, 2 MiB and so on, up to the first that holds all rows, int64."""
    sizes = [SMALLEST_CACHE_BYTES]
    while sizes[-1] < rows * row_bytes:
        sizes.append(2 * sizes[-1])
    return np.array(sizes, dtype=np.int64) // row_bytes


def _cache_curve(uses: Uses, table: TableShape) -> pd.DataFrame:
    tokens = uses.before.shape[1]
    late_tokens = tokens // 2
    sizes = cache_sizes(uses.rows, table.row_bytes)
    early, late = count_hits(uses.before, sizes)
    static = _static_hits(uses, sizes)
    rows = []
    for order, columns in table.columns_of().items():
        hits = {
            (LRU, WARM): late[columns].sum(axis=0) / (late_tokens * len(columns)),
            (LRU, COLD): (early + late)[columns].sum(axis=0) / (tokens * len(columns)),
            (STATIC, WARM): static[columns].sum(axis=0) / (late_tokens * len(columns)),
        }
        for (policy, state), rates in hits.items():
            for size, rate in zip(sizes, rates, strict=True):
                saved = rate * len(columns) * table.row_bytes
                rows.append((policy, state, order, size * table.row_bytes / 1e9, size, rate, saved))
    names = ["policy", "state", "order", "cache_gb", "cache_rows", "hit_rate", "saved_bytes_per_token"]
    return pd.DataFrame(rows, columns=names)


def _static_hits(uses: Uses, sizes: np.ndarray) -> np.ndarray:
    """Uses [H, S] of the second half, by column and size, that hit the rows that the first half used most; of rows that
    it used equally often, a share."""
    most = 1 + max(int(counts[:, 0].max()) for counts in uses.counts)
    used = slice(None, 0, -1)  # how often the first half did, at least once, most often first
    rows = np.sum([np.bincount(counts[:, 0], minlength=most)[used] for counts in uses.counts], axis=0)
    cached = np.cumsum([0, *rows])
    hits = (np.bincount(counts[:, 0], weights=counts[:, 1], minlength=most)[used] for counts in uses.counts)
    return np.stack([np.interp(sizes, cached, np.cumsum([0, *of_column])) for of_column in hits])


def _step_curve(before: np.ndarray, table: TableShape) -> pd.DataFrame:
    tokens = before.shape[1]
    firsts = count_firsts(before, min(MOST_POWERS, tokens.bit_length()))
    rows = []
    for order, columns in table.columns_of().items():
        for power, first in enumerate(firsts[columns].sum(axis=0)):
            share = first / (tokens * len(columns))
            rows.append((order, 2**power, share, share * 2**power * len(columns)))
    return pd.DataFrame(rows, columns=["order", "step_tokens", "distinct_share", "rows_per_step"])
