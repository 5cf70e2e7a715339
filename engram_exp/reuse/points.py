"""What runs have measured of the same workload: points that lie on the curves."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from engram_exp.results.load import load_results


def measured_points(folder: str | Path, tokens: str, rows: int, *, has_path: bool) -> pd.DataFrame:
    """Distinct rows in a step of runs.

    Args:
        folder: of campaigns.
        tokens: the option that the runs took their tokens from.
        rows: of the layer's table, by which runs of other models, layers and sizes are left out.
        has_path: whether the tokens are the user's own. Files are not compared: they may lie elsewhere there.

    Returns:
        A row for each shape and share: `sequences`, `seq_len`, `step_tokens` and `distinct_share`, of the first batch.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no run fits.
    """
    frame = load_results(folder)
    path_is_set = frame["options"].str.contains(r"(?:^| )tokens\.path=")
    fits = (frame["tokens"] == tokens) & (frame["used_rows"] == rows) & (path_is_set == has_path)
    found = frame[fits & frame["unique_row_fraction"].notna()]
    if found.empty:
        own = "a tokens.path" if has_path else "no tokens.path"
        raise ValueError(
            f"{folder}: no run with tokens={tokens}, {own} and a table of {rows:,} rows tells distinct rows"
        )
    points = pd.DataFrame(
        {
            "sequences": found["batch_size"],
            "seq_len": found["seq_len"],
            "step_tokens": found["batch_size"] * found["seq_len"],
            "distinct_share": found["unique_row_fraction"],
        }
    )
    return points.drop_duplicates().sort_values(["step_tokens", "sequences"], ignore_index=True)
