"""What a model's step takes longer, in words: for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engram_exp.analysis.advice import Advice
from engram_exp.analysis.engines import ONE_GPU, USES, Gpus, settings_for
from engram_exp.analysis.exposed import Exposed, Step


class SizeInWords(NamedTuple):
    """What is advised for steps of one size, as texts.

    size: tokens per step, and sequences x tokens of each.
    certainty: what the data decide, and of how many runs.
    strategy: that exposes the least of those that fit; empty where none was measured.
    us, interval: longer than with the rows in place, of all layers together.
    percent: of the step with rows in place, and its interval.
    yardstick: us that tables in device memory expose; empty where that was not measured, or is the strategy.
    freed: device memory, GB.
    overrides: what one types for it.
    """

    size: str
    certainty: str
    strategy: str = ""
    us: str = ""
    interval: str = ""
    percent: str = ""
    yardstick: str = ""
    freed: str = ""
    overrides: str = ""


class CardInWords(NamedTuple):
    """What is advised for one use.

    heading: the use, and the decoder as one types it.
    sizes: of steps.
    cached: what of the decoder's keys and values fits into the least that is freed; empty where that is unknown.
    engines: release, strategy and sizes in words, and the flags for it, if it has any.
    """

    heading: str
    sizes: list[SizeInWords]
    cached: str
    engines: list[tuple[str, str]]


def cards_of(advice: Advice) -> list[CardInWords]:
    """The advice that goes by steps: a card for decode steps, one for prompts."""
    found = []
    for use in USES:
        steps = [step for step in advice.steps if step.use == use]
        if steps:
            heading = f"{use} beside decoder={advice.about['decoder']}"
            found.append(CardInWords(heading, [*map(_size, steps)], _cached(steps), _engines(use, steps, advice.gpus)))
    return found


def lines_of_card(card: CardInWords) -> list[str]:
    """A card as lines for a terminal."""
    lines = [
        f"{card.heading}, tokens per step: what it takes longer than with the rows of all layers in place, and the "
        "percentage of that step"
    ]
    for size in card.sizes:
        if not size.strategy:
            lines.append(f"  {size.size}: {size.certainty}")
            continue
        interval = f" ({size.interval})" if size.interval else ""
        lines.append(f"  {size.size}: {size.strategy}, {size.us} us{interval}, {size.percent}; {size.certainty}")
        yardstick = f"; tables in device memory expose {size.yardstick} us" if size.yardstick else ""
        lines.append(f"    {size.overrides}: frees {size.freed} GB of device memory{yardstick}")
    lines += [f"  {card.cached}"] if card.cached else []
    return lines + [f"  {text} {flags}".rstrip() for text, flags in card.engines]


def differences(steps: Sequence[Step], gpus: Gpus = ONE_GPU) -> list[str]:
    """What the engines that are named do otherwise than was measured, each once."""
    named = [(step.use, release, name) for step in steps for release, name in step.engines.items() if name]
    return list(
        dict.fromkeys(
            f"{release} as {name}: {settings_for(use, gpus)[release][name].differs}" for use, release, name in named
        )
    )


def microseconds(ms: float) -> str:
    """Of a time in ms; tenths below 100."""
    us = ms * 1e3
    return f"{us:,.1f}" if abs(us) < 100 else f"{us:,.0f}"


def _size(step: Step) -> SizeInWords:
    size = f"{step.tokens:,} ({step.batch_size:,} x {step.seq_len:,})"
    best = step.of(step.best) if step.best else None
    if best is None:
        measured = ", ".join(one.strategy for one in step.strategies)
        return SizeInWords(size, certainty=f"nothing that fits was measured, but {measured}")
    yardstick = step.of(step.yardstick)
    apart = yardstick is not None and yardstick is not best
    return SizeInWords(
        size=size,
        strategy=best.strategy,
        us=microseconds(best.time.ms or 0.0),
        interval=_interval(best),
        percent=_percent(best),
        yardstick=microseconds(yardstick.time.ms or 0.0) if yardstick and apart else "",
        freed=f"{best.freed_gb:.1f}",
        overrides=" ".join([f"strategy={best.strategy}", *(text for way in best.time.ways for text in way.overrides)]),
        certainty=_certainty(step, best),
    )


def _cached(steps: Sequence[Step]) -> str:
    chosen = [step.of(step.best) for step in steps if step.best]
    tokens = [one.cached_tokens for one in chosen if one and one.cached_tokens]
    return f"what is freed would hold the decoder's keys and values of {min(tokens):,} tokens" if tokens else ""


def _interval(one: Exposed) -> str:
    if one.time.lo is None or one.time.hi is None:
        return ""
    return f"{microseconds(one.time.lo)} to {microseconds(one.time.hi)}"


def _percent(one: Exposed) -> str:
    if one.percent_lo is None or one.percent_hi is None:
        return f"{one.percent or 0.0:.2f} %"
    return f"{one.percent:.2f} % ({one.percent_lo:.2f} to {one.percent_hi:.2f})"


def _certainty(step: Step, best: Exposed) -> str:
    if step.undecided:
        text = f"undecided against {', '.join(step.undecided)}"
    elif step.more:
        text = f"ahead of {', '.join(step.more)} by the intervals"
    else:
        text = "nothing else that fits was measured there"
    ways = f"; best of {best.time.ways[0].of} ways" if best.time.ways else ""
    runs = best.time.runs
    return f"{text}{ways}; " + (f"{runs} runs" if runs > 1 else "1 run: intervals within its one process")


def _engines(use: str, steps: Sequence[Step], gpus: Gpus) -> list[tuple[str, str]]:
    """What each release can be told to do, and at which sizes that exposes the least of what it can do."""
    found = []
    for release, settings in settings_for(use, gpus).items():
        sizes: dict[str, list[str]] = {}
        for step in steps:
            if name := step.engines[release]:
                sizes.setdefault(name, []).append(f"{step.tokens:,}")
        if not sizes:
            found.append((f"{release}: no option for a strategy that fits and was measured here", ""))
        for name, at in sizes.items():
            found.append((f"{release} at {', '.join(at)} tokens, as {name}:", settings[name].flags))
    return found
