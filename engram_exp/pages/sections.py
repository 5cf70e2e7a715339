"""The sections that the figures of a report stand in."""

from __future__ import annotations

from typing import NamedTuple

import altair as alt

from engram_exp.analysis.curves import MOST_APART

EXPOSED, OVER_TOKENS, STAGES = "exposed", "tokens", "stages"
LIMITS, MEMORY, EFFECTS = "limits", "memory", "effects"
SECTIONS = {  # heading, and how to read it
    EXPOSED: (
        "Exposed time over tokens per step",
        "What a step of the model takes longer than with the rows of all layers in place, in the way in which each "
        "strategy exposes the least; bars: the widest 95 % intervals of the medians, of a single run within its one "
        "process. At 0 all of the fetching is hidden; what is below is noise, or a decoder that was disturbed. The "
        "scale is logarithmic beyond 10 us on either side, and strategies of one size stand side by side. Decode steps "
        "(hollow) and prompts (filled) have lines of their own; no line spans more than a factor of "
        f"{MOST_APART} in size.",
    ),
    OVER_TOKENS: (
        "Time over tokens per step",
        "full of the fastest way in which each strategy was run, at each size all of them in the shape (batch size, "
        "length) in which the most were measured; bands and bars: the widest 95 % intervals of the medians, of a "
        f"single run within its one process. No line spans more than a factor of {MOST_APART} in size.",
    ),
    STAGES: (
        "Stages beside the whole",
        "Stages were timed one by one, and full as it runs: shorter than their sum where they overlap. Strategies of "
        "which all stages were timed; those that take more than ten times as long have a figure of their own.",
    ),
    LIMITS: (
        "How near to the limit",
        "The shortest time that this machine allows over the median: 100 % is the limit.",
    ),
    MEMORY: (
        "Latency against device memory",
        "Each point is a way of running a strategy, with the most device memory of its run; the line joins those that "
        "no other beats in both.",
    ),
    EFFECTS: ("What a choice changes", "Runs that differ in this alone, each against the fastest of them."),
}


class Figure(NamedTuple):
    """One chart and where it belongs.

    section: a key of `SECTIONS`.
    title: says what its rows are about.
    chart: of a single view, without a width.
    about: labels of the subjects whose cards it stands below.
    """

    section: str
    title: str
    chart: alt.LayerChart | alt.Chart
    about: tuple[str, ...] = ()
