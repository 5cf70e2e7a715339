"""The figures of a report, from the rows of a campaign."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from engram_exp.analysis.compare import GOES_WITH, WORKLOAD
from engram_exp.analysis.curves import curves, stretches
from engram_exp.analysis.engines import named_by_engine
from engram_exp.analysis.subjects import (
    ABOUT,
    STEP,
    WAYS,
    Subject,
    as_typed,
    fastest_ways,
    in_one_shape,
    over_runs,
    spelled,
)
from engram_exp.pages.looks import (
    CASE_ORDER,
    DASHES,
    SHAPES,
    STRATEGY_COLORS,
    by_strategy,
    case_color,
    log_scale,
    numbers,
    strategies_in,
    strategy_color,
)  # fmt: skip
from engram_exp.pages.sections import EFFECTS, LIMITS, MEMORY, OVER_TOKENS, SECTIONS, STAGES, Figure
from engram_exp.results.integrity import ROUNDING
from engram_exp.vocabulary import FULL, FUSION, LAYER, OF_A_STEP, OK, WHOLES

CASES_OF_EFFECT = {"row_order": ("lookup",), "table": ("lookup", FULL), "dtype": (FULL,), "schedule": (FULL,)}
GOES_ALONG = {
    **GOES_WITH,
    "dtype": (*GOES_WITH["dtype"], "batches", "chunk_tokens"),
    "schedule": ("chunk_tokens", "ring_depth"),
    "row_order": ("rows_per_program", "programs"),  # where they are auto
}
TOLD = ("case", "strategy", "row_bytes", "batch_size", "seq_len")
MOST_GROUPS = 16
SIZES_SHOWN = 3
FAR_SLOWER = 10


def figures(frame: pd.DataFrame, about: list[Subject]) -> list[Figure]:
    """All figures that the rows of a campaign, split into subjects, can fill, section by section."""
    found = [figure for subject in about for figure in _of_subject(subject)]
    found += [figure for column in CASES_OF_EFFECT if (figure := _effect(frame, column))]
    order = list(SECTIONS)
    return sorted(found, key=lambda figure: order.index(figure.section))


def _of_subject(subject: Subject) -> Iterator[Figure]:
    # Ours and an engine's way would be one line, of whichever was faster.
    rows = named_by_engine(subject.rows[~subject.rows["case"].isin(OF_A_STEP)])
    if rows[rows["case"] == FULL]["tokens_per_step"].nunique() > 1:
        yield Figure(OVER_TOKENS, subject.label, _over_tokens(rows))
    for name, own in rows.groupby("strategy"):  # each by itself: in its own shapes
        part = fastest_ways(own)
        if part["efficiency"].notna().any():
            yield Figure(LIMITS, f"{name}: {subject.label}", _efficiency(part[part["efficiency"].notna()]))
    for step, shape in _steps_shown(_of_all_stages(rows)):
        yield from _stage_figures(f"{shape}: {subject.label}", fastest_ways(step))
    for step, shape in _steps_shown(rows):
        if (step["peak_device_bytes"] > 0).any():
            yield Figure(MEMORY, f"{shape}: {subject.label}", _memory(step))


def _steps_shown(rows: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str]]:
    """The smallest, middle and largest steps among those measured for the most strategies: rows, and batch size x
    length."""
    full = rows[rows["case"] == FULL]
    strategies = full.groupby(["tokens_per_step", "batch_size", "seq_len"])["strategy"].nunique()
    steps = [(batch, length) for _, batch, length in strategies[strategies == strategies.max()].index]
    for batch_size, seq_len in steps if len(steps) <= SIZES_SHOWN else [steps[0], steps[len(steps) // 2], steps[-1]]:
        step = rows[(rows["batch_size"] == batch_size) & (rows["seq_len"] == seq_len)]
        yield in_one_shape(step), f"{batch_size:,} x {seq_len:,}"


def _over_tokens(rows: pd.DataFrame) -> alt.LayerChart:
    points = pd.DataFrame(
        [
            {
                "strategy": name,
                "tokens": tokens,
                "ms": time.ms,
                "lo": time.lo or time.ms,
                "hi": time.hi or time.ms,
                "way": " ".join(override for way in time.ways for override in way.overrides),
                "stretch": stretch,
            }
            for name, curve in curves(rows).items()
            for stretch, part in enumerate(stretches(curve))
            for tokens, time in part.items()
        ]
    )
    order = strategies_in(points["strategy"])
    x, y = log_scale(alt.X, "tokens", "tokens per step"), log_scale(alt.Y, "ms", "ms per layer", "~g")
    base = alt.Chart(points).encode(x=x, color=strategy_color(order))
    tooltip = ["strategy:N", alt.Tooltip("tokens:Q", format=","), *numbers("ms", "lo", "hi")]
    if points["way"].any():
        tooltip.append("way:N")
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("lo:Q", title="ms per layer"), y2="hi:Q")
    line = base.mark_line().encode(y=y, strokeDash=by_strategy(alt.StrokeDash, order, DASHES))
    dots = base.mark_point(filled=True, size=60).encode(
        y=y, shape=by_strategy(alt.Shape, order, SHAPES), tooltip=tooltip
    )
    if points["stretch"].any():
        bars = base.mark_rule().encode(y=alt.Y("lo:Q", title="ms per layer"), y2="hi:Q")
        layers = [band.encode(detail="stretch:N"), line.encode(detail="stretch:N"), bars, dots]
    else:
        layers = [band, line, dots]
    return alt.layer(*layers).properties(height=320)


def _stage_figures(title: str, rows: pd.DataFrame) -> Iterator[Figure]:
    full_ms = rows["strategy"].map(rows[rows["case"] == FULL].groupby("strategy")["wall_ms_median"].median())
    slower = full_ms > FAR_SLOWER * full_ms.min()
    for part, what in ((rows[~slower], ""), (rows[slower], f" (more than {FAR_SLOWER} times as long)")):
        if len(part):
            yield Figure(STAGES, title + what, _stages(part))


def _of_all_stages(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the runs that timed all stages, and nothing else: then these move what `full` moves."""
    moved = rows.pivot_table(index="run_id", columns="case", values="bytes_moved")
    if FULL not in moved:
        return rows[:0]
    stages = moved.drop(columns=[FULL, LAYER, FUSION.name], errors="ignore")
    whole = (stages.sum(axis=1) / moved[FULL] - 1).abs() < ROUNDING
    return rows[rows["run_id"].isin(whole.index[whole])]


def _stages(rows: pd.DataFrame) -> alt.LayerChart:
    times = _medians(rows, ["strategy", "case"])
    times["part"] = times["case"].where(times["case"].isin(list(WHOLES)), "stages")
    times["order"] = times["case"].map(CASE_ORDER.index)
    cases = [case for case in CASE_ORDER if case in set(times["case"])]
    bars = alt.Chart(times).encode(
        x=alt.X("ms:Q", title="ms", stack="zero"),
        y=alt.Y("strategy:N", sort=strategies_in(times["strategy"]), title=None),
        yOffset=alt.YOffset("part:N", sort=["stages", *WHOLES]),
        color=case_color(cases),
        order="order:Q",
        tooltip=["strategy:N", "case:N", *numbers("ms", "lo", "hi")],
    )
    return alt.layer(bars.mark_bar(stroke="white", strokeWidth=1)).properties(height=40 * times["strategy"].nunique())


def _efficiency(rows: pd.DataFrame) -> alt.LayerChart:
    times = _medians(rows, ["case", "tokens_per_step", "limit_by"])
    cases = [case for case in CASE_ORDER if case in set(times["case"])]
    base = alt.Chart(times).encode(
        x=log_scale(alt.X, "tokens_per_step", "tokens per step"),
        y=alt.Y("efficiency:Q", title="limit / median", axis=alt.Axis(format=".0%")),
        color=case_color(cases),
    )
    shape = alt.Shape("case:N", sort=cases, title=None, scale=alt.Scale(domain=cases, range=(SHAPES * 2)[: len(cases)]))
    tooltip = ["case:N", alt.Tooltip("tokens_per_step:Q", format=","), *numbers("ms", "limit_ms", "efficiency")]
    limit = alt.Chart(pd.DataFrame({"efficiency": [1.0]})).mark_rule(strokeDash=[4, 3]).encode(y="efficiency:Q")
    dots = base.mark_point(filled=True, size=70, stroke="black", strokeWidth=0.5)
    return alt.layer(
        limit, base.mark_line(strokeWidth=1), dots.encode(shape=shape, tooltip=[*tooltip, "limit_by:N"])
    ).properties(height=260)


def _memory(rows: pd.DataFrame) -> alt.LayerChart:
    full = as_typed(rows[rows["case"] == FULL])
    varying = [name for name in WAYS if full[name].nunique(dropna=False) > 1]
    points = _medians(full, ["strategy", *varying]).sort_values(["device_gb", "ms"])
    points["way"] = [", ".join(f"{name}={row[name]}" for name in varying) for row in points.to_dict("records")]
    points = points[["strategy", "way", "ms", "lo", "hi", "device_gb"]]
    front = points[points["ms"] < points["ms"].cummin().shift(fill_value=float("inf"))]
    order = strategies_in(points["strategy"])
    x, y = log_scale(alt.X, "device_gb", "device memory, GB", "~g"), log_scale(alt.Y, "ms", "ms per layer", "~g")
    line = alt.Chart(front).mark_line(interpolate="step-after", color="#999999").encode(x=x, y=y)
    dots = alt.Chart(points).mark_point(filled=True, size=110, opacity=0.8)
    return alt.layer(
        line,
        dots.encode(
            x=x,
            y=y,
            color=strategy_color(order),
            shape=by_strategy(alt.Shape, order, SHAPES),
            tooltip=["strategy:N", *numbers("ms", "lo", "hi", "device_gb"), "way:N"],
        ),
    ).properties(height=260)


def _effect(frame: pd.DataFrame, column: str) -> Figure | None:
    """Runs that differ in one column alone, each against the fastest; None where there are none."""
    times = _alike_but_for(frame, column)
    if times.empty:
        return None
    groups = list(dict.fromkeys(times["runs"]))
    shown, values = groups[:MOST_GROUPS], sorted(times["value"].unique())
    legend = alt.Legend(columns=1)
    looks = [
        channel("value:N", title=column, legend=legend, scale=alt.Scale(domain=values, range=look[: len(values)]))
        for channel, look in ((alt.Color, STRATEGY_COLORS), (alt.Shape, SHAPES))
    ]
    chart = (
        alt.Chart(times[times["runs"].isin(shown)])
        .mark_point(filled=True, size=90)
        .encode(
            log_scale(alt.X, "relative", "time / fastest", "~g"),
            alt.Y("runs:N", sort=shown, title=None, axis=alt.Axis(labelLimit=260)),
            *looks,
            tooltip=["runs:N", "value:N", *numbers("ms", "lo", "hi", "relative")],
        )
        .properties(height=20 * len(shown))
    )
    cut = f" (the first {MOST_GROUPS} of {len(groups)} groups)" if len(groups) > MOST_GROUPS else ""
    return Figure(EFFECTS, column + cut, chart)


def _alike_but_for(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Times of runs that have others which differ in one column alone: `runs` names what they share, `value` what
    differs, `relative` is the time over that of the fastest among them."""
    frame = as_typed(frame)
    rows = frame[(frame["status"] == OK) & frame["case"].isin(CASES_OF_EFFECT[column]) & (frame[column] != "")]
    along = {column, *GOES_ALONG.get(column, ())}
    alike = dict.fromkeys(["case", "strategy", *ABOUT, *WORKLOAD, *WAYS])
    shared = [name for name in alike if name not in along]
    times = _medians(rows, [*shared, column])
    times = times[times.groupby(shared, dropna=False)[column].transform("nunique") > 1]
    if times.empty:
        return times
    told = [name for name in TOLD if name in STEP or (name in shared and times[name].nunique() > 1)]
    same_label = times.groupby(told, dropna=False)
    told += [name for name in shared if name not in told and (same_label[name].nunique(dropna=False) > 1).any()]
    relative = times["ms"] / times.groupby(shared, dropna=False)["ms"].transform("min")
    labels = [_pair_label(row) for row in times[told].to_dict("records")]
    return times.assign(runs=labels, value=times[column], relative=relative)[
        ["runs", "value", "ms", "lo", "hi", "relative"]
    ]


def _pair_label(row: dict[Any, Any]) -> str:
    step = f"{row.pop('batch_size'):,} x {row.pop('seq_len'):,}"
    plain = [str(row.pop(name)) for name in ("case", "strategy") if name in row]
    told = {name: text for name, value in row.items() if (text := spelled(value))}
    rest = [ABOUT[name].format(row[name]) if name in ABOUT else f"{name}={text}" for name, text in told.items()]
    return ", ".join([*plain, step, *rest])


def _medians(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Repetitions together, with what figures show beside their times."""
    return over_runs(
        rows,
        by,
        limit_ms=("limit_ms", "median"),
        efficiency=("efficiency", "median"),
        device_gb=("peak_device_bytes", lambda values: values.max() / 1e9),
    )
