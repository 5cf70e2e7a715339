"""What to choose: the strategy for decoding and for prefill within a budget of device memory, and what it costs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from engram_exp.analysis.curves import UNKNOWN, Curve, Regime, Time, curves, regimes, time_at
from engram_exp.analysis.subjects import load_campaign
from engram_exp.plan import AS_ASKED, FULL, SORTED
from engram_exp.results import OK

MODELS = Path(__file__).resolve().parents[2] / "conf/model"
YARDSTICK = "device"
ENGINE_FLAGS = {
    "uva": {
        "vLLM": '--engram-config \'{"cpu_offload": true, "use_thp": true}\'',
        "SGLang": '--engram-config \'{"placement": "cpu"}\'',
    },
    "device": {
        "vLLM": "--engram-config '{\"cpu_offload\": false}'",
        "SGLang": '--engram-config \'{"placement": "gpu"}\'',
    },
}
CANNOT = "cannot gather or project on the CPU: it has no option for this strategy"
VLLM_SORTS_FROM = 36_864  # rows, fixed in vLLM


class AdviceError(ValueError):
    """Data that give no advice, and why."""


@dataclass(frozen=True)
class Choice:
    """The strategy for one regime of use.

    Args:
        use: decode or prefill.
        tokens: per step.
        strategy: the best that fits the budget; None where none was measured there.
        undecided: others that fit and whose intervals overlap with its own.
        ms_per_layer: its time, lo, hi, and how it is known.
        added_ms_per_step: to tables in device memory, in all layers of the model; None where that was not measured.
        engines: flags of serving engines, or why they have none.
    """

    use: str
    tokens: int
    strategy: str | None
    undecided: list[str]
    ms_per_layer: Time
    added_ms_per_step: float | None
    engines: dict[str, str]


@dataclass(frozen=True)
class Advice:
    """What the data say.

    Args:
        model, dtype, ids: what they are about; `ids` is the kind of tokens.
        layers: of the model that have a table.
        table_gb: of all these layers, at full size.
        freed_gb: of device memory, if no table is kept there.
        choices: one for decode, one for prefill.
        regimes: of the strategies that fit the budget, over tokens per step.
        sort_rows: up to how many row ids sorting costs time, and from how many on it saves some, both beyond doubt;
            None where that was nowhere so.
        notes: what limits the advice.
    """

    model: str
    dtype: str
    ids: str
    layers: int
    table_gb: float
    freed_gb: float
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
        AdviceError: the data do not hold the model, or hold several dtypes or kinds of tokens, or nothing fits.
    """
    good = _select(frame, model, dtype, ids)
    layers, notes = _layers(model)
    full_table = good["row_bytes"] * good["true_rows"] * layers / 1e9
    table_gb = float(full_table.max())
    needed_gb = full_table.where(good["table"] == YARDSTICK, 0.0).groupby(good["strategy"]).max()
    found = curves(good)
    fitting = sorted(name for name in found if needed_gb[name] <= device_memory_gb)
    if not fitting:
        nearest = needed_gb[list(found)].idxmin()
        raise AdviceError(
            f"device_memory_gb={device_memory_gb:g}: nothing that was measured fits; the nearest is {nearest}, "
            f"with {needed_gb[nearest]:.1f} GB of tables on the device"
        )
    if YARDSTICK not in found:
        notes.append("strategy=device was not measured: what an offload adds is unknown")
    if (good["table_scale"] < 1).any():
        notes.append("some tables were shrunk (table_scale): rows may have been in caches that a whole table exceeds")
    choices = [
        _choose(found, fitting, use, tokens, layers) for use, tokens in (("decode", decode), ("prefill", prefill))
    ]
    sort_rows = _sort_rows(frame[(frame["model"] == model) & (frame["status"] == OK)])
    kept = all(choice.strategy != YARDSTICK for choice in choices)
    (one_dtype,), (one_ids,) = good["dtype"].unique(), good["tokens"].unique()
    found_regimes = regimes(found, fitting)
    return Advice(
        model, one_dtype, one_ids, layers, table_gb, table_gb if kept else 0.0, choices, found_regimes, sort_rows, notes
    )


def _select(frame: pd.DataFrame, model: str, dtype: str | None, ids: str | None) -> pd.DataFrame:
    good = frame[(frame["status"] == OK) & (frame["case"] == FULL)]
    if good.empty:
        raise AdviceError("the data hold no measured `full`")
    for key, column, wanted in (("model", "model", model), ("dtype", "dtype", dtype), ("ids", "tokens", ids)):
        values = sorted(good[column].unique())
        if wanted is not None and wanted not in values:
            raise AdviceError(f"{key}={wanted}: not measured; the data hold {', '.join(values)}")
        if wanted is None and len(values) > 1:
            raise AdviceError(f"{key}: the data hold {', '.join(values)}; choose one")
        good = good[good[column] == (wanted or values[0])]
    sizes = sorted(good["row_bytes"].unique())
    if len(sizes) > 1:
        raise AdviceError(f"rows of {', '.join(f'{size:g}' for size in sizes)} bytes: load the campaigns apart")
    return good


def _layers(model: str) -> tuple[int, list[str]]:
    path = MODELS / f"{model}.yaml"
    if path.exists():
        plain: Any = OmegaConf.to_container(OmegaConf.load(path))
        return len(plain["layers"]), []
    return 1, [f"{model} has no file in conf/model: counted as one layer"]


def _choose(found: Mapping[str, Curve], fitting: Sequence[str], use: str, tokens: int, layers: int) -> Choice:
    times = {name: time_at(found[name], tokens) for name in fitting}
    known = {name: time for name, time in times.items() if time.ms is not None}
    if not known:
        return Choice(use, tokens, None, [], UNKNOWN, None, {})
    best = min(known, key=lambda name: known[name].ms or 0.0)
    undecided = [name for name in known if name != best and known[name].overlaps(known[best])]
    yardstick = time_at(found.get(YARDSTICK, {}), tokens).ms
    added = None if yardstick is None else ((known[best].ms or 0.0) - yardstick) * layers
    engines = ENGINE_FLAGS.get(best, {"vLLM": CANNOT, "SGLang": CANNOT})
    return Choice(use, tokens, best, undecided, known[best], added, dict(engines))


def _sort_rows(frame: pd.DataFrame) -> tuple[int | None, int | None]:
    """The most row ids at which sorting costs time, and the fewest from which on it saves some: beyond doubt, and over
    all row sizes that were measured both ways."""
    lookups = frame[(frame["case"] == "lookup") & (frame["strategy"] == "uva")]
    lookups = lookups.assign(rows=(lookups["rows_per_s"] * lookups["wall_ms_median"] / 1e3).round())
    by_order = lookups.groupby(["row_bytes", "rows", "row_order"]).agg(
        lo=("wall_ms_lo", "min"), hi=("wall_ms_hi", "max")
    )
    both = by_order.unstack("row_order").dropna()
    if not {AS_ASKED, SORTED} <= set(both.columns.get_level_values("row_order")):
        return None, None
    sizes = both.index.get_level_values("rows")
    costs = sizes[both["lo", SORTED] > both["hi", AS_ASKED]]
    saves = (both["hi", SORTED] < both["lo", AS_ASKED]).groupby(sizes).all()
    after = int(costs.max()) if len(costs) else None
    from_here_on = saves[::-1].cummin()[::-1]
    by = next((int(rows) for rows, clear in from_here_on.items() if clear), None)
    return after, by


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
        AdviceError, FileNotFoundError: as `advise` and `load_campaign`.
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
        plain["regimes"] = [regime._asdict() for regime in advice.regimes]
        print(json.dumps(plain, indent=1))
        return
    print("\n".join(lines_of(advice)))


def lines_of(advice: Advice) -> list[str]:
    """The advice in words."""
    plural = "s" if advice.layers > 1 else ""
    lines = [
        f"{advice.model}, {advice.dtype}, {advice.ids} tokens: {advice.layers} layer{plural} with "
        f"{advice.table_gb:.1f} GB of tables, of which {advice.freed_gb:.1f} GB need not be in device memory"
    ]
    for choice in advice.choices:
        lines += ["", *_choice_lines(choice, plural)]
    lines += ["", "best of these over tokens per step:"]
    for regime in advice.regimes:
        lines.append(f"  {regime.strategy:<10} {_range(regime)}")
    after, by = advice.sort_rows
    if after is None and by is None:
        lines.append("sorting row ids: not measured (experiment=sorting), or undecided at every size")
    else:
        costs = f"at up to {after:,} rows" if after else "at no size for certain"
        saves = f"from {by:,} rows on" if by else "at no size for certain"
        lines.append(f"sorting row ids costs time {costs}, and saves time {saves}")
        lines.append(f"  here lookup.sort_from_rows, in vLLM fixed at {VLLM_SORTS_FROM:,}")
    return lines + [f"note: {note}" for note in advice.notes]


def _choice_lines(choice: Choice, plural: str) -> list[str]:
    head = f"{choice.use}, {choice.tokens:,} tokens per step: "
    if choice.strategy is None:
        return [head + "not measured; nothing is extrapolated"]
    time = choice.ms_per_layer
    interval = f" ({time.lo:.4g} to {time.hi:.4g})" if time.lo is not None and time.hi is not None else ""
    lines = [head + choice.strategy, f"  {time.ms:.4g} ms a layer{interval}, {time.known}"]
    if choice.undecided:
        lines.append(f"  undecided against {', '.join(choice.undecided)}: their intervals overlap")
    if choice.added_ms_per_step is not None:
        lines.append(
            f"  adds {choice.added_ms_per_step:.4g} ms a step to tables in device memory, its layer{plural} together"
        )
    lines += [f"  {engine}: {flags}" for engine, flags in choice.engines.items()]
    return lines


def _range(regime: Regime) -> str:
    sizes = f"{regime.first:,}" + (f" to {regime.last:,}" if regime.last > regime.first else "")
    if regime.begins_by is None and regime.begins_after is None:
        return sizes
    after = f"above {regime.begins_after:,}" if regime.begins_after else "from the first size on"
    by = f"at {regime.begins_by:,} at the latest" if regime.begins_by else "beyond doubt nowhere"
    return f"{sizes} (takes over {after}, {by})"
