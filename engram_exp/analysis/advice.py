"""What to choose: the strategy for decoding and for prefill within a budget of device memory, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from engram_exp.analysis.compare import ENOUGH_RUNS
from engram_exp.analysis.curves import (
    INTERPOLATED,
    UNKNOWN,
    Curve,
    Regime,
    Time,
    curves,
    regimes,
    sort_thresholds,
    time_at,
)
from engram_exp.analysis.disturbed import disturbance
from engram_exp.analysis.engines import DECODE, PREFILL, Setting, settings_for
from engram_exp.analysis.selection import AdviceError, layers_of, lookups_like, one_subject
from engram_exp.analysis.subjects import about_of, spelled
from engram_exp.vocabulary import DEVICE

YARDSTICK = "device"


@dataclass(frozen=True)
class Option:
    """What a serving engine can do of what was measured and fits the budget.

    Args:
        strategy: the fastest that it has flags for.
        ms_per_layer: its time.
        flags: of the engine's release.
        differs: what the release does otherwise than was measured, and when.
    """

    strategy: str
    ms_per_layer: Time
    flags: str
    differs: str


@dataclass(frozen=True)
class Choice:
    """The strategy for one regime of use.

    Args:
        use: decode or prefill.
        tokens: per step.
        strategy: the best that fits the budget; None where none was measured there, or close enough on both sides.
        nearest: measured tokens per step next to these, below and above, where the strategy is None.
        unmeasured: strategies that fit and of which nothing is known there, where it is not None.
        undecided: others that fit and are not clearly slower.
        slower: others that fit and are, by their intervals.
        ms_per_layer: its time.
        added_ms_per_step: to tables in device memory, in all layers of the model; None where that was not measured. It
            has no interval where either was measured in fewer than 4 runs: intervals within runs do not bound what
            changes between them.
        engines: what serving engines can do in this use, by name and version: this strategy, or what is nearest to it;
            None where they have flags for none of those that fit.
    """

    use: str
    tokens: int
    strategy: str | None
    nearest: list[int]
    unmeasured: list[str]
    undecided: list[str]
    slower: list[str]
    ms_per_layer: Time
    added_ms_per_step: Time | None
    engines: dict[str, Option | None]


@dataclass(frozen=True)
class Advice:
    """What the data say.

    Args:
        model, dtype, ids: what they are about; `ids` is the kind of tokens.
        about: the same and more, the machine among it: columns and their values as one types them.
        layers: of the model that have a table.
        table_gb: of all these layers, at full size.
        freed_gb: of device memory, if no choice keeps a table there; None where a choice is not measured.
        choices: one for decode, one for prefill.
        regimes: of the strategies that fit the budget, over tokens per step.
        sort_rows: at how many row ids sorting still costs time, and from how many on it saves some, by their
            intervals; None where that was nowhere so.
        notes: what limits the advice.
    """

    model: str
    dtype: str
    ids: str
    about: dict[str, str]
    layers: int
    table_gb: float
    freed_gb: float | None
    choices: list[Choice]
    regimes: list[Regime]
    sort_rows: tuple[int | None, int | None]
    notes: list[str]


def advise(
    frame: pd.DataFrame,
    model: str,
    *,
    decode: int,
    prefill: int,
    device_memory_gb: float,
    dtype: str | None = None,
    ids: str | None = None,
) -> Advice:
    """Choose a strategy for each regime.

    Args:
        frame: rows as `load_results` returns them.
        model: as the column calls it.
        decode, prefill: tokens per step.
        device_memory_gb: that tables may take, in all layers, 10^9 bytes.
        dtype, ids: values of the columns `dtype` and `tokens`, where the data hold several.

    Raises:
        AdviceError: the data do not hold the model, or hold several dtypes or kinds of tokens, or no runs with an
            accelerator, or nothing fits.
    """
    good = one_subject(frame, model, dtype, ids)
    layers, notes = layers_of(good)
    table_gb, needed_gb = _table_gb(good, layers)
    found = curves(good)
    fitting = sorted(name for name in found if needed_gb[name] <= device_memory_gb)
    if not fitting:
        nearest = min(found, key=lambda name: needed_gb[name])
        raise AdviceError(
            f"device_memory_gb={device_memory_gb:g}: nothing that was measured fits; the nearest is {nearest}, "
            f"with {needed_gb[nearest]:.1f} GB of tables on the device"
        )
    choices = [_choose(found, fitting, use, tokens, layers) for use, tokens in ((DECODE, decode), (PREFILL, prefill))]
    chosen = [choice.strategy for choice in choices if choice.strategy is not None]
    keeps_tables = any(needed_gb[name] for name in chosen)
    freed_gb = None if len(chosen) < len(choices) else 0.0 if keeps_tables else table_gb
    return Advice(
        model=model,
        dtype=good["dtype"].iloc[0],
        ids=good["tokens"].iloc[0],
        about={str(column): spelled(value) for column, value in about_of(good).iloc[0].items()},
        layers=layers,
        table_gb=table_gb,
        freed_gb=freed_gb,
        choices=choices,
        regimes=regimes(found, fitting),
        sort_rows=sort_thresholds(lookups_like(frame, good)),
        notes=notes + _notes(found, good),
    )


def _table_gb(good: pd.DataFrame, layers: int) -> tuple[float, dict[str, float]]:
    """Of all layers at full size: the tables, and what of them each strategy keeps in device memory."""
    full_size = good["row_bytes"] * good["true_rows"] * layers / 1e9
    on_device = full_size.where(good["table"] == DEVICE, 0.0).groupby(good["strategy"]).max()
    return float(full_size.max()), on_device.to_dict()


def _notes(found: Mapping[str, Curve], good: pd.DataFrame) -> list[str]:
    notes = []
    if len(found) == 1:
        notes.append(f"nothing but {', '.join(found)} was measured: it is the best of one")
    if YARDSTICK not in found:
        notes.append("strategy=device was not measured: what an offload adds is unknown")
    if (good["table_scale"] < 1).any():
        notes.append("tables were shrunk (table_scale): rows may have been in caches that a whole table exceeds")
    if disturbed := disturbance(good):
        notes.append(disturbed)
    if any(time.runs < ENOUGH_RUNS for curve in found.values() for time in curve.values()):
        notes.append(
            f"sizes with fewer than {ENOUGH_RUNS} runs: their intervals lack what changes from run to run (repeats=5 "
            "measures it), and so does what they make clear"
        )
    notes.append("the layer was timed alone: beside a model's step some of it may be hidden, and the order may change")
    return notes


def _added(time: Time, yardstick: Time, layers: int) -> Time | None:
    """What a step takes more than with tables in device memory, in all layers."""
    if time.ms is None or yardstick.ms is None:
        return None
    known = time.known if time.known == yardstick.known else INTERPOLATED
    ms, runs = (time.ms - yardstick.ms) * layers, min(time.runs, yardstick.runs)
    few = runs < ENOUGH_RUNS
    if few or time.lo is None or time.hi is None or yardstick.lo is None or yardstick.hi is None:
        return Time(ms, None, None, known, runs)
    return Time(ms, (time.lo - yardstick.hi) * layers, (time.hi - yardstick.lo) * layers, known, runs)


def _choose(found: Mapping[str, Curve], fitting: Sequence[str], use: str, tokens: int, layers: int) -> Choice:
    times = {name: time_at(found[name], tokens) for name in fitting}
    known = {name: time for name, time in times.items() if time.ms is not None}
    if not known:
        return Choice(use, tokens, None, _nearest_sizes(found, fitting, tokens), [], [], [], UNKNOWN, None, {})
    unmeasured = [name for name in fitting if name not in known]
    best = min(known, key=lambda name: known[name].ms or 0.0)
    others = [name for name in known if name != best]
    undecided = [name for name in others if known[name].is_open_against(known[best])]
    slower = [name for name in others if name not in undecided]
    time = known[best]
    if best == YARDSTICK:
        added: Time | None = replace(time, ms=0.0, lo=0.0, hi=0.0)
    else:
        added = _added(time, time_at(found.get(YARDSTICK, {}), tokens), layers)
    engines = {release: _nearest(known, settings) for release, settings in settings_for(use).items()}
    return Choice(use, tokens, best, [], unmeasured, undecided, slower, time, added, engines)


def _nearest_sizes(found: Mapping[str, Curve], fitting: Sequence[str], tokens: int) -> list[int]:
    sizes = sorted({size for name in fitting for size in found[name]})
    below, above = (size for size in sizes if size < tokens), (size for size in sizes if size > tokens)
    return [*list(below)[-1:], *list(above)[:1]]


def _nearest(known: Mapping[str, Time], settings: Mapping[str, Setting]) -> Option | None:
    """The fastest of the strategies that a release has flags for."""
    able = [name for name in known if name in settings]
    name = min(able, key=lambda name: known[name].ms or 0.0, default=None)
    return None if name is None else Option(name, known[name], settings[name].flags, settings[name].differs)
