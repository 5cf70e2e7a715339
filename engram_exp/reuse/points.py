"""What runs have measured of the same workload: points that lie on the curves."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from engram_exp.results.load import load_results
from engram_exp.vocabulary import STATIC, STEADY


def measured_points(folder: str | Path, tokens: str, rows: int, *, has_path: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distinct rows in a step of runs, and hit rates of their caches.

    Args:
        folder: of campaigns.
        tokens: the option that the runs took their tokens from.
        rows: of the layer's table, by which runs of other models, layers and sizes are left out.
        has_path: whether the tokens are the user's own. Files are not compared: they may lie elsewhere there.

    Returns:
        steps: a row for each shape and share: `sequences`, `seq_len`, `step_tokens` and `distinct_share`, of the first
            batch.
        hits: a row for each hit rate of caches that were timed on batches which they had not seen, in device memory or
            in front of a file: `sequences`, `seq_len`, `cache_gb`, `policy` and `hit_rate`; none where there were none.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no run fits.
    """
    frame = load_results(folder)
    path_is_set = frame["options"].str.contains(r"(?:^| )tokens\.path=")
    fits = (frame["tokens"] == tokens) & (frame["used_rows"] == rows) & (path_is_set == has_path)
    found = frame[fits & frame["unique_row_fraction"].notna()].rename(columns={"batch_size": "sequences"})
    if found.empty:
        own = "a tokens.path" if has_path else "no tokens.path"
        raise ValueError(
            f"{folder}: no run with tokens={tokens}, {own} and a table of {rows:,} rows tells distinct rows"
        )
    steps = found.assign(
        step_tokens=found["sequences"] * found["seq_len"], distinct_share=found["unique_row_fraction"]
    )[["sequences", "seq_len", "step_tokens", "distinct_share"]]
    on_curve = (found["cache_policy"] == STATIC) | (found["cache_state"] == STEADY)
    rates = found["cache_hit_rate"].fillna(found["hot_hit_rate"])
    sizes = found["cache_gb"].fillna(found["hot_gb"])
    hits = found.assign(policy=found["cache_policy"], cache_gb=sizes, hit_rate=rates)[on_curve & rates.notna()]
    hits = hits[["sequences", "seq_len", "cache_gb", "policy", "hit_rate"]]
    return (
        steps.drop_duplicates().sort_values(["step_tokens", "sequences"], ignore_index=True),
        hits.drop_duplicates().sort_values(["cache_gb", "policy", "sequences"], ignore_index=True),
    )
