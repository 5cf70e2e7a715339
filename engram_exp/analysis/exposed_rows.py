"""Rows of steps that say what is exposed: which they are, and which of them decide."""

from __future__ import annotations

import pandas as pd

from engram_exp.analysis.subjects import with_tokens
from engram_exp.vocabulary import DECODER, IN_STEP, OK, READY

EXPOSED = "exposed"  # a case that is not timed by itself: what `step` takes longer than `ready`
# Limit over median of a decoder that advice is given from: of decode steps of few sequences, and of all others.
LEAST_SHARE_OF_FEW, FEW_SEQUENCES, LEAST_SHARE = 1 / 1.6, 64, 1 / 2


def tell_exposed(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are measured ones of `step` that say what is exposed."""
    return (rows["case"] == IN_STEP) & (rows["status"] == OK) & rows["exposed_ms_median"].notna()


def beside_fast_decoders(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `step` whose decoder, alone in the same run, came near enough to what this machine allows, or of
    which that is unknown, with `tokens_per_step` and the `ready_ms` of their run; and what must be said of the others.
    A slow decoder hides what a fast one would not.

    Args:
        rows: of one subject, as `load_results` returns them, those of `decoder` and `ready` among them.
    """
    measured = rows[rows["status"] == OK]
    ready, alone = (measured[measured["case"] == case].set_index("run_id") for case in (READY, DECODER))
    steps = with_tokens(rows[tell_exposed(rows) & rows["run_id"].isin(ready.index)])
    steps = steps.assign(ready_ms=steps["run_id"].map(ready["wall_ms_median"].astype(float)))
    share = steps["run_id"].map(alone["limit_ms"].astype(float) / alone["wall_ms_median"].astype(float))
    few = (steps["seq_len"] == 1) & (steps["batch_size"] <= FEW_SEQUENCES)
    least = few.map({True: LEAST_SHARE_OF_FEW, False: LEAST_SHARE})
    missed, notes = share < least, []
    if missed.any():
        sizes = ", ".join(f"{tokens:,.0f}" for tokens in sorted(set(steps.loc[missed, "tokens_per_step"])))
        notes.append(
            f"decoder={steps['decoder'].iloc[0]} is too slow at {sizes} tokens, down to {share[missed].min():.2f} of "
            f"what this machine allows ({LEAST_SHARE_OF_FEW:.3g} are asked for; of prompts, and of more than "
            f"{FEW_SEQUENCES} sequences, {LEAST_SHARE:.3g}): it hides what a fast one would not, and these steps "
            "decide nothing"
        )
    if share[~missed].isna().any():
        notes.append(
            "how near the decoder comes to what this machine allows is unknown (cases=[decoder] limits=cached tell): "
            "a slow one hides what a fast one would not"
        )
    return steps[~missed], notes


def exposed_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """A row of the case `EXPOSED` for each row of `step` that says what is exposed: that is its `wall_ms_median`, and
    `ready_ms` that of its run's `ready`.

    Args:
        rows: measured ones, those of `ready` among them.
    """
    ready_ms = rows[rows["case"] == READY].set_index("run_id")["wall_ms_median"].astype(float)
    steps = rows[tell_exposed(rows) & rows["run_id"].isin(ready_ms.index)]
    return exposed_times(steps).assign(case=EXPOSED, ready_ms=steps["run_id"].map(ready_ms))


def with_exposed(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured rows, and behind them what their steps expose, if any do."""
    exposed = exposed_rows(rows)
    return rows if exposed.empty else pd.concat([rows, exposed], ignore_index=True)


def exposed_times(steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of `step` with what is exposed, and its interval, in place of their times."""
    exposed = {name: name.replace("wall", "exposed") for name in ("wall_ms_median", "wall_ms_lo", "wall_ms_hi")}
    return steps.assign(**{name: steps[column].astype(float) for name, column in exposed.items()})
