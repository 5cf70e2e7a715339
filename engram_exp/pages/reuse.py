"""The figure of rows that come again."""

from __future__ import annotations

import altair as alt
import pandas as pd
import vl_convert

from engram_exp.pages.looks import log_scale
from engram_exp.pages.page import CONFIG, VEGA_LITE
from engram_exp.vocabulary import ALL_ORDERS, WARM

CACHE_TITLE = "hit rate of a row cache, warm, all orders"
STEP_TITLE = "share of a step's rows that are distinct"
DASHED = alt.Legend(symbolType="stroke", symbolStrokeColor="black", symbolFillColor="transparent")


def reuse_figure(
    cache: pd.DataFrame, steps: pd.DataFrame, points: pd.DataFrame | None = None, hits: pd.DataFrame | None = None
) -> str:
    """Two panels, as SVG: hit rates over the size of a cache, of each policy and concurrency; and distinct rows
    over the tokens of a step, of each n-gram order with the fewest streams, of all orders together with more.

    Args:
        cache, steps: as `reuse.curves.curves` returns them, with a column `concurrency`.
        points, hits: as `reuse.points.measured_points` returns them, or None; they lie on top.
    """
    warm = cache[(cache["state"] == WARM) & (cache["order"] == ALL_ORDERS)]
    share = alt.Axis(format="%")
    rates = (
        alt.Chart(warm, title=CACHE_TITLE)
        .mark_line(point=hits is None)
        .encode(
            log_scale(alt.X, "cache_gb", "GB of cache", "~g"),
            alt.Y("hit_rate:Q", title=None, axis=share, scale=alt.Scale(domain=[0, 1])),
            alt.Color("concurrency:N", title="streams"),
            alt.StrokeDash("policy:N", title="policy", legend=DASHED),
        )
    )
    if hits is not None:
        rates += (
            alt.Chart(hits)
            .mark_point(color="black", size=70)
            .encode(alt.X("cache_gb:Q"), alt.Y("hit_rate:Q"), alt.Shape("policy:N", title="measured"))
        )
    fewest = steps["concurrency"] == steps["concurrency"].min()
    distinct = (
        alt.Chart(steps[fewest | (steps["order"] == ALL_ORDERS)], title=STEP_TITLE)
        .mark_line(point=points is None)
        .encode(
            log_scale(alt.X, "step_tokens", "tokens of a step"),
            alt.Y("distinct_share:Q", title=None, axis=share, scale=alt.Scale(domain=[0, 1])),
            alt.Color("order:N", title="n-gram order"),
            alt.StrokeDash("concurrency:N", title="streams", legend=DASHED),
        )
    )
    if points is not None:
        measured = alt.Chart(points).mark_point(color="black", size=70)
        distinct += measured.encode(
            alt.X("step_tokens:Q"),
            alt.Y("distinct_share:Q"),
            alt.Shape("seq_len:N", title="measured, tokens of a sequence"),
        )
    both = alt.hconcat(rates, distinct).resolve_scale(
        color="independent", strokeDash="independent", shape="independent"
    )
    return vl_convert.vegalite_to_svg({**both.to_dict(), "config": CONFIG}, vl_version=VEGA_LITE)
