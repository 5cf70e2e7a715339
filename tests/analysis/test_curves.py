"""Curves over tokens per step: what is known of a time, and where one strategy takes over."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import ask, rows, three

from engram_exp.analysis.advice import AdviceError
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.curves import Time, curves, regimes, time_at
from engram_exp.analysis.subjects import fastest_ways, subjects, with_tokens


@pytest.mark.parametrize(
    ("a", "b", "takeover"),
    [
        ({1: 1.0, 8: 1.1, 64: 3.0}, {1: 2.0, 8: 1.05, 64: 2.0}, (1, 64)),  # 8 is open
        ({1: 1.0, 8: 1.1}, {1: 2.0, 8: 1.05}, (1, None)),
        ({1: 1.0, 64: 3.0}, {1: 1.05, 64: 2.0}, (None, 64)),
        ({1: 1.0, 64: 3.0}, {1: 2.0, 8: 0.1, 64: 2.0}, (1, 64)),  # 8 was measured for one only
    ],
)
def test_a_strategy_takes_over_where_the_intervals_say_so(a, b, takeover):
    def curve(of):
        return {size: Time(ms, ms * 0.9, ms * 1.1, "measured", 1) for size, ms in of.items()}

    first, second = regimes({"a": curve(a), "b": curve(b)}, ["a", "b"])
    assert (first.strategy, second.strategy) == ("a", "b")
    assert (second.begins_after, second.begins_by) == takeover


def test_a_regime_does_not_claim_what_the_other_wins():
    def curve(*ms):
        return {size: Time(m, m * 0.9, m * 1.1, "measured", 1) for size, m in zip((1, 8, 64), ms, strict=True)}

    _, middle, last = regimes({"a": curve(1.0, 1.0, 1.0), "b": curve(2.0, 0.99, 2.0)}, ["a", "b"])
    assert (middle.strategy, middle.begins_by) == ("b", None)
    assert (last.strategy, last.begins_after, last.begins_by) == ("a", None, 64)


@pytest.mark.slow
def test_a_strategy_measured_at_one_size_hides_nothing():
    slow = rows("kv_on_cpu", {1: 9.0})
    assert ask(pd.concat([three(), slow])).regimes == ask(three()).regimes


def test_sizes_of_one_strategy_alone_decide_nothing():
    assert ask(pd.concat([rows("uva", {1: 1.0}), rows("kv_on_gpu", {64: 1.0})]), decode=1).regimes == []


def test_without_an_interval_nothing_is_decided():
    known, unknown = Time(1.0, 0.9, 1.1, "measured", 1), Time(9.0, None, None, "measured", 1)
    assert unknown.is_open_against(known)
    assert known.is_open_against(unknown)


def test_several_runs_make_one_time():
    frame = pd.concat([rows("uva", {64: ms}, run_id=str(ms)) for ms in (1.0, 2.0, 4.0)])
    time = curves(frame)["uva"][64]
    assert time == Time(2.0, pytest.approx(0.99), pytest.approx(4.04), "measured", 3)


def test_a_run_without_an_interval_leaves_none():
    frame = pd.concat([rows("uva", {64: 1.0}), rows("uva", {64: 2.0}, run_id="1", wall_ms_lo=float("nan"))])
    assert curves(frame)["uva"][64] == Time(1.5, None, None, "measured", 2)


def test_a_regime_is_open_within_wide_gaps():
    near, far = (4, 16, 64), (4, 16, 64, 4096)
    for sizes, gaps, text in ((near, [], "4 to 64"), (far, [[64, 4096]], "4 to 64; 4,096 (open between these)")):
        advice = ask(rows("uva", dict.fromkeys(sizes, 1.0)))
        assert advice.regimes[0].gaps == gaps
        assert f"  uva        {text}" in lines_of(advice)


@given(st.dictionaries(st.integers(1, 10**6), st.floats(1e-3, 1e3), min_size=1, max_size=8), st.integers(1, 10**7))
def test_nothing_is_extrapolated_nor_guessed_over_wide_gaps(points, tokens):
    curve = {size: Time(ms, None, None, "measured") for size, ms in points.items()}
    time = time_at(curve, tokens)
    below = max((size for size in points if size <= tokens), default=0)
    above = min((size for size in points if size >= tokens), default=0)
    if 0 < above <= 4 * below:
        assert min(points.values()) * (1 - 1e-9) <= time.ms <= max(points.values()) * (1 + 1e-9)
    else:
        assert time.ms is None


def test_the_fastest_way_of_a_strategy_counts():
    slow = rows("uva", {64: 0.9}, table="pinned")
    assert curves(pd.concat([three(), slow]))["uva"][64].ms == 0.2


def test_options_of_how_it_is_done_make_another_way():
    pinned = rows("uva", {64: 0.15}, options="hardware.pin_threads=true lookup.foo=3")
    frame = pd.concat([three(), pinned])
    (way,) = curves(frame)["uva"][64].ways
    assert (way.overrides, way.of) == (["hardware.pin_threads=true", "lookup.foo=3"], 2)
    assert (ask(frame).choices[0].ms_per_layer.ms, len(subjects(frame))) == (0.15, 1)


def test_repetitions_on_which_auto_decided_differently_are_one_way():
    asked = {"lookup": "triton_link", "by_auto": "row_order programs", "rows_per_program": 16.0}
    decided = [
        rows("uva", {64: ms}, run_id=str(ms), row_order=order, programs=programs, **asked)
        for ms, order, programs in ((0.1, "as_asked", 528.0), (0.3, "partitioned", float("nan")))
    ]
    typed = rows("uva", {64: 0.5}, **{**asked, "by_auto": ""}, row_order="sorted", programs=16.0)
    found = curves(pd.concat([*decided, typed]))["uva"][64]
    assert (found.ms, found.runs) == (0.2, 2)
    (way,) = found.ways
    told = (way.tokens, way.overrides, way.of, way.slower)
    assert told == (64, ["lookup.order=auto", "lookup.programs=auto"], 2, ["lookup.order=sorted lookup.programs=16"])


@pytest.mark.parametrize("options", ["model.hc_mult=1", "tokens.share=0.1", "dtype.tolerance=0.5", "~tokens.share"])
def test_options_of_what_is_asked_make_another_subject(options):
    way = "lookup.foo=3"
    frame = pd.concat([three(), three(options=f"{way} {options}"), three(options=options)])
    plain, other = subjects(frame)
    assert set(plain.rows["options"]) == {""}
    assert set(other.rows["options"]) == {options, f"{way} {options}"}
    assert (plain.label, other.label) == ("demo, bfloat16, text tokens", f"demo, bfloat16, text tokens, {options}")
    with pytest.raises(AdviceError, match=f"options: the data hold '', {options}; keep the rows of one"):
        ask(frame)


@pytest.mark.slow
def test_a_suspect_time_decides_nothing():
    fast = rows("uva", {64: 1e-6}, status="suspect")
    frame = pd.concat([three(), fast])
    assert curves(frame) == curves(three())
    assert ask(frame) == ask(three())
    assert [subject.rows["wall_ms_median"].min() for subject in subjects(frame)] == [0.09]


def test_keys_that_a_way_does_not_have_are_not_told():
    gathered = rows("uva", {64: 1.0}, lookup="gather")
    read = rows("uva", {64: 2.0}, lookup="triton", rows_per_program=16.0)
    (way,) = curves(pd.concat([gathered, read]))["uva"][64].ways
    assert way.overrides == ["lookup=gather"]


@pytest.mark.parametrize(
    ("flat", "long", "expected"),
    [
        ({"uva": 1}, {"uva": 1, "kv_on_gpu": 1}, {"uva": 9.0, "kv_on_gpu": 5.0}),  # the most strategies
        ({"uva": 1, "kv_on_gpu": 1}, {"uva": 1, "kv_on_gpu": 2}, {"uva": 9.0, "kv_on_gpu": 5.0}),  # the most runs
        ({"uva": 1, "kv_on_gpu": 1}, {"uva": 1, "kv_on_gpu": 1}, {"uva": 9.0, "kv_on_gpu": 5.0}),  # the first
        ({"uva": 2, "kv_on_gpu": 1}, {"uva": 1, "kv_on_gpu": 1}, {"uva": 1.0, "kv_on_gpu": 6.0}),
        ({"uva": 1}, {"kv_on_gpu": 2}, {"kv_on_gpu": 5.0}),
    ],
)
def test_strategies_are_compared_in_one_shape(flat, long, expected):
    """4,096 tokens as 4096 x 1 (flat) and as 64 x 64 (long): strategy -> runs of it."""
    ms = {"flat": {"uva": 1.0, "kv_on_gpu": 6.0}, "long": {"uva": 9.0, "kv_on_gpu": 5.0}}
    shapes = {"flat": {"batch_size": 4096, "seq_len": 1}, "long": {"batch_size": 64, "seq_len": 64}}
    frame = pd.concat(
        rows(strategy, {0: ms[name][strategy]}, run_id=f"{name} {strategy} {number}", **shapes[name])
        for name, runs in (("flat", flat), ("long", long))
        for strategy, count in runs.items()
        for number in range(count)
    )
    assert {strategy: curve[4096].ms for strategy, curve in curves(frame).items()} == expected


def test_a_strategy_that_is_never_overtaken_has_one_regime():
    (only,) = regimes(curves(three()), ["device", "uva"])
    assert (only.strategy, only.begins_after, only.begins_by) == ("device", None, None)


@pytest.mark.parametrize(
    "column",
    ["pause_ms", "graph_calls", "steps_per_sample", "host_load", "link_load_gb_per_s", "link_load_block_kib"],
)
def test_runs_with_different_pauses_graphs_samples_or_traffic_are_different_subjects(column):
    frame = pd.concat([rows("uva", {64: 1.0}, **{column: 0.0}), rows("uva", {64: 4.0}, **{column: 2.0})])
    alone, other = subjects(frame)
    assert (alone.label.endswith(f"{column}=0"), other.label.endswith(f"{column}=2")) == (True, True)
    assert (alone.rows["wall_ms_median"].item(), other.rows["wall_ms_median"].item()) == (1.0, 4.0)


def test_a_label_does_not_tell_what_is_empty():
    alone, beside = (rows("uva", {64: 1.0}, **columns) for columns in ({}, {"steps_per_sample": 4}))
    assert [one.label for one in subjects(pd.concat([alone, beside]))] == [
        "demo, bfloat16, text tokens", "demo, bfloat16, text tokens, steps_per_sample=4",
    ]  # fmt: skip


def test_where_scales_lie_is_another_way_and_no_other_subject():
    packed, split = (rows("uva", {64: ms}, run_id=name, layout=name) for name, ms in (("packed", 1.0), ("split", 2.0)))
    frame = pd.concat([packed, split])
    assert len(subjects(frame)) == 1
    assert curves(frame)["uva"][64].ms == 1.0, "the better of the two"


def test_cases_of_a_run_stay_together_where_they_are_launched_differently():
    cases = [
        rows("uva", {64: 1.0}, run_id="a", programs=number, case=case)
        for case, number in (("full", 16), ("lookup", 528))
    ]
    slower = rows("uva", {64: 2.0}, run_id="b", programs=528)
    frame = pd.concat([*cases, slower])
    found = fastest_ways(with_tokens(frame))
    assert set(zip(found["run_id"], found["case"], strict=True)) == {("a", "full"), ("a", "lookup")}
