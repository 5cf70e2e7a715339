"""The figure of rows that come again."""

from __future__ import annotations

import altair as alt
import pandas as pd
import vl_convert

from engram_exp.pages.looks import log_scale
from engram_exp.pages.page import CONFIG, VEGA_LITE
from engram_exp.vocabulary import ALL_ORDERS, WARM

CACHE_TITLE = "hit rate of a row cache, warm, all orders"
STEP_TITLE = "share of a step's rows that are distinct, one stream"


def reuse_figure(cache: pd.DataFrame, steps: pd.DataFrame) -> str:
    """Two panels, as SVG: hit rates over the size of a cache, of each policy and concurrency; and distinct rows
    over the tokens of a step, of each n-gram order.

    Args:
        cache, steps: as `reuse.curves.curves` returns them, with a column `concurrency`.
    """
    warm = cache[(cache["state"] == WARM) & (cache["order"] == ALL_ORDERS)]
    share = alt.Axis(format="%")
    hits = (
        alt.Chart(warm, title=CACHE_TITLE)
        .mark_line(point=True)
        .encode(
            log_scale(alt.X, "cache_gb", "GB of cache", "~g"),
            alt.Y("hit_rate:Q", title=None, axis=share, scale=alt.Scale(domain=[0, 1])),
            alt.Color("concurrency:N", title="streams"),
            alt.StrokeDash("policy:N", title="policy"),
        )
    )
    first = steps["concurrency"] == steps["concurrency"].min()
    distinct = (
        alt.Chart(steps[first], title=STEP_TITLE)
        .mark_line(point=True)
        .encode(
            log_scale(alt.X, "step_tokens", "tokens of a step"),
            alt.Y("distinct_share:Q", title=None, axis=share, scale=alt.Scale(domain=[0, 1])),
            alt.Color("order:N", title="n-gram order"),
        )
    )
    both = alt.hconcat(hits, distinct).resolve_scale(color="independent")
    return vl_convert.vegalite_to_svg({**both.to_dict(), "config": CONFIG}, vl_version=VEGA_LITE)
