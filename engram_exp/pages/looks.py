"""How figures look, the same in all of them: readable in greyscale by shapes, dashes and lightness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import altair as alt
import pandas as pd

from engram_exp.vocabulary import FULL, LAYER

Channel = TypeVar("Channel")

STRATEGY_ORDER = ["device", "uva", "kv_on_gpu", "kv_on_cpu", "both"]
STRATEGY_COLORS = [  # after Okabe and Ito
    "#000000", "#0072b2", "#e69f00", "#c05a9a", "#009e73", "#8c8c8c", "#d55e00", "#56b4e9", "#a88f00",
]  # fmt: skip
SHAPES = [  # as many as there are colours
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left", "wedge",
]  # fmt: skip
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 3]]
CASE_ORDER = [
    "up_ids", "hashing", "up_rows", "lookup", "up_embed", "widening", "projection", "up_kv", "fusion", FULL, LAYER,
]  # fmt: skip
CASE_COLORS = [  # viridis, and greys
    "#fde725", "#addc30", "#5ec962", "#28ae80", "#21918c", "#3b528b", "#472d7b", "#440154", "#22002b", "#777777",
    "#aaaaaa",
]  # fmt: skip


def strategies_in(names: pd.Series[str]) -> list[str]:
    """The strategies that occur, in the order of every legend."""
    present = set(names)
    return [name for name in STRATEGY_ORDER if name in present] + sorted(present.difference(STRATEGY_ORDER))


def by_strategy(channel: Callable[..., Channel], order: list[str], values: list[Any], **options: Any) -> Channel:
    """The same look for a strategy in every figure."""
    known = [*STRATEGY_ORDER, *(name for name in order if name not in STRATEGY_ORDER)]
    looks = [values[known.index(name) % len(values)] for name in order]
    return channel("strategy:N", sort=order, title=None, scale=alt.Scale(domain=order, range=looks), **options)


def strategy_color(order: list[str]) -> alt.Color:
    """The colour of each strategy, with a legend."""
    return by_strategy(alt.Color, order, STRATEGY_COLORS, legend=alt.Legend(symbolOpacity=1, labelLimit=320))


def case_color(cases: list[str]) -> alt.Color:
    """From light to dark along the stages; `full` and `layer` are grey."""
    looks = [CASE_COLORS[CASE_ORDER.index(case)] for case in cases]
    return alt.Color("case:N", sort=cases, title=None, scale=alt.Scale(domain=cases, range=looks))


def log_scale(channel: Callable[..., Channel], name: str, title: str, axis_format: str = "~s") -> Channel:
    """A logarithmic axis that begins and ends with the data."""
    scale = alt.Scale(type="log", nice=False, padding=12)
    return channel(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(format=axis_format))


def numbers(*names: str) -> list[alt.Tooltip]:
    """What hovering shows of these columns: four digits."""
    return [alt.Tooltip(f"{name}:Q", format=".4~g") for name in names]
