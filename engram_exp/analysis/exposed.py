"""What a model's step takes longer because its rows must be fetched, by size of step and strategy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from engram_exp.analysis.curves import Time, times_of
from engram_exp.analysis.engines import DECODE, ONE_GPU, PREFILL, Gpus, Setting, settings_for
from engram_exp.analysis.exposed_rows import exposed_times
from engram_exp.analysis.ways import BY_BUNDLE, best_of_release
from engram_exp.results.schema import KEYS
from engram_exp.vocabulary import BESIDE, LOW, ONE, THIS_STEP

YARDSTICK, YARDSTICK_OF_RANKS = "device", "replicated"
USUALLY = {"prefetch": BESIDE, "lead": THIS_STEP, "prefetch_streams": ONE, "prefetch_priority": LOW}
TOLD: dict[str, Any] = {  # of rows of one strategy and size together
    "ready_ms": ("ready_ms", "median"), "device_bytes": ("peak_device_bytes", "max"),
    "table_scale": ("table_scale", "min"), "batch_size": ("batch_size", "first"), "seq_len": ("seq_len", "first"),
}  # fmt: skip


class OnDevice(NamedTuple):
    """What a strategy keeps of the tables in each device's memory, at full size, and how much less than all of them
    that is, 10^9 bytes; None where all of them would not fit there, so that nothing is freed."""

    kept_gb: float = 0.0
    freed_gb: float | None = 0.0


@dataclass(frozen=True)
class Exposed:
    """What steps of one size take longer with a strategy than with the rows of all layers in place.

    Args:
        strategy: in the way that exposes the least, where it was measured in several.
        overrides: what one types for it: the strategy, unless a bundle brings it, what tells its way from others that
            were measured, and how its rows are fetched, wherever that is not as usual.
        time: longer, all layers together.
        percent, percent_lo, percent_hi: the same, of the step with rows in place.
        ready_ms: that step; of several runs, the median of their medians.
        kept_gb: of the tables in device memory, at full size.
        freed_gb: of device memory, against all tables there; None where these do not fit.
        cached_tokens: whose keys and values the decoder could keep in that; None where its sizes do not tell.
        cached_sequences: as many of its contexts, likewise.
    """

    strategy: str
    overrides: list[str]
    time: Time
    percent: float | None
    percent_lo: float | None
    percent_hi: float | None
    ready_ms: float
    kept_gb: float
    freed_gb: float | None
    cached_tokens: int | None
    cached_sequences: int | None


@dataclass(frozen=True)
class OfEngine:
    """What steps of one size take longer in a release of an engine.

    Args:
        strategy: the least exposed of those that fit and that it has flags for; those whose own way was measured first.
        is_own: its own way was (`Setting.own`); else these are the times of the strategy, which need not be its.
        time, percent: as `Exposed` has them.
    """

    strategy: str
    is_own: bool
    time: Time
    percent: float | None


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
        engines: by name and version, what its user can have, if anything.
        yardstick: the strategy that others are held against.
    """

    use: str
    batch_size: int
    seq_len: int
    best: str | None
    undecided: list[str]
    more: list[str]
    strategies: list[Exposed]
    engines: dict[str, OfEngine | None]
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


def steps_of(
    steps: pd.DataFrame,
    fitting: Collection[str],
    on_device: Mapping[str, OnDevice],
    kept: tuple[int, int] | None,
    gpus: Gpus = ONE_GPU,
) -> list[Step]:
    """What is exposed, size by size: decode steps, then prompts.

    Args:
        steps: of one subject, as `beside_fast_decoders` returns them.
        fitting: strategies within the budget of device memory.
        on_device: what each strategy keeps of the tables in device memory.
        kept: by the decoder of a sequence: bytes of a token, and tokens; None where that is unknown.
        gpus: that share the work.
    """
    steps, found = exposed_times(steps), []
    for use, part in ((DECODE, steps[steps["seq_len"] == 1]), (PREFILL, steps[steps["seq_len"] > 1])):
        sizes: dict[int, list[tuple[dict[str, Any], Time]]] = {}
        for row, time in times_of(part, **TOLD):
            sizes.setdefault(row["tokens_per_step"], []).append((row, time))
        for _, strategies in sorted(sizes.items()):
            found.append(_step(use, strategies, fitting, on_device, kept, gpus))
    return found


def _step(
    use: str,
    strategies: list[tuple[dict[str, Any], Time]],
    fitting: Collection[str],
    on_device: Mapping[str, OnDevice],
    kept: tuple[int, int] | None,
    gpus: Gpus,
) -> Step:
    held_against = yardstick_of(gpus.number)
    yardstick = next((row for row, _ in strategies if row["strategy"] == held_against), None)
    found = [_exposed(row, time, yardstick, on_device[row["strategy"]], kept) for row, time in strategies]
    found.sort(key=lambda one: one.time.ms or 0.0)
    able = [one for one in found if one.strategy in fitting]
    open_ones = [one.strategy for one in able[1:] if one.time.is_open_against(able[0].time)]
    batch_size, seq_len = (int(strategies[0][0][name]) for name in ("batch_size", "seq_len"))
    return Step(
        use=use,
        batch_size=batch_size,
        seq_len=seq_len,
        best=able[0].strategy if able else None,
        undecided=open_ones,
        more=[one.strategy for one in able[1:] if one.strategy not in open_ones],
        strategies=found,
        engines={release: _of_engine(release, settings, able) for release, settings in settings_for(use, gpus).items()},
        yardstick=held_against,
    )


def _exposed(
    row: dict[str, Any],
    time: Time,
    yardstick: dict[str, Any] | None,
    tables: OnDevice,
    kept: tuple[int, int] | None,
) -> Exposed:
    """What steps take longer with a strategy, and what it leaves of the device's memory.

    Args:
        row, time: of the strategy, as `times_of` has them.
        yardstick: the row of the strategy that it is held against.
        tables, kept: as `steps_of` has them.
    """
    ready_ms = row["ready_ms"]
    freed_gb = _freed_gb(row, yardstick, tables.freed_gb)
    cached_tokens = cached_sequences = None
    if kept and freed_gb is not None and freed_gb > 0:
        token_bytes, context_tokens = kept
        cached_tokens = int(freed_gb * 1e9 // token_bytes)
        cached_sequences = cached_tokens // context_tokens
    return Exposed(
        strategy=row["strategy"],
        overrides=_overrides(row, time),
        time=time,
        percent=_percent(time.ms, ready_ms),
        percent_lo=_percent(time.lo, ready_ms),
        percent_hi=_percent(time.hi, ready_ms),
        ready_ms=ready_ms,
        kept_gb=tables.kept_gb,
        freed_gb=freed_gb,
        cached_tokens=cached_tokens,
        cached_sequences=cached_sequences,
    )


def _of_engine(release: str, settings: Mapping[str, Setting], able: Sequence[Exposed]) -> OfEngine | None:
    """What its user can have of these."""
    best = best_of_release(settings, {one.strategy: (one.time, one.time.of_engine(release)) for one in able})
    if best is None:
        return None
    ready_ms = next(one.ready_ms for one in able if one.strategy == best.strategy)
    return OfEngine(best.strategy, best.is_own, best.time, _percent(best.time.ms, ready_ms))


def _overrides(row: dict[str, Any], time: Time) -> list[str]:
    first, *others = f"strategy={row['strategy']}".split()
    told = [] if "strategy" in row[BY_BUNDLE].split() else [first]
    unusual = [f"{KEYS[name]}={row[name]}" for name, usual in USUALLY.items() if row[name] not in (usual, "")]
    return list(dict.fromkeys([*told, *others, *(text for way in time.ways for text in way.overrides), *unusual]))


def _percent(ms: float | None, whole_ms: float) -> float | None:
    return None if ms is None else ms / whole_ms * 100


def _freed_gb(row: dict[str, Any], yardstick: dict[str, Any] | None, of_tables_gb: float | None) -> float | None:
    """As measured where the whole tables were, on both sides; else the tables, if they fit."""
    if of_tables_gb is not None and (row is yardstick or of_tables_gb <= 0):
        return 0.0
    if yardstick is not None and min(row["table_scale"], yardstick["table_scale"]) == 1 and row["device_bytes"] > 0:
        return float(yardstick["device_bytes"] - row["device_bytes"]) / 1e9
    return of_tables_gb
