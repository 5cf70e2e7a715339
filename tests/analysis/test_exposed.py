"""Advice goes by what a model's step takes longer, wherever one was measured beside a decoder that is fast enough."""

import json
import re
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import advice, answers, steps, text, three

from engram_exp.analysis.curves import Time
from engram_exp.analysis.exposed_rows import beside_fast_decoders
from engram_exp.analysis.selection import AdviceError


def test_each_size_gets_the_strategy_that_exposes_the_least():
    found = advice(
        steps("uva", {(1, 1): 5, (64, 1): 90}),
        steps("kv_on_gpu", {(1, 1): 240, (64, 1): 34.5}, spread_us=4),
        steps("device", {(1, 1): 1, (64, 1): 2}),
    )
    first, second = found.steps
    assert (first.best, first.more, second.best, second.more) == ("uva", ["kv_on_gpu"], "kv_on_gpu", ["uva"])
    assert [one.strategy for one in second.strategies] == ["device", "kv_on_gpu", "uva"], "what does not fit, too"
    best = second.of("kv_on_gpu")
    assert best.time == Time(*map(pytest.approx, (0.0345, 0.0305, 0.0385)), "measured", 4)
    assert (best.percent, best.percent_lo, best.percent_hi) == tuple(map(pytest.approx, (0.345, 0.305, 0.385)))
    assert (found.choices, found.regimes) == ([], []), "nothing by the layer's time alone"
    assert not any("alone" in note for note in found.notes)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(-200, 900), min_size=4, max_size=4), min_size=2, max_size=3))
@pytest.mark.slow
def test_what_the_runs_say_is_what_is_told(exposed_us):
    names = ["uva", "kv_on_gpu", "kv_on_cpu"][: len(exposed_us)]
    frames = [
        steps(name, {(64, 1): us}, runs=1, repeat=number)
        for name, of_runs in zip(names, exposed_us, strict=True)
        for number, us in enumerate(of_runs)
    ]
    (step,) = advice(*frames).steps
    medians = {name: sorted(us)[1] + sorted(us)[2] for name, us in zip(names, exposed_us, strict=True)}
    assert medians[step.best] == min(medians.values())
    for name, us in zip(names, exposed_us, strict=True):
        time = step.of(name).time
        assert (time.lo * 1e3, time.hi * 1e3) == (pytest.approx(min(us) - 1), pytest.approx(max(us) + 1))
        assert time.runs == 4
    of_runs = dict(zip(names, exposed_us, strict=True))
    clearly = [name for name in names if min(of_runs[name]) > max(of_runs[step.best])]
    assert sorted(step.more) == sorted(clearly), "all four runs of either side"


def test_a_time_without_an_interval_and_a_size_that_was_not_measured_are_told():
    few = steps("uva", {(64, 1): 50, (256, 1): 90}, runs=1).assign(exposed_ms_lo=None, exposed_ms_hi=None)
    found = advice(few, decode=128)
    assert "no interval: 50.0" in text(few)
    assert "no decode step of 128 tokens was measured, but of 64, 256" in found.notes
    assert not any("was measured, but of" in note for note in advice(few, decode=64).notes)


def test_more_device_memory_than_there_is_is_no_budget():
    both = (steps(name, {(64, 1): us}, device_name="NVIDIA H200") for name, us in (("uva", 50), ("device", 2)))
    (step,) = advice(*both, device_memory_gb=500).steps
    assert (step.best, step.undecided) == ("uva", [])


def test_decoders_are_never_mixed():
    found = answers(
        steps("uva", {(64, 1): 50}), steps("kv_on_gpu", {(64, 1): 20}, decoder="dense_4b"),
        steps("kv_on_gpu", {(64, 1): 10}, options="decoder.layers=18"),
    )  # fmt: skip
    told = {(one.advice.about["decoder"], one.advice.about["options"]): one.advice.steps[0] for one in found}
    assert {key: [one.strategy for one in step.strategies] for key, step in told.items()} == {
        ("dense_8b", ""): ["uva"], ("dense_4b", ""): ["kv_on_gpu"], ("dense_8b", "decoder.layers=18"): ["kv_on_gpu"]
    }  # fmt: skip


def test_a_decode_step_and_a_prompt_of_as_many_tokens_are_two():
    found = advice(steps("uva", {(64, 1): 50, (1, 64): 70}, ids="host"))
    assert [(step.use, step.batch_size, step.seq_len, step.tokens) for step in found.steps] == [
        ("decode", 64, 1, 64), ("prefill", 1, 64, 64)
    ]  # fmt: skip


@pytest.mark.parametrize(("runs", "undecided"), [(1, ["uva"]), (3, ["uva"]), (4, [])])
def test_intervals_that_overlap_leave_it_undecided_unless_there_are_runs_enough_to_say(runs, undecided):
    uva, mix = (steps(name, {(64, 1): us}, runs, 10) for name, us in (("uva", 50), ("kv_on_gpu", 45)))
    (step,) = advice(uva, mix).steps
    assert (step.best, step.undecided) == ("kv_on_gpu", undecided)


def test_runs_that_overlap_leave_it_undecided_although_their_intervals_do_not():
    uva = [steps("uva", {(64, 1): us}, 1, 0.1, sample=us) for us in (50, 50.5, 51, 44)]
    mix = [steps("kv_on_gpu", {(64, 1): us}, 1, 0.1, sample=us) for us in (45, 45.5, 46, 46.5)]
    (step,) = advice(*uva, *mix).steps
    assert (step.best, step.undecided) == ("kv_on_gpu", ["uva"])


@pytest.mark.parametrize(
    ("size", "share", "counts"),
    [
        ((64, 1), 0.626, True), ((64, 1), 0.624, False), ((65, 1), 0.501, True), ((65, 1), 0.499, False),
        ((1, 512), 0.501, True), ((1, 512), 0.499, False),
    ],
)  # fmt: skip
def test_a_decoder_that_misses_its_mark_decides_nothing(size, share, counts):
    kept, notes = beside_fast_decoders(steps("uva", {size: 50}, share=share))
    assert len(kept) == 4 * counts
    said = [note.startswith(f"decoder=dense_8b is too slow at {size[0] * size[1]} tokens") for note in notes]
    assert said == ([] if counts else [True])


def test_steps_beside_a_slow_decoder_are_left_out_and_said_to_be():
    slow, fast = steps("kv_on_gpu", {(64, 1): 1}, share=0.3), steps("uva", {(64, 1): 50, (16, 1): 20})
    found = advice(slow, fast)
    assert [(step.tokens, step.best, len(step.strategies)) for step in found.steps] == [(16, "uva", 1), (64, "uva", 1)]
    assert "note: decoder=dense_8b is too slow at 64 tokens, down to 0.30 of what" in text(slow, fast)
    with pytest.raises(AdviceError, match=r"^decoder=dense_8b is too slow at 64 tokens"):
        answers(slow)


@pytest.mark.slow
def test_where_no_step_counts_the_layer_alone_is_told_and_marked():
    slow = steps("kv_on_gpu", {(64, 1): 1}, share=0.3)
    full = slow[slow["case"] == "step"].assign(case="full")
    told = text(slow, full)
    assert "is too slow" in told
    assert "decode, 64 tokens per step: kv_on_gpu" in told
    assert "\n  alone; beside a decoder the order may turn over\n" in told
    assert "\n  alone; beside a decoder the order may turn over\n" in text(three())
    assert "alone; beside" not in text(steps("uva", {(64, 1): 50}))


def test_a_decoder_without_a_limit_is_used_and_said_to_be_unknown():
    found = advice(steps("uva", {(64, 1): 50}, share=None))
    assert found.steps[0].best == "uva"
    assert any("how near the decoder comes to what this machine allows is unknown" in note for note in found.notes)
    assert not any("unknown (case `decoder`" in note for note in advice(steps("uva", {(64, 1): 50})).notes)


def test_a_step_needs_the_ready_of_its_run():
    frame = steps("uva", {(64, 1): 50})
    with pytest.raises(AdviceError, match="nor a `step` beside a `ready`"):
        answers(frame[frame["case"] != "ready"])
    with pytest.raises(AdviceError, match="nor a `step` beside a `ready`"):
        answers(frame.assign(exposed_ms_median=float("nan")))


def strategies(step):
    return {release: one and one.strategy for release, one in step.engines.items()}


def test_an_engines_user_is_told_what_its_own_way_exposes():
    """Ours is faster under the same strategy, and so is another that the engine has flags for but that was measured in
    our way alone."""
    ours = steps("uva", {(1, 512): 90}, components="tuned_uva", lookup="triton_link")
    bundle = {"components": "sglang_0_5_23", "lookup": "sglang_0_5_23", "layout": "split"}
    own = steps("uva", {(1, 512): 140}, **bundle, prefetch="inline")
    changed = steps("uva", {(1, 512): 10}, components="vllm_0_33", lookup="triton_link", layout="split")
    staged = steps("kv_on_gpu", {(1, 512): 30}, lookup="gather")
    (step,) = advice(ours, own, changed, staged).steps
    vllm, sglang = step.engines.values()
    assert (sglang.strategy, sglang.is_own, sglang.time.ms) == ("uva", True, pytest.approx(0.14))
    assert sglang.percent == pytest.approx(1.4)
    assert (vllm.strategy, vllm.is_own, vllm.time.ms) == ("uva", False, pytest.approx(0.01)), "its kernel was replaced"
    (step,) = advice(ours, steps("uva", {(1, 512): 80}, **bundle)).steps
    assert not step.engines["SGLang 0.5.23"].is_own, "it does not fetch beside the decoder"
    told = text(ours, own, staged)
    assert (
        "SGLang 0.5.23 as uva, its own way, 140 us at 512 tokens (the choice, not its way, "
        "saves 110 us, 1.10 % of the step): SGLANG_"
    ) in told


def test_a_way_that_an_engine_has_no_bundle_for_is_its_own():
    own = steps("uva", {(1, 512): 140}, components="vllm_0_33", lookup="vllm_0_33", layout="split")
    (step,) = advice(own, steps("device", {(1, 512): 1}), device_memory_gb=300).steps
    assert step.engines["vLLM 0.33.0"].strategy == "device"
    (step,) = advice(own, steps("device", {(1, 512): 1})).steps
    assert step.engines["vLLM 0.33.0"].strategy == "uva", "in a smaller device memory"


def test_what_may_be_nothing_is_no_answer():
    told = text(steps("uva", {(64, 1): -900}), steps("kv_on_gpu", {(64, 1): 90}))
    assert "strategy=uva  nothing clear: -900" in told
    assert "as uva, not its own way, nothing clear: -900 us at 64 tokens" in told


@pytest.mark.slow
def test_engines_get_the_least_exposed_of_what_they_can_do():
    frames = (
        steps("uva", {(64, 1): 90, (1, 512): 200}, ids="host"),
        steps("kv_on_cpu", {(64, 1): 1, (1, 512): 1}, ids="host"),
        steps("kv_on_gpu", {(64, 1): 30, (1, 512): 20}, ids="host"),
    )  # fmt: skip
    decode, prefill = advice(*frames).steps
    assert strategies(decode) == {"vLLM 0.33.0": "uva", "SGLang 0.5.23": "uva"}, "SGLang gathers for prompts alone"
    assert strategies(prefill) == {"vLLM 0.33.0": "uva", "SGLang 0.5.23": "kv_on_gpu"}
    told = text(*frames)
    assert (
        "\n  vLLM 0.33.0 as uva, not its own way, 90.0 us at 64 tokens: --engram-config '{\"cpu_offload\": true}'\n"
        in told
    )
    assert told.count("SGLang 0.5.23 as kv_on_gpu: DeepSeek-V4.1 alone") == 1
    none = text(steps("kv_on_cpu", {(64, 1): 1}))
    assert "\n  vLLM 0.33.0: no option for a strategy that fits and was measured here\n" in none


def test_what_one_types_and_reads():
    told = text(
        steps("uva", {(64, 1): 34.1}, prefetch="beside"), steps("uva", {(64, 1): 61}, prefetch="inline"),
        steps("device", {(64, 1): -2}), steps("kv_on_gpu", {(64, 1): 341}),
    )  # fmt: skip
    heading, names, uva, *others = told.split("\n")[2:7]
    assert heading.startswith("decode beside decoder=dense_8b (4 runs): what a step takes longer than with the rows")
    assert re.split(" {2,}", names)[1:] == ["tokens", "choose", "us longer", "of the step", "device, us", "how sure"]
    assert re.split(" {2,}", uva)[1:] == [
        "64", "strategy=uva prefetch.where=beside", "34.1 (33.1 to 35.1)", "0.34 % (0.33 to 0.35)", "-2.0",
        "ahead of kv_on_gpu, prefetch.where=inline",
    ]  # fmt: skip
    assert others == [
        "  frees 202.8 GB of device memory",
        "  as much memory holds the decoder's keys and values of 1,375,022 tokens: 1,342 more sequences",
    ]
    assert (
        "2 layers with 202.8 GB of tables, of which 202.8 GB need not be in device memory; they take 283.5 GB" in told
    )
    once = text(steps("uva", {(64, 1): 34.1}, runs=1))
    assert "decoder=dense_8b (1 run): " in once
    assert "  nothing else that fits was measured\n" in once
    assert "note: sizes with fewer than 4 runs" in once


def test_how_rows_are_fetched_is_typed_wherever_it_is_not_as_usual():
    """Of the only way that was measured, too: the number is that of prompts whose rows come ahead."""
    usual = {"prefetch": "beside", "prefetch_streams": "one", "prefetch_priority": "low"}
    ahead = steps("kv_on_gpu", {(1, 512): 5}, lead="previous_step", **usual)
    told = text(ahead, steps("uva", {(1, 512): 50}, lead="previous_step", **{**usual, "prefetch_priority": "high"}))
    assert "strategy=kv_on_gpu prefetch.lead=previous_step  5.0 (" in told
    (step,) = advice(steps("uva", {(1, 512): 50}, lead="this_step", **{**usual, "prefetch_priority": "high"})).steps
    assert step.of("uva").overrides == ["strategy=uva", "prefetch.priority=high"]
    (step,) = advice(steps("uva", {(1, 512): 50}, lead="this_step", **usual)).steps
    assert step.of("uva").overrides == ["strategy=uva"]


def test_sizes_at_which_nothing_fits_say_so():
    found = steps("uva", {(64, 1): 34.1}), steps("device", {(64, 1): 1, (16, 1): 1})
    (line,) = [line for line in text(*found).split("\n") if line.startswith("  16 ")]
    assert line.endswith("  nothing that fits was measured, but device")
    assert advice(*found).freed_gb is None


@pytest.mark.slow
def test_the_production_model_comes_first_and_steps_before_what_is_alone():
    found = answers(
        steps("uva", {(64, 1): 50}, model="demo"),
        three(model="deepseek_v41_flash"),
        steps("uva", {(64, 1): 50}),
        three(),
    )
    told = [(one.advice.model, bool(one.advice.steps)) for one in found]
    assert told == [("deepseek_v41_flash", True), ("deepseek_v41_flash", False), ("demo", True), ("demo", False)]
    assert json.loads(json.dumps(asdict(found[0].advice)))["steps"][0]["best"] == "uva"


def test_a_cpu_that_stands_in_gives_no_advice():
    with pytest.raises(AdviceError, match=r"^device=cpu in all"):
        answers(steps("uva", {(64, 1): 50}, device="cpu"))
