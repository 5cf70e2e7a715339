"""What a campaign is about: rows that may stand in one figure, and the fastest way that each strategy was run in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from engram_exp.plan import FULL
from engram_exp.results import OK, load_results

# How a strategy is run: of several ways, its fastest stands for it.
WAYS = (
    "hashing", "table", "lookup", "projection", "upload", "components", "schedule", "chunk_tokens", "ring_depth",
    "capture", "row_order", "rows_per_program", "warps", "programs",
)  # fmt: skip
STEP = ("batch_size", "seq_len", "history", "batches")
ABOUT = {
    "model": "{}",
    "dtype": "{}",
    "layout": "{}",
    "tokens": "{} tokens",
    "layer": "layer {:g}",
    "row_bytes": "rows of {:g} bytes",
    "table_scale": "table_scale={:g}",
    "device_name": "{}",
    "cpu_name": "{}",
    "threads": "{:g} threads",
}
ALWAYS_TOLD = ("model", "dtype", "tokens")


class Subject(NamedTuple):
    """Rows of one model, dtype, kind of tokens and machine.

    label: tells it apart from the other subjects of its campaign.
    rows: measured ones, with `tokens_per_step`.
    """

    label: str
    rows: pd.DataFrame


def load_campaign(folder: str | Path) -> pd.DataFrame:
    """As `load_results`, for those who need something in it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no results.
    """
    frame = load_results(folder)
    if frame.empty:
        raise ValueError(f"{folder}: no results below it; `python run.py output_dir={folder}` writes some there")
    return frame


def subjects(frame: pd.DataFrame) -> list[Subject]:
    """Split measured rows by what they are about, in the order of the campaign."""
    good = frame[frame["status"] == OK]
    good = good.assign(tokens_per_step=good["batch_size"] * good["seq_len"])
    told = [name for name in ABOUT if name in ALWAYS_TOLD or good[name].nunique(dropna=False) > 1]
    return [
        Subject(_label(dict(zip(ABOUT, key, strict=True)), told), rows)
        for key, rows in good.groupby(list(ABOUT), sort=False, dropna=False)
    ]


def _label(values: dict[str, object], told: list[str]) -> str:
    return ", ".join(ABOUT[name].format(values[name]) for name in told if values[name] not in ("", None))


def fastest_ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one subject, the rows of the way whose `full` is the fastest, for each strategy and number of tokens per step;
    of several repetitions, all. Where no `full` was timed, the fastest way of each case."""
    key = ["strategy", "tokens_per_step"]
    way = rows.groupby([*key, *STEP, *WAYS], dropna=False).ngroup()
    full = rows["case"] == FULL
    full_ms = way.map(rows["wall_ms_median"].where(full).groupby(way).median())
    case_ms = rows.groupby([way, "case"])["wall_ms_median"].transform("median")
    has_full = full.groupby([rows[name] for name in key]).transform("any")
    ms = full_ms.where(has_full, case_ms)
    decided_together = rows["case"].where(~has_full, FULL)
    return rows[ms == ms.groupby([*(rows[name] for name in key), decided_together]).transform("min")]
