"""What a model's step takes longer, in words: for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from engram_exp.analysis.advice import Advice
from engram_exp.analysis.curves import Time
from engram_exp.analysis.engines import ONE_GPU, USES, Gpus, settings_for
from engram_exp.analysis.exposed import Exposed, OfEngine, Step
from engram_exp.analysis.ways import against, few, others_of, whose


class SizeInWords(NamedTuple):
    """What is advised for steps of one size, as texts.

    size: tokens per step, or of a prompt's, sequences x tokens of each.
    certainty, sure: what the data decide, and the same in fewer words.
    us, interval: longer than with the rows in place, of all layers together.
    percent, percents: of the step with rows in place, and its interval.
    yardstick: us that tables in device memory expose; empty where that was not measured, or is the strategy.
    overrides: what one types for it.
    """

    size: str
    certainty: str
    sure: str = ""
    us: str = ""
    interval: str = ""
    percent: str = ""
    percents: str = ""
    yardstick: str = ""
    overrides: str = ""


class CardInWords(NamedTuple):
    """What is advised for one use.

    heading: the use, the decoder as one types it, and in how many runs each size was measured.
    sizes: of steps.
    yardstick: the strategy that others are held against.
    freed: device memory, with what is chosen; or what that keeps there of tables that do not fit as a whole.
    cached: what of the decoder's keys and values fits into the least that is freed; empty where that is unknown.
    engines: release, strategy and sizes in words, and the flags for it, if it has any.
    """

    heading: str
    sizes: list[SizeInWords]
    yardstick: str
    freed: str
    cached: str
    engines: list[tuple[str, str]]


def cards_of(advice: Advice) -> list[CardInWords]:
    """The advice that goes by steps: a card for decode steps, one for prompts."""
    found = []
    for use in USES:
        steps = [step for step in advice.steps if step.use == use]
        if steps:
            heading = f"{use} beside decoder={advice.about['decoder']} ({_runs(steps)})"
            sizes, engines = [*map(_size, steps)], _engines(use, steps, advice.gpus)
            found.append(CardInWords(heading, sizes, steps[0].yardstick, _freed(steps), _cached(steps), engines))
    return found


def lines_of_card(card: CardInWords) -> list[str]:
    """A card as lines for a terminal."""
    cells = [("tokens", "choose", "us longer", "of the step", f"{card.yardstick}, us", "how sure")]
    for size in card.sizes:
        us, percent = _and(size.us, size.interval), _and(size.percent, size.percents)
        cells.append((size.size, size.overrides, us, percent, size.yardstick, size.certainty))
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) if any(column[1:]) else 0 for column in columns]
    lines = [f"{card.heading}: what a step takes longer than with the rows of all layers in place"]
    for row in cells:
        told = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        lines.append(f"  {'  '.join(told)}".rstrip())
    lines += [f"  {text}" for text in (card.freed, card.cached) if text]
    return lines + [f"  {text} {flags}".rstrip() for text, flags in card.engines]


def differences(steps: Sequence[Step], gpus: Gpus = ONE_GPU) -> list[str]:
    """What the engines that are named do otherwise than was measured, each once."""
    named = [(step.use, release, one.strategy) for step in steps for release, one in step.engines.items() if one]
    return list(
        dict.fromkeys(
            f"{release} as {name}: {settings_for(use, gpus)[release][name].differs}" for use, release, name in named
        )
    )


def microseconds(ms: float) -> str:
    """Of a time in ms; tenths below 100."""
    us = ms * 1e3
    return f"{us:,.1f}" if abs(us) < 100 else f"{us:,.0f}"


def _longer(time: Time) -> str:
    """How many us; of what may as well be none, that nothing is clear, and of too few samples, that there is no
    interval."""
    us = microseconds(time.ms or 0.0)
    if time.lo is None:
        return f"no interval: {us}"
    return us if time.lo > 0 else f"nothing clear: {us}"


def _size(step: Step) -> SizeInWords:
    size = f"{step.tokens:,}" if step.seq_len == 1 else f"{step.batch_size:,} x {step.seq_len:,}"
    best = step.of(step.best) if step.best else None
    if best is None:
        measured = ", ".join(one.strategy for one in step.strategies)
        return SizeInWords(size, certainty=f"nothing that fits was measured, but {measured}")
    undecided, slower = others_of(step.undecided, step.more, best.time.ways)
    told = whose(best.time.ways), against(undecided, slower) or _alone(step)
    yardstick = step.of(step.yardstick)
    apart = yardstick is not None and yardstick is not best
    return SizeInWords(
        size=size,
        us=_longer(best.time),
        interval=_interval(best),
        percent=f"{best.percent or 0.0:.2f} %",
        percents=_percents(best),
        yardstick=microseconds(yardstick.time.ms or 0.0) if yardstick and apart else "",
        overrides=" ".join(best.overrides),
        certainty="; ".join(filter(None, told)),
        sure=_open(undecided) if undecided else "clear" if slower else "the only one",
    )


def _alone(step: Step) -> str:
    """That nothing decides, and what was measured but does not fit."""
    others = few([one.strategy for one in step.strategies if one.strategy != step.best])
    return "nothing else that fits was measured" + (f"; does not fit: {', '.join(others)}" if others else "")


def _open(others: Sequence[str]) -> str:
    return f"open: {others[0] if len(others) == 1 else f'{len(others)} others'}"


def _freed(steps: Sequence[Step]) -> str:
    """Device memory that is freed, of each choice that differs in it; or kept there, of tables that do not fit."""
    chosen = [one for step in steps if step.best and (one := step.of(step.best))]
    fit = all(one.freed_gb is not None for one in chosen)
    verb, what = "frees", "device memory"
    if not fit:
        verb, what = "keeps", "the tables in device memory, where they do not fit as a whole"
    by_gb: dict[str, list[str]] = {}
    for one in chosen:
        names = by_gb.setdefault(f"{one.freed_gb if fit else one.kept_gb:.1f} GB", [])
        names += [one.strategy] if one.strategy not in names else []
    if len(by_gb) <= 1:
        return f"{verb} {next(iter(by_gb))} of {what}" if by_gb else ""
    told = (f"{gb} with {' or '.join(names)}" for gb, names in by_gb.items())
    return f"{verb}, of {what}: {', '.join(told)}"


def _cached(steps: Sequence[Step]) -> str:
    chosen = [step.of(step.best) for step in steps if step.best]
    kept = [(one.cached_tokens, one.cached_sequences) for one in chosen if one and one.cached_tokens]
    if not kept:
        return ""
    tokens, sequences = min(kept)
    return f"as much memory holds the decoder's keys and values of {tokens:,} tokens: {sequences:,} more sequences"


def _interval(one: Exposed) -> str:
    if one.time.lo is None or one.time.hi is None:
        return ""
    return f"{microseconds(one.time.lo)} to {microseconds(one.time.hi)}"


def _percents(one: Exposed) -> str:
    if one.percent_lo is None or one.percent_hi is None:
        return ""
    return f"{one.percent_lo:.2f} to {one.percent_hi:.2f}"


def _and(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _runs(steps: Sequence[Step]) -> str:
    runs = [one.time.runs for step in steps if (one := step.of(step.best or ""))] or [0]
    few, many = min(runs), max(runs)
    return f"{few} run{'s' if few != 1 else ''}" if few == many else f"{few} to {many} runs"


def _engines(use: str, steps: Sequence[Step], gpus: Gpus) -> list[tuple[str, str]]:
    """What each release can be told to do, what that exposes size by size, and how this is known."""
    found = []
    for release, settings in settings_for(use, gpus).items():
        sizes: dict[tuple[str, bool, bool], list[tuple[Step, OfEngine, Exposed]]] = {}
        for step in steps:
            if (one := step.engines[release]) and (best := step.of(step.best or "")):
                is_choice = best.strategy == one.strategy and best.time.is_of(release)
                sizes.setdefault((one.strategy, one.is_own, is_choice), []).append((step, one, best))
        if not sizes:
            found.append((f"{release}: no option for a strategy that fits and was measured here", ""))
        for (name, is_own, is_choice), of_sizes in sizes.items():
            us = "; ".join(_longer(one.time) for _, one, _ in of_sizes)
            at = "; ".join(f"{step.tokens:,}" for step, _, _ in of_sizes)
            by = ", its own way" if is_own else ", not its own way" if settings[name].own else ""
            then = " (the choice)" if is_choice else _saved(of_sizes) if is_own else ""
            found.append((f"{release} as {name}{by}, {us} us at {at} tokens{then}:", settings[name].flags))
    return found


def _saved(sizes: Sequence[tuple[Step, OfEngine, Exposed]]) -> str:
    """How much less a step takes longer as chosen than in an engine's own way."""
    saved = [(one.time.more_than(best.time), best.ready_ms) for _, one, best in sizes]
    us = _from_to([ms for ms, _ in saved], microseconds)
    share = _from_to([ms / ready_ms for ms, ready_ms in saved], lambda share: f"{share * 100:.2f}")
    undecided = [f"{step.tokens:,}" for step, one, best in sizes if one.time.is_open_against(best.time)]
    unsure = f"; undecided at {', '.join(undecided)}" if undecided else ""
    return f" (the choice, not its way, saves {us} us, {share} % of the step{unsure})"


def _from_to(values: Sequence[float], spelled: Callable[[float], str]) -> str:
    return " to ".join(dict.fromkeys(map(spelled, (min(values), max(values)))))
