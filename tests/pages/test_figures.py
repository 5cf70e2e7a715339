"""Figures hold what the rows say, and put beside each other what belongs together."""

from itertools import pairwise

import altair as alt
import pandas as pd
import pytest
from common import H200
from hypothesis import given
from hypothesis import strategies as st
from made_up import steps

from engram_exp import load_results
from engram_exp.analysis.curves import MOST_APART, Time, stretches
from engram_exp.analysis.subjects import WAYS, load_campaign, subjects
from engram_exp.pages.exposed import exposed_figures
from engram_exp.pages.figures import figures
from engram_exp.pages.looks import SHAPES, STRATEGY_COLORS, by_strategy, strategies_in
from engram_exp.pages.page import draw
from engram_exp.pages.sections import EFFECTS, EXPOSED, LIMITS, MEMORY, OVER_TOKENS, SECTIONS, STAGES

pytestmark = pytest.mark.slow  # drawing takes seconds


@given(st.sets(st.integers(1, 10**6), min_size=1))
def test_no_line_spans_what_is_not_known(sizes):
    curve = {size: Time(1.0, None, None, "measured") for size in sizes}
    parts = stretches(curve)
    assert [size for part in parts for size in part] == sorted(sizes)
    for part in parts:
        assert all(right <= left * MOST_APART for left, right in pairwise(part))
    assert all(min(right) > max(left) * MOST_APART for left, right in pairwise(parts))


def data_of(figure):
    return [row for rows in figure.chart.to_dict()["datasets"].values() for row in rows]


def test_figures_hold_the_numbers_of_the_campaign(drawn):
    assert [figure.section for figure in drawn] == sorted((f.section for f in drawn), key=list(SECTIONS).index)
    assert {figure.section for figure in drawn} == set(SECTIONS) - {EXPOSED}, "no step of a model was measured"
    frame = load_results(H200).query("case == 'full' and model == 'demo' and tokens == 'random' and row_bytes == 128")
    frame = frame.assign(tokens=frame["batch_size"] * frame["seq_len"])
    measured = set(zip(frame["strategy"], frame["tokens"], strict=True))
    shown = data_of(next(figure for figure in drawn if figure.section == OVER_TOKENS))
    assert {(row["strategy"], row["tokens"]) for row in shown} == measured
    for row in shown:
        runs = frame[(frame["strategy"] == row["strategy"]) & (frame["tokens"] == row["tokens"])]
        assert runs["wall_ms_lo"].min() <= row["lo"] <= row["ms"] <= row["hi"] <= runs["wall_ms_hi"].max()
        if runs.groupby(["seq_len", *WAYS], dropna=False).ngroups == 1:
            assert row["ms"] == pytest.approx(runs["wall_ms_median"].median())


def test_stages_stand_beside_their_whole(drawn):
    text = next(figure for figure in drawn if figure.section == STAGES and "text tokens" in figure.title)
    frame = load_results(H200 / "text").set_index(["strategy", "case"])["wall_ms_median"]
    found = {(row["strategy"], row["case"]): row["ms"] for row in data_of(text)}
    assert ("uva", "up_ids") in found
    assert found == {key: frame[key] for key in found}
    assert {row["part"] for row in data_of(text) if row["case"] == "full"} == {"full"}


def test_a_layer_and_its_fusion_stand_beside_the_stages_of_full():
    frame = load_results(H200 / "text")
    more = [
        frame[frame["case"] == like].assign(case=case, bytes_moved=frame["bytes_moved"] * 2, fusion="gated")
        for like, case in (("projection", "fusion"), ("full", "layer"))
    ]
    frame = pd.concat([frame.assign(fusion="gated"), *more], ignore_index=True)
    shown = [figure for figure in figures(frame, subjects(frame)) if figure.section == STAGES]
    assert shown
    parts = {row["case"]: row["part"] for row in data_of(shown[0])}
    assert (parts["fusion"], parts["projection"], parts["full"], parts["layer"]) == (
        "stages", "stages", "full", "layer",
    )  # fmt: skip


def test_efficiencies_and_memory_are_shown(drawn):
    near = [row for figure in drawn if figure.section == LIMITS for row in data_of(figure)]
    assert {"hashing", "lookup", "projection", "full"} <= {row.get("case") for row in near}
    memory = next(f for f in drawn if f.section == MEMORY and f.title.startswith("1 x 8,192: deepseek"))
    data = list(memory.chart.to_dict()["datasets"].values())
    front, points = data[0], data[-1]
    frame = load_results(H200 / "v41").query("case == 'full' and seq_len == 8192").set_index("strategy")
    assert {row["strategy"]: row["device_gb"] for row in points} == (frame["peak_device_bytes"] / 1e9).to_dict()
    beaten = [any(o["ms"] <= p["ms"] and o["device_gb"] < p["device_gb"] for o in points) for p in points]
    assert {row["strategy"] for row in front} == {
        p["strategy"] for p, is_beaten in zip(points, beaten, strict=True) if not is_beaten
    }


def test_effects_compare_what_differs_in_one_thing():
    sorting, memory = (load_campaign(H200 / name) for name in ("sorting", "memory"))
    effects = {
        figure.title: data_of(figure)
        for frame in (sorting, memory)
        for figure in figures(frame, subjects(frame))
        if figure.section == EFFECTS
    }
    lookups = load_results(H200 / "sorting").query("case == 'lookup'")
    ms = lookups.set_index(["row_bytes", "batch_size", "row_order"])["wall_ms_median"]
    found = {(row["runs"], row["value"]): row["relative"] for row in effects["row_order"]}
    for row_bytes in (128, 512):
        one = ms[row_bytes, 262144]
        label = f"262,144 x 1, rows of {row_bytes} bytes"
        for order in ("as_asked", "sorted"):
            assert found[label, order] == pytest.approx(one[order] / one.min())
    assert {row["value"] for row in effects["table"]} == {"huge", "pinned", "pageable"}


def test_what_runs_share_is_named_where_they_have_it():
    frame = load_campaign(H200 / "sorting", ["batch_size=262144"])
    without = frame.assign(run_id=frame["run_id"] + "b", components="", warps=float("nan"))
    both = pd.concat([frame, without])
    (shown,) = (figure for figure in figures(both, subjects(both)) if figure.section == EFFECTS)
    plain = {f"262,144 x 1, rows of {row_bytes} bytes" for row_bytes in (128, 512)}
    assert {row["runs"] for row in data_of(shown)} == plain | {f"{label}, components=tuned, warps=4" for label in plain}


def test_a_run_without_all_of_its_stages_has_no_bar():
    frame = load_campaign(H200 / "memory")
    assert not [figure for figure in figures(frame, subjects(frame)) if figure.section == STAGES]


def test_runs_of_the_whole_alone_hide_no_stages():
    frame = load_campaign(H200 / "text")
    alone = frame[frame["case"] == "full"]
    alone = alone.assign(run_id=alone["run_id"] + "b", table="pinned", wall_ms_median=alone["wall_ms_median"] / 2)
    both = pd.concat([frame, alone])
    before, now = (
        [data_of(figure) for figure in figures(rows, subjects(rows)) if figure.section == STAGES]
        for rows in (frame, both)
    )
    assert before == now
    assert before


def test_a_campaign_without_full_shows_its_efficiencies():
    frame = load_campaign(H200 / "sorting", ["case=lookup"])
    sections = {figure.section for figure in figures(frame, subjects(frame))}
    assert sections == {LIMITS, EFFECTS}


def test_strategies_share_a_shape_but_for_their_limits():
    frame = load_campaign(H200 / "strategies")
    other = frame[(frame["strategy"] == "uva") & (frame["seq_len"] == 4096)]
    other = other.assign(batch_size=4096, seq_len=64, run_id=other["run_id"] + "b")
    both = pd.concat([frame, other.assign(wall_ms_median=1e-6, wall_ms_lo=1e-6, wall_ms_hi=1e-6)])
    drawn = figures(both, subjects(both))
    for section in (OVER_TOKENS, STAGES, MEMORY):
        assert min(row["ms"] for f in drawn if f.section == section for row in data_of(f)) > 1e-3
    alone = pd.concat([frame[frame["strategy"] != "uva"], other])
    names = {figure.title.partition(":")[0] for figure in figures(alone, subjects(alone)) if figure.section == LIMITS}
    assert "uva" in names, "in its own shape"


def test_hovering_tells_which_of_several_ways_is_meant():
    frame = load_campaign(H200 / "crossover")
    assert "'field': 'way'" not in str(figures(frame, subjects(frame))[0].chart.to_dict()["layer"])
    slower = frame.assign(table="pinned", run_id=frame["run_id"] + "b", wall_ms_median=frame["wall_ms_median"] * 2)
    both = pd.concat([frame[frame["strategy"] == "uva"], slower[slower["strategy"] == "uva"]])
    shown = next(figure for figure in figures(both, subjects(both)) if figure.section == OVER_TOKENS)
    assert {row["way"] for row in data_of(shown)} == {"table=huge"}
    assert {"field": "way", "type": "nominal"} in shown.chart.to_dict()["layer"][-1]["encoding"]["tooltip"]


def test_what_is_exposed_is_drawn_for_all_strategies_with_intervals():
    frame = pd.concat(
        [
            steps("uva", {(1, 1): 5, (64, 1): 34.1, (1, 64): 70}),
            steps("device", {(64, 1): -2}),
            steps("kv_on_gpu", {(64, 1): 10}, decoder="dense_4b"),
            steps("kv_on_gpu", {(64, 1): 0}, share=0.1),
        ],
        ignore_index=True,
    )
    with_steps, other = exposed_figures(subjects(frame))
    assert with_steps.section == EXPOSED
    assert "decoder=dense_8b" in with_steps.title
    assert "ids" not in with_steps.title, "decode steps and prompts stand in one"
    assert "decoder=dense_4b" in other.title
    points = [row for row in data_of(with_steps) if "strategy" in row]
    found = {(row["strategy"], row["use"], row["tokens"]): (row["lo"], row["us"], row["hi"]) for row in points}
    assert found == {
        ("uva", "decode", 1): pytest.approx((4, 5, 6)), ("uva", "decode", 64): pytest.approx((33.1, 34.1, 35.1)),
        ("uva", "prefill", 64): pytest.approx((69, 70, 71)), ("device", "decode", 64): pytest.approx((-3, -2, -1)),
    }  # fmt: skip
    assert len({row["stretch"] for row in points if row["use"] == "decode"}) == 2, "no line from 1 to 64 tokens"
    svg = draw(with_steps, 640)
    assert svg.count("uva") > 3
    assert ">10,000<" not in svg, "ticks within the data alone"


def test_no_two_strategies_of_a_figure_look_alike():
    mixes = [f"{first} strategies.14={second}" for first in ("uva", "kv_on_gpu") for second in ("device", "kv_on_cpu")]
    order = strategies_in(pd.Series([*mixes, "uva", "device", "kv_on_gpu"]))
    for channel, looks in ((alt.Color, STRATEGY_COLORS), (alt.Shape, SHAPES)):
        shown = by_strategy(channel, order, looks).to_dict()["scale"]["range"]
        assert len(set(shown)) == len(order)


def test_an_engines_way_is_a_line_of_its_own():
    """Theirs is ahead of ours at 1 token, and behind at 1,024."""
    frame = load_campaign(H200.parent / "h200_engines/engines", ["case=full"]).query("batch_size in (1, 1024)")
    medians = frame.groupby(["components", "batch_size"])["wall_ms_median"].median()
    (shown,) = (figure for figure in figures(frame, subjects(frame)) if figure.section == OVER_TOKENS)
    found = {(row["strategy"], row["tokens"]): row["ms"] for row in data_of(shown)}
    names = {"tuned": "kv_on_gpu", "tuned_uva": "uva"}
    assert found == {(names.get(of, of), tokens): pytest.approx(ms) for (of, tokens), ms in medians.items()}
    assert found["vllm_0_33", 1] < found["uva", 1]
    assert found["vllm_0_33", 1024] > found["uva", 1024]


def test_a_bundle_whose_kernel_was_replaced_is_no_engines_way():
    frame = load_campaign(H200.parent / "h200_engines/engines", ["case=full", "components=vllm_0_33"])
    changed = frame.assign(lookup="triton_link")
    (shown,) = (figure for figure in figures(changed, subjects(changed)) if figure.section == OVER_TOKENS)
    assert {row["strategy"] for row in data_of(shown)} == {"uva"}
