"""What to choose: the strategy for decoding and for prefill within a budget of device memory, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from engram_exp.analysis.choices import Choice, choose
from engram_exp.analysis.compare import ENOUGH_RUNS, MIXED
from engram_exp.analysis.curves import Curve, Regime, curves, regimes, sort_thresholds
from engram_exp.analysis.disk_tier import on_disk, thresholds
from engram_exp.analysis.disturbed import disturbance
from engram_exp.analysis.engines import DECODE, PREFILL, Gpus, named_by_engine
from engram_exp.analysis.exposed import OnDevice, Step, steps_of, yardstick_of
from engram_exp.analysis.exposed_rows import beside_fast_decoders, exposed_times
from engram_exp.analysis.memory import Files, fitting_in, memory_of, rounded_up_gb, too_small_gb
from engram_exp.analysis.placements import Placement, by_exchange, gpus_of, placements_of
from engram_exp.analysis.selection import NOTHING, AdviceError, layers_of, lookups_like, one_subject
from engram_exp.analysis.subjects import about_of, spelled
from engram_exp.analysis.ways import with_bundles
from engram_exp.analysis.worth import Worth, within_budget, worth_of
from engram_exp.machine.data_sheets import most_memory_gb
from engram_exp.vocabulary import DEVICE, FULL, HOST, LFU, LRU, OF_A_STEP, WARM

ALONE = "alone; beside a decoder the order may turn over"  # what a time of the layer is


@dataclass(frozen=True)
class Advice:
    """What the data say.

    Args:
        model, dtype, ids: what they are about; `ids` is the kind of tokens.
        about: the same and more, the machine among it: columns and their values as one types them.
        layers: of the model that have a table.
        table_gb: of all these layers, at full size.
        rounded_up_gb: of host memory for these in an engine whose allocator rounds up to powers of two.
        too_small_gb: memory of a GPU, at most, where these tables do not fit there, 10^9 bytes; None where they may.
        freed_gb: of device memory, but for what a choice keeps there; None where a choice is not measured, and where
            the tables do not fit there.
        steps: of a model, size by size; where there are any, there are no choices and no regimes.
        choices: one for decode, one for prefill, by the layer's time alone.
        regimes: of the strategies that fit the budget, over tokens per step.
        sort_rows: at how many row ids sorting still costs time, and from how many on it saves some, by their
            intervals; None where that was nowhere so.
        worth: of memory for rows, of the device or in front of a file, size by size; none where none was given any.
        notes: what limits the advice.
        gpus: that shared the work; `strategy` then names the exchange, too, and device memory is that of each.
        placements: what each strategy takes of several GPUs; none of one.
    """

    model: str
    dtype: str
    ids: str
    about: dict[str, str]
    layers: int
    table_gb: float
    rounded_up_gb: float
    too_small_gb: float | None
    freed_gb: float | None
    steps: list[Step]
    choices: list[Choice]
    regimes: list[Regime]
    sort_rows: tuple[int | None, int | None]
    worth: list[Worth]
    notes: list[str]
    gpus: Gpus
    placements: list[Placement]


def advise(
    frame: pd.DataFrame,
    model: str,
    *,
    decode: int,
    prefill: int,
    device_memory_gb: float,
    dtype: str | None = None,
    ids: str | None = None,
    host_memory_gb: float = math.inf,
    files: Files | None = None,
) -> Advice:
    """Choose a strategy for each regime: by what a model's step takes longer, at each size of step that was measured;
    where none was, by the layer's own time.

    Args:
        frame: rows as `load_results` returns them.
        model: as the column calls it.
        decode, prefill: tokens per step, where no step of a model was measured.
        device_memory_gb: that tables may take of each GPU, in all layers, 10^9 bytes; no more than it has.
        dtype, ids: values of the columns `dtype` and `tokens`, where the data hold several.
        host_memory_gb: that tables may take, likewise; what does not fit there may lie on a disk.
        files: of the configuration, which say what decoders keep, and where strategies have their tables
            (`engram_exp.config.decoders` reads them).

    Raises:
        AdviceError: the data do not hold the model, or hold several dtypes or kinds of tokens, or no runs with an
            accelerator, or only steps of a decoder that is too slow, or nothing fits.
    """
    frame = by_exchange(with_bundles(frame, files) if files else frame)
    good = one_subject(frame, model, dtype, ids)
    uses = (DECODE, decode), (PREFILL, prefill)
    return _of_subject(frame, good, uses, (device_memory_gb, host_memory_gb), files)


def _of_subject(
    frame: pd.DataFrame,
    good: pd.DataFrame,
    uses: Sequence[tuple[str, int]],
    memory_gb: tuple[float, float],
    files: Files | None,
) -> Advice:
    of_runs = frame[frame["run_id"].isin(good["run_id"])]
    stepped, of_decoder = beside_fast_decoders(of_runs)
    good = good[good["case"] == FULL] if stepped.empty else stepped
    if good.empty:
        raise AdviceError("; ".join(of_decoder) or NOTHING)
    most_gb = most_memory_gb(str(good["device_name"].iloc[0]))
    memory_gb = (min(memory_gb[0], most_gb or math.inf), memory_gb[1])
    layers, of_layers = layers_of(good)
    whole = good
    budget = dict(zip((DEVICE, HOST), memory_gb, strict=True))
    good, stepped = (within_budget(rows, layers, budget) for rows in (good, stepped))
    gpus, (tables_gb, needed) = gpus_of(good), memory_of(good, layers, files)
    fitting = fitting_in(needed, *memory_gb)
    kept = files.kept_of(*good[["decoder", "options", "dtype"]].iloc[0]) if files else None
    small_gb = too_small_gb(good, tables_gb)
    on_device = {
        name: OnDevice(memory.device_gb, None if small_gb else tables_gb - memory.device_gb)
        for name, memory in needed.items()
    }
    steps = steps_of(stepped, fitting, on_device, kept, gpus)
    found, of_bundles = ({} if steps else curves(rows) for rows in (good, named_by_engine(good)))
    asked = [] if steps else uses
    choices = [choose(found, of_bundles, fitting, use, tokens, layers, gpus) for use, tokens in asked]
    chosen = [choice.strategy for choice in choices] + [step.best for step in steps]
    longer = exposed_times(whole) if steps else whole
    held_against = of_runs[of_runs["case"].isin(OF_A_STEP)] if steps else good
    general, from_disk = _notes(needed, found, steps, held_against, gpus), thresholds(steps, on_disk(good))
    return Advice(
        model=good["model"].iloc[0],
        dtype=good["dtype"].iloc[0],
        ids=good["tokens"].iloc[0],
        about={str(column): spelled(value) for column, value in about_of(good).iloc[0].items()},
        layers=layers,
        table_gb=tables_gb,
        rounded_up_gb=rounded_up_gb(good, layers),
        too_small_gb=small_gb,
        freed_gb=_freed_gb(chosen, on_device),
        steps=steps,
        choices=choices,
        regimes=regimes(found, fitting) if found else [],
        sort_rows=sort_thresholds(lookups_like(frame, good)),
        worth=worth_of(longer, layers if steps else 1, kept[0] if kept else None),
        notes=[*of_layers, *of_decoder, *_unmeasured(uses, steps), *general, *from_disk],
        gpus=gpus,
        placements=placements_of(needed, fitting, found, steps) if gpus.number > 1 else [],
    )


def _unmeasured(uses: Sequence[tuple[str, int]], steps: Sequence[Step]) -> list[str]:
    """Which steps were asked for and not measured, of uses that were."""
    sizes = {use: [f"{step.tokens:,}" for step in steps if step.use == use] for use, _ in uses}
    return [
        f"no {use} step of {tokens:,} tokens was measured, but of {', '.join(sizes[use])}"
        for use, tokens in uses
        if sizes[use] and f"{tokens:,}" not in sizes[use]
    ]


def _freed_gb(choices: Sequence[str | None], on_device: Mapping[str, OnDevice]) -> float | None:
    """Of device memory, if all choices are followed."""
    freed_gb = [on_device[name].freed_gb if name is not None else None for name in choices]
    known = [gb for gb in freed_gb if gb is not None]
    return min(known) if len(known) == len(choices) else None


def _notes(
    names: Collection[str], found: Mapping[str, Curve], steps: Sequence[Step], rows: pd.DataFrame, gpus: Gpus
) -> list[str]:
    """What limits advice that is given from these strategies, curves or steps, and rows."""
    times = [time for curve in found.values() for time in curve.values()]
    times += [one.time for step in steps for one in step.strategies]
    times += [time for one in times for way in one.ways for time in way.by_engine.values()]
    notes = []
    if len(names) == 1:
        notes.append(f"no strategy but {', '.join(names)} was measured: it is the best of one")
    if (yardstick := yardstick_of(gpus.number)) not in names:
        unknown = "what tables in device memory expose" if steps else "what an offload adds"
        notes.append(f"strategy={yardstick} was not measured: {unknown} is unknown")
    if (rows["table_scale"] < 1).any():
        notes.append("tables were shrunk (table_scale): rows may have been in caches that a whole table exceeds")
    if (rows["cache_policy"].isin((LRU, LFU)) & (rows["cache_state"] == WARM)).any():
        notes.append("warm caches had seen the very batches that were timed; lookup.state=steady times others")
    if disturbed := disturbance(rows):
        notes.append(disturbed)
    if mixed := [name for name in MIXED if rows[name].nunique() > 1]:
        notes.append(f"runs of several {', '.join(mixed)} are mixed: --only COLUMN=VALUE keeps those of one")
    if any(time.runs < ENOUGH_RUNS for time in times):
        notes.append(
            f"sizes with fewer than {ENOUGH_RUNS} runs: their intervals lack what changes from run to run (repeats=5 "
            "measures it), and so does what they make clear"
        )
    if not steps:
        notes.append(f"the layer was timed {ALONE}, since some of it may be hidden there (decoder=dense_8b times it)")
    return notes
