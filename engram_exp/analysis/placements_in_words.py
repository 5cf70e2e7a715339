"""What the tables take of several GPUs, and how long that takes, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_exp.analysis.engines import USES, settings_for
from engram_exp.vocabulary import OWN

if TYPE_CHECKING:
    from engram_exp.analysis.advice import Advice
    from engram_exp.analysis.placements import Placement, Sized


def lines_of_placements(advice: Advice) -> list[str]:
    """A line for each way in which several GPUs keep the tables, and one above them; none of one GPU."""
    if not advice.placements:
        return []
    of_what = "us that a step takes longer" if advice.steps else "ms a layer"
    tokens = f"tokens of each of the {advice.gpus.number} GPUs" if advice.gpus.batches == OWN else "tokens per step"
    hosts = f" of {advice.gpus.nodes} hosts" if advice.gpus.nodes > 1 else ""
    head = f"on {advice.gpus.number} GPUs{hosts}; {of_what}, by {tokens}:"
    return [head, *(f"{_line(one, 1e3 if advice.steps else 1)}{_engines(one, advice)}" for one in advice.placements)]


def _line(one: Placement, scale: float) -> str:
    too_large = "" if one.fits else ", more than tables may take"
    memory = f"{one.device_gb:.1f} GB of each GPU, {one.host_gb:.1f} GB of the host{too_large}"
    return f"{one.strategy}: {memory}; " + ("; ".join(_sized(sized, scale) for sized in one.times) or "not measured")


def _sized(sized: Sized, scale: float) -> str:
    ms, lo, hi = (None if value is None else value * scale for value in (sized.time.ms, sized.time.lo, sized.time.hi))
    interval = "" if lo is None or hi is None else f" ({lo:.4g} to {hi:.4g})"
    return f"{sized.size}: {ms:.4g}{interval}"


def _engines(one: Placement, advice: Advice) -> str:
    """What each release is told for it, in one use or the other."""
    told = {
        f"{release}: {settings[one.strategy].flags}": None
        for use in USES
        for release, settings in settings_for(use, advice.gpus).items()
        if one.strategy in settings
    }
    return "".join(f"; {text}" for text in told) or "; no engine has flags for it"
