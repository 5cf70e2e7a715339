"""Advice for everything that a campaign is about."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from engram_exp.analysis.advice import Advice, advise
from engram_exp.analysis.exposed_rows import tell_exposed
from engram_exp.analysis.memory import Files
from engram_exp.analysis.selection import ASKED, AdviceError, measured
from engram_exp.analysis.subjects import Subject, subjects
from engram_exp.vocabulary import FULL, IN_STEP

PRODUCTION = "deepseek_v41_flash"
KINDS = ("text", "ids", "random")  # of tokens: the nearer to what is served, the earlier


class Answer(NamedTuple):
    """What the data say of one subject.

    subject: what it is about.
    advice: None where the data give none.
    why_none: empty where they give some.
    """

    subject: Subject
    advice: Advice | None
    why_none: str


def advise_all(
    frame: pd.DataFrame,
    *,
    decode: int,
    prefill: int,
    device_memory_gb: float,
    model: str | None = None,
    dtype: str | None = None,
    ids: str | None = None,
    host_memory_gb: float = math.inf,
    files: Files | None = None,
) -> list[Answer]:
    """Answer for every subject of a campaign, those without advice last; otherwise in the order of `by_weight`.

    Args:
        frame: rows as `load_results` returns them.
        decode, prefill, device_memory_gb, host_memory_gb: as `advise` takes them.
        model, dtype, ids: keep what has this value in the columns `model`, `dtype` and `tokens`; None: all of them.
        files: as `advise` takes it.

    Raises:
        AdviceError: the data do not hold what is asked for, or give no advice for any of it.
    """
    asked = {"model": model, "dtype": dtype, "ids": ids}
    measured(frame, **asked)
    for key, wanted in asked.items():
        frame = frame if wanted is None else frame[frame[ASKED[key]] == wanted]
    launched = frame["graph_calls"].fillna(0) == 0  # stages that were timed in graphs beside a `full` decide nothing
    frame = frame[launched] if launched.any() else frame
    answers = [
        answer(subject, decode, prefill, device_memory_gb, files, host_memory_gb)
        for subject in by_weight(subjects(frame))
    ]
    if not any(one.advice for one in answers):
        reasons = dict.fromkeys(one.why_none for one in answers)
        told = [f"{one.subject.label}: {one.why_none}" for one in answers] if len(reasons) > 1 else reasons
        raise AdviceError("\n".join(told))
    return sorted(answers, key=lambda one: one.advice is None)


def answer(
    subject: Subject,
    decode: int,
    prefill: int,
    device_memory_gb: float,
    files: Files | None,
    host_memory_gb: float = math.inf,
) -> Answer:
    """What the data say of one subject; all else as `advise` takes it."""
    model = subject.rows["model"].iloc[0]
    asked: dict[str, Any] = {"decode": decode, "prefill": prefill, "device_memory_gb": device_memory_gb}
    asked["host_memory_gb"] = host_memory_gb
    try:
        found = advise(subject.rows, model, **asked, files=files)
    except AdviceError as error:
        return Answer(subject, None, str(error))
    return Answer(subject, found, "")


def by_weight(about: Iterable[Subject]) -> list[Subject]:
    """Subjects with a `full` or a `step` that was timed on an accelerator first; among these the production model, then
    those with a `step`, then text before other tokens, then those with the most rows."""
    return sorted(about, key=_weight)


def _weight(subject: Subject) -> tuple[bool, bool, bool, int, int]:
    rows = subject.rows
    decisive = (rows["case"].isin([FULL, IN_STEP]) & (rows["device"] != "cpu")).any()
    model, kind = rows["model"].iloc[0], rows["tokens"].iloc[0]
    return (
        not decisive,
        model != PRODUCTION,
        not tell_exposed(rows).any(),
        KINDS.index(kind) if kind in KINDS else len(KINDS),
        -len(rows),
    )
