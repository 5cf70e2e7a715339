"""What a strategy and a choice of cases come to, before anything is built: which stages stand where.

Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engram_exp.errors import ConfigError
from engram_exp.stage import PlannedStage
from engram_exp.vocabulary import (
    ALIASES,
    CASES,
    DECODER,
    DEVICE,
    EMBEDDINGS,
    FUSION,
    HOST,
    KV,
    LAYER,
    LINK,
    LOOKUP,
    OF_A_STEP,
    PARTS,
    PLACED_WITH,
    PROJECTION,
    ROWS,
    STEPS,
    TOKEN_IDS,
    UPLOAD_OF,
    WHOLES,
    WIDENING,
)

OF_FP8 = (PARTS, EMBEDDINGS)  # values that stand only where rows are not stored in the compute dtype


def upload_of(value: str) -> PlannedStage:
    """The stage that takes a value across the link."""
    return PlannedStage(UPLOAD_OF[value], LINK, value, value)


def plan_stages(
    places: Mapping[str, str], *, widens: bool = False, looked_up: str = ROWS, fuses: bool = False
) -> tuple[PlannedStage, ...]:
    """Put the steps in order, and an upload wherever a value is needed in another place than where it was made. Token
    ids are made on the host, and keys and value must end on the device, where the model's hidden state is.

    Args:
        places: `host` or `device` for each step that is placed, and for the table; for the lookup also `link`: it takes
            row ids on the host and leaves rows on the device.
        widens: stored rows are not yet in the compute dtype; otherwise they are the embeddings.
        looked_up: what the lookup then makes: rows, parts, or embeddings, which leave nothing to widen behind it.
        fuses: keys and value are put into the hidden state.

    Raises:
        ConfigError: an unknown place, a step on the host behind one on the device, or one that cannot reach the table.
    """
    if places["table"] not in (HOST, DEVICE):
        raise ConfigError("strategy.table", places["table"], f"must be {HOST} or {DEVICE}")
    if places["table"] == DEVICE and places[LOOKUP.name] in (HOST, LINK):
        raise ConfigError(f"strategy.{LOOKUP.name}", places[LOOKUP.name], "must be device, since the table is there")
    stages: list[PlannedStage] = []
    made_on = {TOKEN_IDS: HOST}
    values = {ROWS: looked_up} if widens else {EMBEDDINGS: ROWS}
    for step in STEPS if fuses else [step for step in STEPS if step != FUSION]:
        needs, makes = (values.get(value, value) for value in (step.needs, step.makes))
        if needs == makes:  # nothing is left to widen
            continue
        key = PLACED_WITH.get(step.name, step.name)
        place = DEVICE if step == FUSION else places[key]
        allowed = (HOST, DEVICE, LINK) if step == LOOKUP else (HOST, DEVICE)
        if place not in allowed:
            raise ConfigError(f"strategy.{key}", place, f"must be one of {', '.join(allowed)}")
        stage = PlannedStage(step.name, place, needs, makes)
        if (made_on[needs], stage.read_from) == (DEVICE, HOST):
            raise ConfigError(f"strategy.{key}", place, "must be device, since the step before it runs there")
        if made_on[needs] != stage.read_from:
            stages.append(upload_of(needs))
            made_on[needs] = stage.read_from
        stages.append(stage)
        made_on[makes] = stage.side
    if made_on[KV] != DEVICE:
        stages.append(upload_of(KV))
    return tuple(stages)


def stages_of_whole(case: str, stages: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
    """The stages of a case of several: all up to the last that makes what it ends with."""
    return tuple(stages[: max(n for n, stage in enumerate(stages, start=1) if stage.makes == WHOLES[case])])


def works_alone(stages: Sequence[PlannedStage]) -> bool:
    """Whether the device does all of it, and the host nothing."""
    return all(stage.place != HOST for stage in stages)


def overlapping(stages: Sequence[PlannedStage]) -> tuple[int, int]:
    """The numbers of two stages of a pipeline: of the first that takes chunks, and of the one that works beside those
    behind it.

    Where the device works alone, whole batches are hashed, and both are the lookup. Elsewhere all stages take chunks,
    and an upload works beside the others; without a link none does, and its number is that behind the last stage.
    """
    if works_alone(stages):
        lookup = [stage.name for stage in stages].index(LOOKUP.name)
        return lookup, lookup
    return 0, next((number for number, stage in enumerate(stages) if stage.place == LINK), len(stages))


def in_place(stages: Sequence[PlannedStage]) -> int:
    """How many stages of a strategy bring rows to where a model's layer reads them: all before the projection, or where
    that is on the host, the last upload and all before; those behind them are computed where the layer stands."""
    projection = [stage.name for stage in stages].index(PROJECTION.name)
    return max([projection, *(number for number, stage in enumerate(stages, start=1) if stage.is_upload)])


def select_cases(requested: object, stages: Sequence[PlannedStage], *, decodes: bool = False) -> tuple[str, ...]:
    """The cases to time, in the order of the stages.

    Args:
        requested: `all`, a name, or a list of names.
        stages: of the strategy; `all` means these, `full` and, with a fusion, `layer`.
        decodes: a decoder is chosen; `all` then means the cases of its step, too.

    Raises:
        ConfigError: an unknown name, an empty list, or a step that cannot be timed under this strategy.
    """
    names = [requested] if isinstance(requested, str) else requested
    if not isinstance(names, Sequence) or not names:
        raise ConfigError("cases", requested, f"must be a list of at least one of {_choices()}")
    own = [stage.name for stage in stages]
    wholes = [case for case, value in WHOLES.items() if any(stage.makes == value for stage in stages)]
    selected: set[str] = set()
    for name in names:
        if name == "all":
            selected.update(own, wholes, OF_A_STEP if decodes else ())
        elif name in ALIASES:
            selected.update(ALIASES[name])
        elif name == WIDENING.name and name not in own:
            raise ConfigError("cases", name, _why_nothing_widens(stages))
        elif name in (FUSION.name, LAYER) and LAYER not in wholes:
            raise ConfigError("cases", name, "no fusion is chosen; fusion=gated or fusion=gated_conv has it")
        elif name in OF_A_STEP and not decodes:
            raise ConfigError(
                "cases", name, f"no {DECODER} is chosen; {DECODER}=dense_8b has it, {DECODER}=tiny anywhere"
            )
        elif name in CASES:
            selected.add(name)
        else:
            raise ConfigError("cases", name, f"unknown; choose from {_choices()}")
    others = (name for name in CASES if name not in (*own, *WHOLES, *OF_A_STEP))
    order = [*own, *others, *WHOLES, *OF_A_STEP]
    return tuple(name for name in order if name in selected)


def needed_stages(cases: Sequence[str], stages: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
    """The stages that must be built to time these cases: all of a whole; for a lookup also those that make its row ids;
    the others can be timed on made-up input. The original's uploads can be timed under any strategy.
    """
    own = {stage.name: stage for stage in stages}
    wholes = [stages_of_whole(case, stages) for case in cases if case in WHOLES]
    needed = {*cases, *(stage.name for whole in wholes for stage in whole)}
    if LOOKUP.name in needed:
        before = list(own)[: list(own).index(LOOKUP.name)]
        needed.update(before)
    made = {stage.makes for stage in stages}
    uploads = {UPLOAD_OF[value]: upload_of(value) for value in UPLOAD_OF if value in made or value not in OF_FP8}
    others = {name: stage for name, stage in uploads.items() if name not in own}
    return tuple(stage for name, stage in (own | others).items() if name in needed)


def made_up_inputs(built: Sequence[PlannedStage], stages: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
    """Those of the built stages whose input is made up: no other built stage makes it where it is needed, or they are
    no stages of the strategy. Token ids are there by themselves.

    Args:
        built: in order.
        stages: of the strategy; none of them crosses a link where host and device are the same memory.
    """
    crosses = any(stage.place == LINK for stage in stages)
    made = {(TOKEN_IDS, HOST)}
    made_up = []
    for stage in built:
        if stage not in stages or (stage.needs, stage.read_from if crosses else HOST) not in made:
            made_up.append(stage)
        made.add((stage.makes, stage.side if crosses else HOST))
    return tuple(made_up)


def _why_nothing_widens(stages: Sequence[PlannedStage]) -> str:
    if any(stage.makes == EMBEDDINGS for stage in stages):
        return "the lookup widens rows while it gathers them; with lookup.widen=false they are widened behind it"
    return "rows are stored in the compute dtype; with dtype=fp8 they are widened"


def _choices() -> str:
    return ", ".join(["all", *CASES, *ALIASES])
