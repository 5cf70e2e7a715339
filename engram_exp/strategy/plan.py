"""What a strategy and a choice of cases come to, before anything is built: which stages stand where.

Wherever two neighbouring steps sit on different sides of the link, an upload stands between them; token ids start on
the host, and keys and value must end on the device. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engram_exp.errors import ConfigError
from engram_exp.vocabulary import (
    ALIASES,
    AS_ASKED,
    AUTO_ORDER,
    CASES,
    DEVICE,
    FULL,
    HOST,
    LINK,
    ROW_ORDERS,
    SORTED,
    UPLOAD_AT_END,
    UPLOAD_BEFORE,
)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a strategy before anything is built: its name and the place (host, link or device) it keeps busy."""

    name: str
    place: str


def plan_stages(places: Mapping[str, str], *, widens: bool = False) -> tuple[PlannedStage, ...]:
    """Put the steps in order and an upload wherever the link must be crossed.

    Args:
        places: `host` or `device` for each of hashing, lookup and projection, and for the table.
        widens: stored rows are not yet in the compute dtype.

    Raises:
        ConfigError: an unknown place, a step on the host behind one on the device, or one that cannot reach the table.
    """
    if places["table"] not in (HOST, DEVICE):
        raise ConfigError("strategy.table", places["table"], f"must be {HOST} or {DEVICE}")
    if (places["table"], places["lookup"]) == (DEVICE, HOST):
        raise ConfigError("strategy.lookup", HOST, "must be device, since the table is there")
    stages: list[PlannedStage] = []
    crossed = False
    for step in ("hashing", "lookup", *(["widening"] if widens else []), "projection"):
        place = places["projection" if step == "widening" else step]
        if place not in (HOST, DEVICE):
            raise ConfigError(f"strategy.{step}", place, f"must be {HOST} or {DEVICE}")
        if crossed and place == HOST:
            raise ConfigError(f"strategy.{step}", place, "must be device, since the step before it runs there")
        if place == DEVICE and not crossed:
            stages.append(PlannedStage(UPLOAD_BEFORE[step], LINK))
            crossed = True
        stages.append(PlannedStage(step, place))
    if not crossed:
        stages.append(PlannedStage(UPLOAD_AT_END, LINK))
    return tuple(stages)


def select_cases(requested: object, stages: Sequence[PlannedStage]) -> tuple[str, ...]:
    """The cases to time, in the order of the stages.

    Args:
        requested: `all`, a name, or a list of names.
        stages: of the strategy; `all` means these and `full`.

    Raises:
        ConfigError: an unknown name, an empty list, or a step that cannot be timed under this strategy.
    """
    names = [requested] if isinstance(requested, str) else requested
    if not isinstance(names, Sequence) or not names:
        raise ConfigError("cases", requested, f"must be a list of at least one of {_choices()}")
    own = [stage.name for stage in stages]
    selected: set[str] = set()
    for name in names:
        if name == "all":
            selected.update(own, [FULL])
        elif name in ALIASES:
            selected.update(ALIASES[name])
        elif name == "widening" and name not in own:
            raise ConfigError("cases", name, "rows are stored in the compute dtype; with dtype=fp8 they are widened")
        elif name in CASES:
            selected.add(name)
        else:
            raise ConfigError("cases", name, f"unknown; choose from {_choices()}")
    order = [*own, *(name for name in CASES if name not in own and name != FULL), FULL]
    return tuple(name for name in order if name in selected)


def needed_stages(cases: Sequence[str], stages: Sequence[PlannedStage]) -> tuple[str, ...]:
    """Names of the stages that must be built to time these cases. A lookup needs the row ids of a hash; the others
    can be timed on made-up input."""
    own = [stage.name for stage in stages]
    if FULL in cases:
        return (*own, *(case for case in cases if case not in own and case != FULL))
    needed = set(cases)
    if "lookup" in needed:
        needed.update(own[: own.index("lookup")])
    order = [*own, *(case for case in cases if case not in own)]
    return tuple(name for name in order if name in needed)


def made_up_inputs(names: Sequence[str], stages: Sequence[PlannedStage]) -> tuple[str, ...]:
    """Those of the built stages whose input no other built stage makes: the one before is not built, because no case
    needs it, or the strategy has no such stage (the original's uploads can be timed under any strategy)."""
    own = [stage.name for stage in stages]
    real = [own[0], *(after for before, after in pairwise(own) if before in names)]
    return tuple(name for name in names if name not in real)


def row_order(order: str, rows: int, sort_from_rows: int, table: str) -> str:
    """The order in which a kernel reads rows: as_asked or sorted.

    `auto` means sorted from `sort_from_rows` rows on, if they come through the link.

    Raises:
        ConfigError: an unknown order.
    """
    if order not in ROW_ORDERS:
        raise ConfigError("lookup.order", order, f"must be one of {', '.join(ROW_ORDERS)}")
    if order != AUTO_ORDER:
        return order
    return SORTED if table == HOST and rows >= sort_from_rows else AS_ASKED


def _choices() -> str:
    return ", ".join(["all", *CASES, *ALIASES])
