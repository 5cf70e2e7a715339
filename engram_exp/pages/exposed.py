"""The picture of what a model's step takes longer, over its tokens: decode steps and prompts of one decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import altair as alt
import pandas as pd

from engram_exp.analysis.curves import stretches
from engram_exp.analysis.engines import DECODE
from engram_exp.analysis.exposed import OnDevice, Step, steps_of
from engram_exp.analysis.exposed_rows import beside_fast_decoders
from engram_exp.analysis.subjects import Subject, about_of, spelled
from engram_exp.pages.looks import DASHES, SHAPES, by_strategy, log_scale, numbers, strategies_in, strategy_color
from engram_exp.pages.sections import EXPOSED, Figure

IDS = "ids"  # where decode steps and prompts differ, and nothing else
APART = 1.04  # by this factor, strategies of one size stand side by side
TICKS_US = [0, *(sign * 10**power for power in range(1, 7) for sign in (1, -1))]
STRAIGHT_US = 10  # of the axis on either side of 0; logarithmic beyond


def exposed_figures(about: Iterable[Subject]) -> list[Figure]:
    """One for each decoder, tables and machine whose steps were measured beside a decoder that is fast enough."""
    groups: dict[tuple[str, ...], list[tuple[str, list[Step]]]] = {}
    for label, rows in about:
        stepped, _ = beside_fast_decoders(rows)
        if len(stepped):
            alike = (*about_of(stepped).drop(columns=IDS).iloc[0].map(spelled), stepped["decoder"].iloc[0])
            steps = steps_of(stepped, fitting=(), on_device=defaultdict(OnDevice), kept=None)
            groups.setdefault(alike, []).append((label, steps))
    return [_figure(alike[-1], group) for alike, group in groups.items()]


def _figure(decoder: str, group: Sequence[tuple[str, list[Step]]]) -> Figure:
    labels = [label.split(", ") for label, _ in group]
    alike = [part for part in labels[0] if all(part in label for label in labels)]
    title = ", ".join(dict.fromkeys([*alike, f"decoder={decoder}"]))
    chart = _chart([step for _, steps in group for step in steps])
    return Figure(EXPOSED, title, chart, tuple(label for label, _ in group))


def _chart(steps: Sequence[Step]) -> alt.LayerChart:
    points = _points(steps)
    order = strategies_in(points["strategy"])
    middle = (len(order) - 1) / 2
    points["x"] = points["tokens"] * points["strategy"].map(lambda name: APART ** (order.index(name) - middle))
    title = "us that a step takes longer"
    scale = alt.Scale(type="symlog", constant=STRAIGHT_US, nice=False, padding=12)
    axis = alt.Axis(values=TICKS_US, labelExpr="format(datum.value, ',')", labelOverlap=False)
    y, low = (alt.Y(f"{name}:Q", title=title, scale=scale, axis=axis) for name in ("us", "lo"))
    base = alt.Chart(points).encode(x=log_scale(alt.X, "x", "tokens per step"), color=strategy_color(order))
    zero = alt.Chart(pd.DataFrame({"us": [0]})).mark_rule(strokeDash=[4, 3]).encode(y=y)
    line = base.mark_line().encode(
        y=y, detail=["use:N", "stretch:N"], strokeDash=by_strategy(alt.StrokeDash, order, DASHES)
    )
    bars = base.mark_rule(strokeWidth=2).encode(y=low, y2="hi:Q")
    told = ["strategy:N", "use:N", alt.Tooltip("tokens:Q", format=","), *numbers("us", "lo", "hi", "percent"), "way:N"]
    dots = base.encode(y=y, shape=by_strategy(alt.Shape, order, SHAPES), tooltip=told)
    hollow = dots.mark_point(filled=False, fill="white", strokeWidth=2, size=60, opacity=1)
    filled = dots.mark_point(filled=True, size=70, opacity=1)
    decodes = alt.datum.use == DECODE
    return alt.layer(zero, line, bars, filled.transform_filter(~decodes), hollow.transform_filter(decodes)).properties(
        height=240
    )


def _points(steps: Sequence[Step]) -> pd.DataFrame:
    """A line for each strategy and size; `stretch` tells apart what no line joins."""
    curves: dict[tuple[str, str], dict[int, dict[str, object]]] = {}
    for step in steps:
        for one in step.strategies:
            us = (one.time.ms or 0.0) * 1e3
            lo, hi = ((bound * 1e3 if bound is not None else us) for bound in (one.time.lo, one.time.hi))
            way = " ".join(text for way in one.time.ways for text in way.overrides)
            curves.setdefault((one.strategy, step.use), {})[step.tokens] = {
                "strategy": one.strategy, "use": step.use, "tokens": step.tokens, "us": us, "lo": lo, "hi": hi,
                "percent": one.percent, "way": way,
            }  # fmt: skip
    return pd.DataFrame(
        [
            {**point, "stretch": number}
            for curve in curves.values()
            for number, part in enumerate(stretches(curve))
            for point in part.values()
        ]
    )
