"""Which strategy for decoding and for prefill, within a budget of device memory, and what it costs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from engram_exp.analysis.advice import YARDSTICK, Advice, Choice, advise
from engram_exp.analysis.curves import Regime, Time
from engram_exp.analysis.subjects import load_campaign

VLLM_SORTS_FROM = 36_864  # rows, fixed in vLLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp advise` takes."""
    parser.add_argument("folder", help="of campaigns; --model, --dtype and --ids choose among them")
    parser.add_argument("--model", default="demo", help="as the column calls it (default: demo)")
    parser.add_argument("--decode", type=int, default=64, metavar="TOKENS", help="tokens per decode step (default: 64)")
    parser.add_argument("--prefill", type=int, default=8192, metavar="TOKENS", help="of a prefill step (default: 8192)")
    parser.add_argument("--device-memory-gb", type=float, default=0.0, help="that tables may take (default: 0)")
    parser.add_argument("--dtype", help="where the data hold several")
    parser.add_argument("--ids", help="the kind of tokens, where the data hold several: text, random or ids")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    """Print the advice.

    Raises:
        AdviceError, FileNotFoundError, ValueError: as `advise` and `load_campaign`.
    """
    advice = advise(
        load_campaign(arguments.folder),
        arguments.model,
        decode=arguments.decode,
        prefill=arguments.prefill,
        device_memory_gb=arguments.device_memory_gb,
        dtype=arguments.dtype,
        ids=arguments.ids,
    )
    if arguments.json:
        plain = asdict(advice)
        for choice, own in zip(plain["choices"], advice.choices, strict=True):
            choice["ms_per_layer"] = own.ms_per_layer._asdict()
            choice["added_ms_per_step"] = own.added_ms_per_step and own.added_ms_per_step._asdict()
        plain["regimes"] = [regime._asdict() for regime in advice.regimes]
        print(json.dumps(plain, indent=1))
        return
    print("\n".join(lines_of(advice)))


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
        lines.append(f"  here lookup.sort_from_rows, in vLLM fixed at {VLLM_SORTS_FROM:,}")
    return lines + [f"note: {note}" for note in advice.notes]


def _choice_lines(choice: Choice, plural: str) -> list[str]:
    head = f"{choice.use}, {choice.tokens:,} tokens per step: "
    if choice.strategy is None:
        return [head + "not measured; nothing is extrapolated"]
    time = choice.ms_per_layer
    runs = f"{time.runs} run{'s' if time.runs > 1 else ''}"
    lines = [head + choice.strategy, f"  {_span(time)} ms a layer, {time.known} ({runs})"]
    if choice.undecided:
        lines.append(f"  undecided against {', '.join(choice.undecided)}: their intervals overlap or are missing")
    if choice.strategy != YARDSTICK and choice.added_ms_per_step is not None:
        added = choice.added_ms_per_step
        how = "" if added.known == time.known else f", {added.known}"
        lines.append(f"  adds {_span(added)} ms a step to tables in device memory, its layer{plural} together{how}")
    lines += [f"  {engine}: {flags}" for engine, flags in choice.engines.items()]
    return lines


def _span(time: Time) -> str:
    interval = f" ({time.lo:.4g} to {time.hi:.4g})" if time.lo is not None and time.hi is not None else ""
    return f"{time.ms:.4g}{interval}"


def _range(regime: Regime) -> str:
    sizes = f"{regime.first:,}" + (f" to {regime.last:,}" if regime.last > regime.first else "")
    if regime.begins_by is None and regime.begins_after is None:
        return sizes
    after = f"above {regime.begins_after:,}" if regime.begins_after else "anywhere below"
    by = f"at {regime.begins_by:,} at the latest" if regime.begins_by else "clearly nowhere"
    return f"{sizes} (takes over {after}, {by})"
