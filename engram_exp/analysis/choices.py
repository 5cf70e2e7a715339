"""The strategy for one use, by the time of the layer alone, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engram_exp.analysis.compare import ENOUGH_RUNS
from engram_exp.analysis.curves import INTERPOLATED, UNKNOWN, Curve, Time, time_at
from engram_exp.analysis.engines import Gpus, Setting, settings_for
from engram_exp.analysis.exposed import yardstick_of
from engram_exp.analysis.ways import best_of_release


@dataclass(frozen=True)
class Option:
    """What a serving engine can do of what was measured and fits the budget.

    Args:
        strategy: the fastest that it has flags for; those that were not measured in its own way last.
        ms_per_layer: its time.
        flags: of the engine's release.
        differs: what the release does otherwise than was measured, and when.
        is_own: its own way was measured (`Setting.own`); else the time is of the strategy, in its fastest way.
        has_own: it has a way of its own, measured or not.
    """

    strategy: str
    ms_per_layer: Time
    flags: str
    differs: str
    is_own: bool
    has_own: bool


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


def choose(
    found: Mapping[str, Curve],
    of_bundles: Mapping[str, Curve],
    fitting: Sequence[str],
    use: str,
    tokens: int,
    layers: int,
    gpus: Gpus,
) -> Choice:
    """The best for one use.

    Args:
        found: times of the layer over tokens, by strategy.
        of_bundles: likewise, where engines' own ways are strategies of their own (`named_by_engine`).
        fitting: strategies within the budget.
        use, tokens: decode or prefill, and tokens per step.
        layers: of the model that have a table.
        gpus: that share the work.
    """
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
    if best == (yardstick := yardstick_of(gpus.number)):
        added: Time | None = replace(time, ms=0.0, lo=0.0, hi=0.0)
    else:
        added = _added(time, time_at(found.get(yardstick, {}), tokens), layers)
    releases = settings_for(use, gpus).items()
    engines = {release: _option(settings, known, of_bundles, tokens) for release, settings in releases}
    return Choice(use, tokens, best, [], unmeasured, undecided, slower, time, added, engines)


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


def _nearest_sizes(found: Mapping[str, Curve], fitting: Sequence[str], tokens: int) -> list[int]:
    sizes = sorted({size for name in fitting for size in found[name]})
    below, above = (size for size in sizes if size < tokens), (size for size in sizes if size > tokens)
    return [*list(below)[-1:], *list(above)[:1]]


def _option(
    settings: Mapping[str, Setting], known: Mapping[str, Time], of_bundles: Mapping[str, Curve], tokens: int
) -> Option | None:
    """What the user of a release can have of these."""
    times = {}
    for name in (name for name in known if name in settings):
        own = time_at(of_bundles.get(settings[name].own.get("components", ""), {}), tokens)
        times[name] = known[name], own if own.ms is not None else None
    best = best_of_release(settings, times)
    if best is None:
        return None
    one = settings[best.strategy]
    return Option(best.strategy, best.time, one.flags, one.differs, best.is_own, bool(one.own))
