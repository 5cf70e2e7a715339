"""The ways in which a strategy was measured: what one types for each, whose it is, and which runs tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pandas as pd

from engram_exp.analysis.subjects import WAYS, as_typed, spelled, with_nulls
from engram_exp.results import schema
from engram_exp.results.schema import KEYS, of_role

if TYPE_CHECKING:
    from engram_exp.analysis.curves import Time
    from engram_exp.analysis.engines import Setting

BUNDLE, OPTIONS = "components", of_role(schema.OPTIONS)
BY_BUNDLE, OF_ENGINE = "by_bundle", "of_engine"  # columns that analyses add
FEW = 3  # others are named one by one
TELLS = ("strategy", "model", "dtype", "row_bytes", "batch_size", "seq_len", *WAYS)  # what follows from a bundle


class Bundles(Protocol):
    """What a bundle brings, as `engram_exp.config.decoders` tells it."""

    def brought_by(self, row: Mapping[str, Any]) -> dict[str, str]: ...


@dataclass(frozen=True)
class Way:
    """The fastest way in which a strategy was measured, where there are several, or where a bundle makes it.

    tokens: per step, where it was measured.
    overrides: what one types to get it, as far as the ways differ; of a bundle, it and whatever it does not bring.
    of: how many there are.
    engine: the release whose own way it is, as `vLLM 0.33.0`; empty: none's.
    undecided, slower: the others that runs do not tell from it, and those that they do: an engine's by its release,
        else by what one types for it.
    by_engine: the times of engines' own ways among them, by release.
    """

    tokens: int
    overrides: list[str]
    of: int
    engine: str = ""
    undecided: list[str] = field(default_factory=list)
    slower: list[str] = field(default_factory=list)
    by_engine: dict[str, Time] = field(default_factory=dict)


class OfRelease(NamedTuple):
    """What a release can do: a strategy, its time, and whether that is of the release's own way."""

    strategy: str
    time: Time
    is_own: bool


def with_bundles(rows: pd.DataFrame, bundles: Bundles) -> pd.DataFrame:
    """The rows and `by_bundle`: which of their columns tell no more than what their bundle brings."""
    if BY_BUNDLE in rows:
        return rows
    told = with_nulls(as_typed(rows))[[*TELLS]].map(spelled)
    found: dict[tuple[str, ...], str] = {}
    for values in dict.fromkeys(told.itertuples(index=False, name=None)):
        row = dict(zip(TELLS, values, strict=True))
        brought = bundles.brought_by(row)
        found[values] = " ".join(name for name, value in brought.items() if row[name].split(" ")[0] == value)
    return rows.assign(**{BY_BUNDLE: [found[values] for values in told.itertuples(index=False, name=None)]})


def ways_of(tokens: int, rows: Sequence[Mapping[str, Any]], times: Sequence[Time]) -> list[Way]:
    """The first of some ways as a list; none if there is nothing to tell of it.

    Args:
        tokens: per step.
        rows: of each way, with `of_engine` and `by_bundle`.
        times: of each, the least first.
    """
    differing = [name for name in WAYS if len({spelled(row[name]) for row in rows}) > 1]
    typed = [_typed(row, differing) for row in rows]
    if len(rows) == 1 and not typed[0]:
        return []
    engines = [row[OF_ENGINE] for row in rows]
    named = (f"{engine}'s way" if engine else " ".join(texts) for engine, texts in zip(engines, typed, strict=True))
    names = [name or "the way without these" for name in named]
    open_ones = [time.is_open_against(times[0]) for time in times]
    others = [*zip(names, open_ones, strict=True)][1:]
    undecided, slower = ([name for name, is_open in others if is_open is kind] for kind in (True, False))
    by_engine = {engine: time for engine, time in zip(engines, times, strict=True) if engine}
    return [Way(tokens, typed[0], len(rows), engines[0], undecided, slower, by_engine)]


def _typed(row: Mapping[str, Any], differing: Sequence[str]) -> list[str]:
    """What one types for a way."""
    brought, names = row[BY_BUNDLE].split(), differing
    if brought and (BUNDLE in differing or BUNDLE not in brought):
        own = [name for name in WAYS if name not in (BUNDLE, *brought) and (name in differing or name not in OPTIONS)]
        names = [BUNDLE, *own]
    told = ((name, spelled(row[name])) for name in names)
    return [
        text
        for name, value in told
        if value
        for text in (value.split() if name in OPTIONS else [f"{KEYS[name]}={value}"])
    ]


def others_of(undecided: Sequence[str], slower: Sequence[str], ways: Sequence[Way]) -> tuple[list[str], list[str]]:
    """What runs do not tell from a choice, and what is slower: other strategies, and the other ways of its own."""
    open_ways, behind = ([name for way in ways for name in getattr(way, part)] for part in ("undecided", "slower"))
    return [*undecided, *few(open_ways)], [*slower, *few(behind)]


def whose(ways: Sequence[Way]) -> str:
    """Whose own ways these are, in words; of none's, the empty text."""
    return "; ".join(f"{engine}'s way" for engine in dict.fromkeys(way.engine for way in ways) if engine)


def few(names: list[str]) -> list[str]:
    """The names of a few ways, or how many there are."""
    return names if len(names) <= FEW else [f"{len(names)} other ways"]


def against(undecided: Sequence[str], slower: Sequence[str]) -> str:
    """What is decided of a choice; of nothing, the empty text."""
    others = ", ".join(slower) if len(slower) <= FEW else f"{len(slower)} others"
    parts = f"undecided against {', '.join(undecided)}" if undecided else "", f"ahead of {others}" if slower else ""
    return "; ".join(filter(None, parts))


def best_of_release(settings: Mapping[str, Setting], times: Mapping[str, tuple[Time, Time | None]]) -> OfRelease | None:
    """The best of what a release has flags for: each strategy by its own way, if that was measured, and as it was at
    best. What may not be its way comes last, of strategies for which it has one.

    Args:
        settings: of the release, by strategy.
        times: of strategies that fit; and of its own way, where that was measured.
    """
    found = [OfRelease(name, own or time, own is not None) for name, (time, own) in times.items() if name in settings]
    return min(found, key=lambda one: (bool(settings[one.strategy].own) > one.is_own, one.time.ms or 0.0), default=None)
