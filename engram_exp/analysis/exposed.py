"""What a model's step takes longer because its rows must be fetched, by size of step and strategy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from engram_exp.analysis.curves import Time, times_of
from engram_exp.analysis.engines import DECODE, ONE_GPU, PREFILL, Gpus, settings_for
from engram_exp.analysis.subjects import with_tokens
from engram_exp.vocabulary import DECODER, DEVICE, IN_STEP, OK, READY

YARDSTICK, YARDSTICK_OF_RANKS = "device", "replicated"
# Limit over median of a decoder that advice is given from: of decode steps of few sequences, and of all others.
LEAST_SHARE_OF_FEW, FEW_SEQUENCES, LEAST_SHARE = 1 / 1.6, 64, 1 / 2


@dataclass(frozen=True)
class Exposed:
    """What steps of one size take longer with a strategy than with the rows of all layers in place.

    Args:
        strategy: in the way that exposes the least, where it was measured in several.
        time: longer, all layers together.
        percent, percent_lo, percent_hi: the same, of the step with rows in place.
        ready_ms: that step; of several runs, the median of their medians.
        freed_gb: of device memory, against tables that are kept there.
        cached_tokens: whose keys and values the decoder could keep in that; None where its sizes do not tell.
    """

    strategy: str
    time: Time
    percent: float | None
    percent_lo: float | None
    percent_hi: float | None
    ready_ms: float
    freed_gb: float
    cached_tokens: int | None


@dataclass(frozen=True)
class Step:
    """Steps of one size.

    Args:
        use: decode (a token of each sequence) or prefill.
        batch_size, seq_len: sequences, and tokens of each.
        best: the strategy that exposes the least, of those that fit the budget; None where none of these was measured.
        undecided: others that fit and do not clearly expose more.
        more: others that fit and do, by their intervals.
        strategies: all that were measured, those that do not fit among them; the least exposed first.
        engines: by name and version, the least exposed of the strategies that fit and that it has flags for, if any.
        yardstick: the strategy that others are held against.
    """

    use: str
    batch_size: int
    seq_len: int
    best: str | None
    undecided: list[str]
    more: list[str]
    strategies: list[Exposed]
    engines: dict[str, str | None]
    yardstick: str = YARDSTICK

    @property
    def tokens(self) -> int:
        """Per step."""
        return self.batch_size * self.seq_len

    def of(self, strategy: str) -> Exposed | None:
        """What was measured of a strategy."""
        return next((one for one in self.strategies if one.strategy == strategy), None)


def yardstick_of(gpus: int) -> str:
    """The strategy that keeps all tables in the memory of each of so many GPUs."""
    return YARDSTICK if gpus == 1 else YARDSTICK_OF_RANKS


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


def steps_of(
    steps: pd.DataFrame,
    fitting: Collection[str],
    freed_gb: Mapping[str, float],
    token_bytes: int | None,
    gpus: Gpus = ONE_GPU,
) -> list[Step]:
    """What is exposed, size by size: decode steps, then prompts.

    Args:
        steps: of one subject, as `beside_fast_decoders` returns them.
        fitting: strategies within the budget of device memory.
        freed_gb: of device memory by each strategy, against tables of full size there.
        token_bytes: that the decoder keeps of a token; None where that is unknown.
        gpus: that share the work.
    """
    steps, found = exposed_times(steps), []
    for use, part in ((DECODE, steps[steps["seq_len"] == 1]), (PREFILL, steps[steps["seq_len"] > 1])):
        sizes: dict[int, list[tuple[dict[str, Any], Time]]] = {}
        for row, time in times_of(
            part,
            ready_ms=("ready_ms", "median"),
            device_bytes=("peak_device_bytes", "max"),
            table_scale=("table_scale", "min"),
            **{name: (name, "first") for name in ("table", "batch_size", "seq_len")},
        ):
            sizes.setdefault(row["tokens_per_step"], []).append((row, time))
        for _, strategies in sorted(sizes.items()):
            found.append(_step(use, strategies, fitting, freed_gb, token_bytes, gpus))
    return found


def exposed_times(steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of `step` with what is exposed, and its interval, in place of their times."""
    exposed = {name: name.replace("wall", "exposed") for name in ("wall_ms_median", "wall_ms_lo", "wall_ms_hi")}
    return steps.assign(**{name: steps[column].astype(float) for name, column in exposed.items()})


def _step(
    use: str,
    strategies: list[tuple[dict[str, Any], Time]],
    fitting: Collection[str],
    of_tables_gb: Mapping[str, float],
    token_bytes: int | None,
    gpus: Gpus,
) -> Step:
    held_against = yardstick_of(gpus.number)
    yardstick = next((row for row, _ in strategies if row["strategy"] == held_against), None)
    found = []
    for row, time in strategies:
        freed_gb = _freed_gb(row, yardstick, of_tables_gb[row["strategy"]])
        cached = int(freed_gb * 1e9 // token_bytes) if token_bytes and freed_gb > 0 else None
        ready_ms = row["ready_ms"]
        percent, lo, hi = (_percent(ms, ready_ms) for ms in (time.ms, time.lo, time.hi))
        found.append(Exposed(row["strategy"], time, percent, lo, hi, ready_ms, freed_gb, cached))
    found.sort(key=lambda one: one.time.ms or 0.0)
    able = [one for one in found if one.strategy in fitting]
    open_ones = [one.strategy for one in able[1:] if one.time.is_open_against(able[0].time)]
    return Step(
        use=use,
        batch_size=int(strategies[0][0]["batch_size"]),
        seq_len=int(strategies[0][0]["seq_len"]),
        best=able[0].strategy if able else None,
        undecided=open_ones,
        more=[one.strategy for one in able[1:] if one.strategy not in open_ones],
        strategies=found,
        engines={
            release: next((one.strategy for one in able if one.strategy in settings), None)
            for release, settings in settings_for(use, gpus).items()
        },
        yardstick=held_against,
    )


def _percent(ms: float | None, whole_ms: float) -> float | None:
    return None if ms is None else ms / whole_ms * 100


def _freed_gb(row: dict[str, Any], yardstick: dict[str, Any] | None, of_tables_gb: float) -> float:
    """As measured where the whole tables were, on both sides; else the tables."""
    if row["table"] == DEVICE:
        return 0.0
    if yardstick is not None and min(row["table_scale"], yardstick["table_scale"]) == 1 and row["device_bytes"] > 0:
        return float(yardstick["device_bytes"] - row["device_bytes"]) / 1e9
    return of_tables_gb
