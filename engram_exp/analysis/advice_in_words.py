"""Which strategy for decoding and for prefill, within a budget of device memory, and what it costs."""

from __future__ import annotations

from itertools import chain

from engram_exp.analysis.advice import YARDSTICK, Advice, Choice, Option
from engram_exp.analysis.compare import ENOUGH_RUNS
from engram_exp.analysis.curves import INTERPOLATED, MOST_APART, Regime, Time

VLLM_SORTS_FROM = 36_864  # rows, fixed in vLLM as measured on GB200


def lines_of(advice: Advice) -> list[str]:
    """The advice in words."""
    plural = "s" if advice.layers > 1 else ""
    lines = [
        f"{advice.model}, {advice.dtype}, {advice.ids} tokens: {advice.layers} layer{plural} with "
        f"{advice.table_gb:.1f} GB of tables"
        + ("" if advice.freed_gb is None else f", of which {advice.freed_gb:.1f} GB need not be in device memory")
    ]
    for choice in advice.choices:
        lines += ["", *_choice_lines(choice, plural)]
    lines += ["", "best over tokens per step:" + ("" if advice.regimes else " no size was measured for two strategies")]
    for regime in advice.regimes:
        lines.append(f"  {regime.strategy:<10} {_range(regime)}")
    after, by = advice.sort_rows
    if after is None and by is None:
        lines.append("sorting row ids: not measured (experiment=sorting), or undecided at every size")
    else:
        costs = f"still costs time at {after:,} rows" if after else "clearly costs time nowhere"
        saves = f"saves some from {by:,} rows on" if by else "clearly saves some nowhere"
        lines.append(f"sorting row ids {costs}, and {saves}")
        lines.append(f"  here lookup.sort_from_rows, in vLLM fixed at {VLLM_SORTS_FROM:,} (measured on GB200)")
    return lines + [f"note: {note}" for note in advice.notes]


def _choice_lines(choice: Choice, plural: str) -> list[str]:
    head = f"{choice.use}, {choice.tokens:,} tokens per step: "
    if choice.strategy is None:
        sizes = " and ".join(f"{size:,}" for size in choice.nearest)
        no_guess = f"nothing is extrapolated, nor interpolated over more than a factor of {MOST_APART}"
        return [f"{head}not measured; the nearest that was: {sizes}; {no_guess}"]
    time = choice.ms_per_layer
    lines = [head + choice.strategy, f"  {_span(time)} ms a layer, {time.known} ({_runs(time)})"]
    lines += [f"  {line}" for line in _way_lines(time)]
    if choice.undecided:
        lines.append(f"  undecided against {', '.join(choice.undecided)}: their intervals overlap or are missing")
    if choice.unmeasured:
        lines.append(f"  not measured here: {', '.join(choice.unmeasured)}")
    if choice.strategy != YARDSTICK and choice.added_ms_per_step is not None:
        added = choice.added_ms_per_step
        how = "" if added.known == time.known else f", {added.known}"
        about, why = ("", "") if added.lo is not None else ("about ", f" ({_why_no_interval(added)})")
        lines.append(
            f"  adds {about}{_span(added)} ms a step to tables in device memory, its layer{plural} together{how}{why}"
        )
    return lines + [f"  {engine}: {_option(option, choice)}" for engine, option in choice.engines.items()]


def _way_lines(time: Time) -> list[str]:
    lines = []
    for way in time.ways:
        at = f" at {way.tokens:,} tokens" if time.known == INTERPOLATED else ""
        lines.append(f"as {' '.join(way.overrides)} (the fastest of {way.of} ways measured{at})")
    return lines


def _why_no_interval(added: Time) -> str:
    if added.runs >= ENOUGH_RUNS:
        return "too few samples in a run: no interval"
    return f"{_runs(added)} on a side: no interval"


def _runs(time: Time) -> str:
    return f"{time.runs} run{'s' if time.runs > 1 else ''}"


def _option(option: Option | None, choice: Choice) -> str:
    if option is None:
        return "no option for this strategy, nor for another that fits and was measured here"
    if option.strategy == choice.strategy:
        return option.flags
    how = "".join(f", {line}" for line in _way_lines(option.ms_per_layer))
    nearest = f"the nearest is {option.strategy}, {option.ms_per_layer.ms:.4g} ms a layer{how}"
    return f"no option for this strategy; {nearest}: {option.flags}"


def _span(time: Time) -> str:
    interval = f" ({time.lo:.4g} to {time.hi:.4g})" if time.lo is not None and time.hi is not None else ""
    return f"{time.ms:.4g}{interval}"


def _range(regime: Regime) -> str:
    ends = [regime.first, *chain(*regime.gaps), regime.last]
    stretches = zip(ends[::2], ends[1::2], strict=True)
    sizes = "; ".join(f"{first:,}" + (f" to {last:,}" if last > first else "") for first, last in stretches)
    if regime.gaps:
        sizes += " (open between these)"
    if regime.begins_by is None and regime.begins_after is None:
        return sizes
    after = f"above {regime.begins_after:,}" if regime.begins_after else "anywhere below"
    by = f"at {regime.begins_by:,} at the latest" if regime.begins_by else "clearly nowhere"
    return f"{sizes} (takes over {after}, {by})"
