"""Which strategy for decoding and for prefill, within a budget of device memory, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from engram_exp.analysis.advice import ALONE, Advice
from engram_exp.analysis.answers import Answer
from engram_exp.analysis.choices import Choice, Option
from engram_exp.analysis.compare import ENOUGH_RUNS
from engram_exp.analysis.curves import INTERPOLATED, MEASURED, MOST_APART, Regime, Time
from engram_exp.analysis.engines import sorting
from engram_exp.analysis.exposed import yardstick_of
from engram_exp.analysis.exposed_in_words import CardInWords, cards_of, differences, lines_of_card
from engram_exp.analysis.placements_in_words import lines_of_placements
from engram_exp.analysis.ways import against, others_of, whose
from engram_exp.analysis.worth_in_words import lines_of_worth


class Point(NamedTuple):
    """A line about a choice, and what one types for it, if anything."""

    text: str
    flags: str = ""


class Use(NamedTuple):
    """A choice in words: its heading, and what is known of it."""

    heading: str
    points: list[Point]


@dataclass(frozen=True)
class Words:
    """Advice in words, for a terminal and for a page.

    Args:
        tables: how large they are, and where they need not be.
        placements: what each strategy takes of several GPUs, and its times; none of one.
        cards: of decode steps and prompts of a model; none where no step was measured.
        uses: decode and prefill, by the layer's time alone; none where steps were measured.
        regimes: strategies and the tokens per step at which each is best.
        sort_rows: whether sorting row ids pays, and when engines do it.
        worth: how much memory for rows pays back; none where none was given any.
        notes: what limits the advice.
        engines: what the releases that are named do otherwise than was measured.
    """

    tables: str
    placements: list[str]
    cards: list[CardInWords]
    uses: list[Use]
    regimes: list[tuple[str, str]]
    sort_rows: list[str]
    worth: list[str]
    notes: list[str]
    engines: list[str]


def in_words(advice: Advice) -> Words:
    """The advice in words."""
    plural = "s" if advice.layers > 1 else ""
    memory = "device memory" if advice.gpus.number == 1 else "the memory of each GPU"
    freed = "" if advice.freed_gb is None else f", of which {advice.freed_gb:.1f} GB need not be in {memory}"
    if advice.too_small_gb is not None:
        freed = f", which do not fit {memory} ({advice.too_small_gb:.1f} GB at most)"
    return Words(
        tables=f"{advice.layers} layer{plural} with {advice.table_gb:.1f} GB of tables{freed}; they take "
        f"{advice.rounded_up_gb:.1f} GB of host memory where an allocator rounds each array up to a power of two, as "
        "PyTorch's does for pinned memory",
        cards=cards_of(advice),
        placements=lines_of_placements(advice),
        uses=[_use(choice, plural, yardstick_of(advice.gpus.number)) for choice in advice.choices],
        regimes=[(regime.strategy, _range(regime)) for regime in advice.regimes],
        sort_rows=[] if advice.steps and not any(advice.sort_rows) else _sorting(*advice.sort_rows),
        worth=lines_of_worth(advice.worth),
        notes=advice.notes,
        engines=_differences(advice),
    )


def lines_of(advice: Advice) -> list[str]:
    """The advice as lines for a terminal."""
    return _lines([(f"{advice.model}, {advice.dtype}, {advice.ids} tokens", in_words(advice))], [])


def lines_of_all(answers: Sequence[Answer]) -> list[str]:
    """All answers as lines for a terminal."""
    told = [(one.subject.label, in_words(one.advice)) for one in answers if one.advice]
    return _lines(told, [f"{one.subject.label}: no advice: {one.why_none}" for one in answers if not one.advice])


def shared(told: Sequence[Words]) -> tuple[list[str], list[str]]:
    """Notes that hold for all of these, and what the engines named in any of them do otherwise."""
    notes = [note for note in (told[0].notes if told else []) if all(note in words.notes for words in told)]
    return notes, list(dict.fromkeys(chain(*(words.engines for words in told))))


def _lines(told: Sequence[tuple[str, Words]], refused: list[str]) -> list[str]:
    """Advice with its labels, what gives none, and once behind them the notes for all."""
    notes, engines = shared([words for _, words in told])
    groups = [_own_lines(label, words, notes) for label, words in told]
    groups += [group for group in (refused, [f"note: {note}" for note in notes + engines]) if group]
    return "\n\n".join("\n".join(group) for group in groups).split("\n")


def _own_lines(label: str, words: Words, told_below: Sequence[str]) -> list[str]:
    lines = [f"{label}: {words.tables}", *(f"  {line}" for line in words.placements)]
    for card in words.cards:
        lines += ["", *lines_of_card(card)]
    for use in words.uses:
        lines += ["", use.heading, *(f"  {text} {flags}".rstrip() for text, flags in use.points)]
    if words.uses:
        none = "" if words.regimes else " no size was measured for two strategies"
        lines += ["", f"best over tokens per step:{none}"]
    lines += [f"  {strategy:<10} {sizes}" for strategy, sizes in words.regimes]
    sorting = [f"  {line}" if number else line for number, line in enumerate(words.sort_rows)]
    notes = [f"note: {note}" for note in words.notes if note not in told_below]
    return [*lines, *sorting, *words.worth, *notes]


def span(time: Time) -> tuple[str, str]:
    """A time and its interval, ms, four digits; without an interval, the second is empty."""
    if time.ms is None:
        return "", ""
    if time.lo is None or time.hi is None:
        return f"{time.ms:.4g}", ""
    alone = " within its one process" if time.known == MEASURED else " within one process"
    return f"{time.ms:.4g}", f"{time.lo:.4g} to {time.hi:.4g}{alone if time.runs == 1 else ''}"


def certainty(choice: Choice) -> str:
    """What the data decide of a choice."""
    if choice.strategy is None:
        return f"not measured; the nearest that was: {_nearest(choice)}"
    time = choice.ms_per_layer
    undecided, slower = others_of(choice.undecided, choice.slower, time.ways)
    few = f" by intervals of fewer than {ENOUGH_RUNS} runs" if not undecided and time.runs < ENOUGH_RUNS else ""
    text = against(undecided, slower) + few if undecided or slower else "nothing else that fits was measured there"
    how = "" if time.known == MEASURED else time.known
    missing = f"not measured there: {', '.join(choice.unmeasured)}" if choice.unmeasured else ""
    return "; ".join(filter(None, (whose(time.ways), text, how, missing)))


def _use(choice: Choice, plural: str, yardstick: str) -> Use:
    head = f"{choice.use}, {choice.tokens:,} tokens per step: "
    if choice.strategy is None:
        no_guess = f"nothing is extrapolated, nor interpolated over more than a factor of {MOST_APART}"
        return Use(f"{head}not measured", [Point(f"the nearest that was: {_nearest(choice)}; {no_guess}")])
    time = choice.ms_per_layer
    points = [Point(f"{_span(time)} ms a layer, {time.known} ({_runs(time)})"), *map(Point, _ways(time))]
    if choice.undecided:
        undecided = (
            f"undecided against {', '.join(choice.undecided)}: runs, or intervals of few, overlap or are missing"
        )
        points.append(Point(undecided))
    if choice.unmeasured:
        points.append(Point(f"not measured here: {', '.join(choice.unmeasured)}"))
    if choice.strategy != yardstick and choice.added_ms_per_step is not None:
        added = choice.added_ms_per_step
        how = "" if added.known == time.known else f", {added.known}"
        about, why = ("", "") if added.lo is not None else ("about ", f" ({_why_no_interval(added)})")
        together = f"to tables in device memory, its layer{plural} together{how}{why}"
        points.append(Point(f"adds {about}{_span(added)} ms a step {together}"))
    points.append(Point(ALONE))
    points += [_engine(release, option, choice) for release, option in choice.engines.items()]
    return Use(head + choice.strategy, points)


def _nearest(choice: Choice) -> str:
    return " and ".join(f"{size:,}" for size in choice.nearest)


def _ways(time: Time) -> list[str]:
    lines = []
    for way in time.ways:
        at = f" at {way.tokens:,} tokens" if time.known == INTERPOLATED else ""
        typed = f"as {' '.join(way.overrides)}{at}" if way.overrides else ""
        lines.append(", ".join(filter(None, (typed, whose([way]), against(*others_of([], [], [way]))))))
    return lines


def _why_no_interval(added: Time) -> str:
    if added.runs >= ENOUGH_RUNS:
        return "too few samples in a run: no interval"
    return f"{_runs(added)} on a side: no interval"


def _runs(time: Time) -> str:
    return f"{time.runs} run{'s' if time.runs > 1 else ''}"


def _engine(release: str, option: Option | None, choice: Choice) -> Point:
    if option is None:
        return Point(f"{release}: no option for this strategy, nor for another that fits and was measured here")
    if option.is_own:
        return Point(f"{release} as {option.strategy}, its own way, {_against(release, option, choice)}:", option.flags)
    not_its = ", not its own way" if option.has_own else ""
    if option.strategy == choice.strategy:
        return Point(f"{release} as {option.strategy}{not_its}:", option.flags)
    how = "".join(f", {line}" for line in _ways(option.ms_per_layer))
    nearest = f"the nearest is {option.strategy}{not_its}, {option.ms_per_layer.ms:.4g} ms a layer{how}"
    return Point(f"{release}: no option for this strategy; {nearest}:", option.flags)


def _against(release: str, option: Option, choice: Choice) -> str:
    """The time of an engine's own way, and whether its interval tells it from that of the choice."""
    time, best = option.ms_per_layer, choice.ms_per_layer
    if option.strategy == choice.strategy and best.is_of(release):
        then = "the choice"
    elif time.is_open_against(best):
        then = "undecided against the time above"
    else:
        then = f"of which the choice, not its way, saves {time.more_than(best):.4g}"
    return f"{_span(time)} ms a layer, {then}"


def _differences(advice: Advice) -> list[str]:
    """What the named engines do otherwise, each once."""
    options = [(release, option) for choice in advice.choices for release, option in choice.engines.items() if option]
    of_choices = (f"{release} as {option.strategy}: {option.differs}" for release, option in options)
    return list(dict.fromkeys([*of_choices, *differences(advice.steps, advice.gpus)]))


def _sorting(after: int | None, by: int | None) -> list[str]:
    if after is None and by is None:
        return ["sorting row ids: not measured (experiment=sorting), or undecided at every size"]
    costs = f"still costs time at {after:,} rows" if after else "clearly costs time nowhere"
    saves = f"saves some from {by:,} rows on" if by else "clearly saves some nowhere"
    return [f"sorting row ids {costs}, and {saves}", f"here lookup.sort_from_rows; {sorting()}"]


def _span(time: Time) -> str:
    ms, interval = span(time)
    return f"{ms} ({interval})" if interval else ms


def _range(regime: Regime) -> str:
    ends = [regime.first, *chain(*regime.gaps), regime.last]
    stretches = zip(ends[::2], ends[1::2], strict=True)
    sizes = "; ".join(f"{first:,}" + (f" to {last:,}" if last > first else "") for first, last in stretches)
    if regime.gaps:
        sizes += " (open between these)"
    if regime.begins_by is None and regime.begins_after is None:
        return sizes
    if not regime.begins_after:
        return f"{sizes} (takes over at {regime.begins_by:,} at the latest, undecided at the sizes of the one before)"
    by = f"at {regime.begins_by:,} at the latest" if regime.begins_by else "clearly nowhere"
    return f"{sizes} (takes over above {regime.begins_after:,}, {by})"
