"""Advice: from what was measured, within a budget, and silent beyond."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from common import ROOT
from made_up import ask, rows, three

from engram_exp import advise, load_results
from engram_exp.__main__ import main
from engram_exp.analysis.advice import AdviceError
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.curves import Time

H200 = ROOT / "outputs/reference/h200"


def test_each_regime_gets_its_best_strategy_and_its_price():
    advice = ask(three())
    decode, prefill = advice.choices
    assert (decode.strategy, prefill.strategy) == ("uva", "kv_on_gpu")
    assert decode.ms_per_layer == Time(0.2, pytest.approx(0.198), pytest.approx(0.202), "measured", 1)
    assert decode.added_ms_per_step.ms == pytest.approx(2 * (0.2 - 0.1)), "demo has two layers with a table"
    assert (advice.table_gb, advice.freed_gb) == (pytest.approx(2.56), pytest.approx(2.56))


def test_a_difference_has_an_interval_only_where_runs_were_repeated():
    def added(yardstick_runs):
        frame = pd.concat([three(run_id=str(number)) for number in range(4)])
        advice = ask(frame[(frame["strategy"] != "device") | (frame["run_id"] < str(yardstick_runs))])
        return advice.choices[0].added_ms_per_step, "\n".join(lines_of(advice))

    time, text = added(yardstick_runs=4)
    assert time == Time(pytest.approx(0.2), pytest.approx(2 * (0.198 - 0.101)), pytest.approx(0.206), "measured", 4)
    assert "adds 0.2 (0.194 to 0.206) ms a step to tables in device memory, its layers together\n" in text
    time, text = added(yardstick_runs=3)
    assert time == Time(pytest.approx(0.2), None, None, "measured", 3)
    assert "adds about 0.2 ms a step to tables in device memory, its layers together (3 runs on a side: no" in text
    assert "fewer than 4 runs: their intervals lack what changes from run to run" in text


@pytest.mark.slow
def test_the_number_of_layers_is_read_from_the_data():
    assert ask(three(layers=3.0)).layers == 3
    assert ask(three(layers=3.0)).table_gb == pytest.approx(3 * 1.28)
    assert ask(pd.concat([three(), three(layers=2.0)])).layers == 2, "older rows do not tell it"
    assert ask(three()).layers == 2, "nor do any of demo's here"
    other = advise(three(model="other"), "other", decode=64, prefill=4096, device_memory_gb=0)
    assert (other.layers, other.notes[0]) == (1, "how many layers of other have a table is not told: counted as one")
    with pytest.raises(AdviceError, match="layers: the data hold 2, 3; keep the rows of one"):
        ask(pd.concat([three(layers=2.0), three(layers=3.0)]))


@pytest.mark.slow
def test_an_installed_package_advises_as_a_checkout_does(tmp_path):
    shutil.copytree(ROOT / "engram_exp", tmp_path / "engram_exp", ignore=shutil.ignore_patterns("__pycache__"))

    def said(where):
        program = [sys.executable, "-m", "engram_exp", "advise", str(H200 / "v41")]
        variables = {**os.environ, "PYTHONPATH": str(where)}
        done = subprocess.run(program, cwd=where, env=variables, capture_output=True, text=True, check=True)
        return done.stdout

    assert said(tmp_path) == said(ROOT)
    assert ": 2 layers with 202.8 GB of tables" in said(tmp_path)


def test_who_sorts_is_told_beside_the_threshold():
    text = "\n".join(lines_of(ask(pd.concat([three(), lookups({100: 0.2, 1000: 0.5})]))))
    assert (
        "vLLM 0.33.0 from 36,864 on, on the GB200 family alone; SGLang 0.5.23 always on CUDA GPUs without ATS" in text
    )


def test_an_interval_of_one_run_is_that_of_one_process():
    line = "  0.2 (0.198 to 0.202{}) ms a layer, measured ({})"
    assert line.format(" within its one process", "1 run") in lines_of(ask(three(run_id="a")))
    repeated = pd.concat([three(run_id=str(number)) for number in range(4)])
    assert line.format("", "4 runs") in lines_of(ask(repeated))


def test_rows_that_are_not_steady_are_counted():
    steady = [note for note in ask(three(steady=True)).notes if "steady" in note]
    frame = pd.concat([three(steady=True), rows("uva", {256: 1.0}, steady=False)])
    assert steady == []
    assert "1 of 13 times was disturbed: 1 full (1 not steady)" in ask(frame).notes


@pytest.mark.parametrize("told", [{"git_sha": "b"}, {"driver": "580", "worker": "shared"}])
def test_runs_that_code_or_machine_tell_apart_are_not_mixed_without_a_word(told):
    of_one = {"git_sha": "a", "driver": "570", "worker": "process"}
    before = three(**of_one)
    frame = pd.concat([before, rows("uva", {64: 0.1}, **{**of_one, **told})])
    assert f"runs of several {', '.join(told)} are mixed: --only COLUMN=VALUE keeps those of one" in ask(frame).notes
    assert not any("mixed" in note for note in ask(before).notes)


def test_a_strategy_that_stands_alone_is_the_best_of_one():
    assert "no strategy but uva was measured: it is the best of one" in ask(rows("uva", {64: 1.0, 65536: 2.0})).notes
    assert not any("best of one" in note for note in ask(three()).notes)


def test_the_threshold_has_an_uncertainty():
    uva, kv_on_gpu = ask(three()).regimes
    assert (uva.strategy, uva.first, uva.last) == ("uva", 1, 4096)
    assert (kv_on_gpu.strategy, kv_on_gpu.begins_after, kv_on_gpu.begins_by) == ("kv_on_gpu", 64, 65536)
    assert "  kv_on_gpu  65,536 (takes over above 64, at 65,536 at the latest)" in lines_of(ask(three()))
    close = ask(pd.concat([rows("uva", {64: 0.2, 256: 0.8}), rows("kv_on_gpu", {64: 0.201, 256: 0.4})]))
    text = "  kv_on_gpu  256 (takes over at 256 at the latest, undecided at the sizes of the one before)"
    assert text in lines_of(close)


def test_a_budget_lets_the_table_onto_the_device():
    advice = ask(three(), device_memory_gb=3)
    assert [choice.strategy for choice in advice.choices] == ["device", "device"]
    assert advice.freed_gb == 0
    assert advice.choices[0].added_ms_per_step.ms == 0


def test_nothing_is_freed_by_what_is_not_measured():
    assert ask(three(), prefill=10**6).freed_gb is None
    assert ask(three(), device_memory_gb=3, prefill=10**6).freed_gb is None


def test_close_calls_are_undecided():
    decode = ask(three(), decode=4096).choices[0]
    assert (decode.strategy, decode.undecided) == ("uva", ["kv_on_gpu"])


def test_between_near_sizes_is_interpolated_and_elsewhere_is_not_measured():
    frame = pd.concat([three(), rows("uva", {16: 0.12}), rows("kv_on_gpu", {16: 0.32})])
    decode, prefill = ask(frame, decode=32, prefill=10**6).choices
    assert decode.ms_per_layer.known == "interpolated"
    assert 0.12 < decode.ms_per_layer.ms < 0.2
    assert (prefill.strategy, prefill.ms_per_layer.known) == (None, "not measured")


def test_a_wide_gap_is_not_measured_and_names_its_ends():
    advice = ask(three(), decode=8)
    assert (advice.choices[0].strategy, advice.choices[0].nearest) == (None, [1, 64])
    says = "the nearest that was: 1 and 64; nothing is extrapolated, nor interpolated over more than a factor of 4"
    assert f"decode, 8 tokens per step: not measured\n  {says}" in "\n".join(lines_of(advice))
    assert ask(three(), prefill=10**6).choices[1].nearest == [65536]


def test_strategies_of_which_nothing_is_known_there_are_named():
    advice = ask(pd.concat([three(), rows("kv_on_cpu", {16: 9.0})]), decode=16)
    assert (advice.choices[0].strategy, advice.choices[0].unmeasured) == ("kv_on_cpu", ["kv_on_gpu", "uva"])
    assert "  not measured here: kv_on_gpu, uva" in lines_of(advice)


def lines_with(text, advice):
    return [line for line in lines_of(advice) if text in line]


def test_of_several_ways_the_one_that_is_meant_is_told():
    one_per_block = {"lookup": "triton", "rows_per_program": 16.0, "programs": float("nan")}
    few = {"lookup": "triton_link", "rows_per_program": 16.0, "programs": 264.0, "row_order": "sorted"}
    frame = pd.concat([rows("uva", {64: 1.0, 256: 4.0}, **one_per_block), rows("uva", {64: 2.0, 256: 3.0}, **few)])
    _, between = ask(frame, prefill=128).choices
    one, other = "lookup=triton lookup.programs=null", "lookup=triton_link lookup.order=sorted lookup.programs=264"
    assert f"  as {one}, ahead of {other}" in lines_of(ask(frame))
    assert [way.tokens for way in between.ms_per_layer.ways] == [64, 256]
    assert lines_with(f"as {other} at 256 tokens, ahead of {one}", ask(frame, prefill=128))
    assert not lines_with("  as ", ask(three()))


def test_the_nearest_that_an_engine_can_do_is_told_with_its_way():
    frame = pd.concat([three(), rows("uva", {65536: 65.0}, table="pinned")])
    assert lines_with(
        "the nearest is uva, not its own way, 64 ms a layer, as table=huge, undecided against table=pinned: -",
        ask(frame),
    )


@pytest.mark.parametrize(
    ("frame", "options", "says"),
    [
        (three().assign(status="crash"), {}, "no measured `full`"),
        (three(model="other"), {}, "model=demo: not measured; the data hold other"),
        (pd.concat([three(), three(dtype="fp8")]), {}, "dtype: the data hold bfloat16, fp8; choose one"),
        (three(), {"ids": "random"}, "ids=random: not measured; the data hold text"),
        (pd.concat([three(), three(row_bytes=512)]), {}, "row_bytes: the data hold 128, 512; keep the rows of one"),
        (
            pd.concat([three(), three(device_name="B")]),
            {},
            "device_name: the data hold '', B; keep the rows of one .--only device_name=VALUE does",
        ),
        (pd.concat([three(), three(table_scale=0.1)]), {}, "table_scale: the data hold 0.1, 1; keep the rows of one"),
        (three(device="cpu"), {}, "device=cpu in all of these runs: .* measure on a machine that has one"),
        (rows("device", {64: 1.0}), {}, "nothing that was measured fits; the nearest is device, with 2.6 GB"),
    ],
)
def test_what_gives_no_advice_says_why(frame, options, says):
    with pytest.raises(AdviceError, match=says):
        ask(frame, **options)


def test_what_limits_the_advice_is_said():
    advice = ask(three(table_scale=0.1)[lambda frame: frame["strategy"] != "device"])
    assert advice.choices[0].added_ms_per_step is None
    assert any("strategy=device was not measured" in note for note in advice.notes)
    assert any("table_scale" in note for note in advice.notes)


def lookups(sorted_ms, order="sorted"):
    """A lookup in either order, by rows: as asked it takes 1 us a row."""
    orders = [("as_asked", {size: size / 1e3 for size in sorted_ms}), (order, sorted_ms)]
    parts = [rows("uva", times, case="lookup", row_order=order) for order, times in orders]
    return pd.concat(parts).assign(rows_per_s=lambda frame: frame["batch_size"] / frame["wall_ms_median"] * 1e3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sorted_ms", "expected"),
    [
        ({100: 0.2, 1000: 1.0, 10_000: 5.0, 100_000: 50.0}, (100, 10_000)),  # 1000 is left open
        ({100: 0.05, 1000: 1.0, 10_000: 5.0}, (None, 10_000)),
        ({100: 0.2, 1000: 2.0}, (1000, None)),
        ({100: 0.1}, (None, None)),
    ],
)
@pytest.mark.parametrize("order", ["sorted", "partitioned"])
def test_sorting_pays_where_intervals_say_so(sorted_ms, expected, order):
    frame = pd.concat([three(), lookups(sorted_ms, order)])
    assert ask(frame).sort_rows == expected
    others = [lookups({100: 50.0}).assign(dtype="fp8"), lookups({100: 50.0}).assign(row_order="")]
    # Another lookup is no other order of this one.
    others += [lookups({10**6: 1e5})[lambda frame: frame["row_order"] != "as_asked"].assign(lookup="another")]
    others += [lookups({10**6: 1e5})[lambda frame: frame["row_order"] == "as_asked"].assign(lookup="a third")]
    # Nor are rows of another kind of table.
    others += [lookups({10**6: 1e5})[lambda frame: frame["row_order"] != "as_asked"].assign(table="shared")]
    others += [lookups({10**6: 1e5})[lambda frame: frame["row_order"] == "as_asked"].assign(table="shard")]
    assert ask(pd.concat([frame, *others]), dtype="bfloat16").sort_rows == expected


@pytest.mark.slow
def test_the_published_campaign_gives_thresholds_that_agree_with_its_curve():
    def published(frame):
        asked = {"decode": 64, "prefill": 8192, "device_memory_gb": 0, "dtype": "bfloat16", "ids": "random"}
        return advise(frame, "demo", **asked)

    crossover = load_results(H200 / "crossover")
    full = crossover[(crossover["case"] == "full") & (crossover["strategy"] != "device")]
    best = full.groupby(["batch_size", "strategy"])["wall_ms_median"].median().unstack().idxmin(axis=1)
    found = [best[(best.index >= r.first) & (best.index <= r.last)] for r in published(crossover).regimes]
    assert sum(map(len, found)) == len(best)
    assert all(names.nunique() == 1 for names in found)
    _, saves_from = published(load_results(H200).query("row_bytes == 128")).sort_rows
    lookups = load_results(H200 / "sorting").query("case == 'lookup' and row_bytes == 128")
    ms = lookups.pivot_table(index="batch_size", columns="row_order", values="wall_ms_median")
    assert (ms["sorted"] < ms["as_asked"])[ms.index * 16 >= saves_from].all()


def test_the_v41_campaign_gives_advice_in_words(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["engram_exp", "advise", str(H200), "--model=deepseek_v41_flash"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "2 layers with 202.8 GB of tables" in out
    frame = load_results(H200 / "v41").query("case == 'full' and strategy != 'device'")
    best = frame.loc[frame.groupby("shape")["wall_ms_median"].idxmin()].set_index("shape")["strategy"]
    for use in ("decode", "prefill"):
        assert next(line for line in out.splitlines() if line.startswith(use)).endswith(f": {best[use]}")
