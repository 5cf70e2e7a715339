"""What a report says of each subject: lines for the table that it opens with, and the details behind it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from engram_exp.analysis.advice import Advice
from engram_exp.analysis.advice_in_words import Words, certainty, in_words, span
from engram_exp.analysis.answers import Answer
from engram_exp.analysis.choices import Choice
from engram_exp.analysis.subjects import Subject, fastest_ways
from engram_exp.analysis.summary import markdown
from engram_exp.vocabulary import FULL


class Line(NamedTuple):
    """A subject in one use, as texts.

    use: decode or prefill, and tokens per step.
    strategy: the best that fits.
    ms, interval: of one layer.
    added, added_interval: ms that a step takes longer than with tables in device memory.
    freed_gb: of device memory, where both choices of the subject are followed; or that the tables do not fit there.
    runs: in which it was measured.
    certainty: what the data decide.
    """

    use: str
    strategy: str
    ms: str
    interval: str
    added: str
    added_interval: str
    freed_gb: str
    runs: str
    certainty: str


class Detail(NamedTuple):
    """One subject.

    label: what it is about.
    lines: of the table of answers; none where there is no advice.
    words: the advice; None where there is none.
    why_none: why.
    notes: of this subject alone.
    table: medians of `full`, in Markdown; empty where none was measured.
    """

    label: str
    lines: list[Line]
    words: Words | None
    why_none: str
    notes: list[str]
    table: str


def detail(answer: Answer, told_for_all: Sequence[str]) -> Detail:
    """What a report says of one subject.

    Args:
        told_for_all: notes that stand elsewhere.
    """
    advice, label = answer.advice, answer.subject.label
    table, mixed = _medians(answer.subject)
    if advice is None:
        return Detail(label, [], None, answer.why_none, mixed, table)
    notes = [note for note in advice.notes if note not in told_for_all]
    lines = [_line(advice, choice) for choice in advice.choices]
    return Detail(label, lines, in_words(advice), "", notes + mixed, table)


def _line(advice: Advice, choice: Choice) -> Line:
    time, added = choice.ms_per_layer, choice.added_ms_per_step
    ms, interval = span(time)
    added_ms, added_interval = span(added) if added else ("", "")
    about = "about " if added_ms and not added_interval else ""
    return Line(
        use=f"{choice.use}, {choice.tokens:,}",
        strategy=choice.strategy or "",
        ms=ms,
        interval=interval,
        added=about + added_ms,
        added_interval=added_interval,
        freed_gb=_freed(advice),
        runs=str(time.runs or ""),
        certainty=certainty(choice),
    )


def _freed(advice: Advice) -> str:
    if advice.too_small_gb is not None:
        return "do not fit"
    return "" if advice.freed_gb is None else f"{advice.freed_gb:.1f}"


def _medians(subject: Subject) -> tuple[str, list[str]]:
    """The medians of `full` as a table in Markdown, and what must be known of them."""
    full = fastest_ways(subject.rows[subject.rows["case"] == FULL])
    if full.empty:
        return "", []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = markdown(full, ["tokens_per_step"], columns="strategy")
    return table, [f"medians of full: {warning.message}" for warning in caught]
