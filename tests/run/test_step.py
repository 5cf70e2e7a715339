"""A layer inside a model's step: its cases, what is exposed, and the proofs."""

import time

import numpy as np
import pytest
import torch
from common import TINY
from in_step import CASES, DECODE, PROMPT, bench_of, statuses
from places import DEVICES, KERNEL_DEVICE, parts_of

from engram_exp import load_results, load_samples
from engram_exp.config.checks import check
from engram_exp.config.derived import reading_of
from engram_exp.decoder.decoder import Step
from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import Batch
from engram_exp.measure.limits import Limits
from engram_exp.run.plan import Distinct
from engram_exp.run.step_runs import steps_before
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.strategy.costs import bytes_moved, flops
from engram_exp.strategy.fetch import HostFetch
from engram_exp.strategy.step import Ahead, InStep
from engram_exp.vocabulary import OF_A_STEP

pytestmark = pytest.mark.usefixtures("few_looks")
QUICK = ("iterations=1", "steps_per_sample=1", "batches=1")
ON_GPU = f"hardware={KERNEL_DEVICE.type}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [DECODE, PROMPT, (*PROMPT, "prefetch.lead=previous_step")])
@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu"])
def test_a_step_has_its_rows(run_inline, tmp_path, device, shape, strategy):
    rows = run_inline(
        f"strategy={strategy}", f"hardware={device}", *shape, "fusion=gated_conv", "iterations=7", "budget_s=5"
    )
    assert list(statuses(rows))[-4:] == list(OF_A_STEP)
    assert {statuses(rows)[case] for case in OF_A_STEP} == {"ok"}, rows
    frame = load_results(tmp_path).set_index("case")
    assert (frame["engram_layers"] == "1 3").all()
    assert (frame["ids"] == ("device" if shape == DECODE else "host")).all()
    assert (frame["steps_per_sample"] == 2).all()
    assert not frame["options"].str.contains("steps_per_sample").any()
    samples = load_samples(tmp_path).pivot(index="iteration", columns="case", values="wall_ms")
    samples = samples[["step", "ready"]].dropna()  # rounds in which both were timed
    step = frame.loc["step"]
    assert step["exposed_ms_median"] == pytest.approx(np.median(samples["step"] - samples["ready"]), rel=1e-6)
    assert step["exposed_ms_lo"] <= step["exposed_ms_median"] <= step["exposed_ms_hi"]
    assert step["hidden_share"] == pytest.approx(1 - step["exposed_ms_median"] / frame.at["fetch", "wall_ms_median"])
    assert frame["exposed_ms_median"].drop("step").isna().all()
    windows = dict(map(float, text.split("=")) for text in frame.at["decoder", "window_ms"].split())
    assert list(windows) == [1, 3]
    assert 0 < windows[1] < windows[3]
    waits = [text.split("=")[0] for text in frame.at["step", "waits_ms"].split()]
    assert waits == ([] if "prefetch.lead=previous_step" in shape else ["1", "3"])
    if strategy == "kv_on_gpu":
        assert frame.at["step", "bytes_moved"] == frame.at["ready", "bytes_moved"] + frame.at["fetch", "bytes_moved"]
    flops_of = frame["flops"]
    of_layers = 2 * (flops_of["full"] + flops_of["fusion"])
    assert flops_of["step"] == flops_of["ready"] == flops_of["decoder"] + of_layers


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["uva", "device"])
@pytest.mark.parametrize("options", [("prefetch.where=inline",), ("dtype=fp8", "prefetch.streams=each")])
@pytest.mark.parametrize("shape", [DECODE, (*PROMPT, "seq_len=3")])
def test_the_device_fetches_rows_of_a_step(run_inline, strategy, options, shape):
    few = "lookup.rows_per_program=8", *QUICK
    rows = run_inline(f"strategy={strategy}", "capture=none", ON_GPU, *options, *shape, CASES, *few)
    assert set(statuses(rows).values()) == {"ok"}, rows


@pytest.mark.accelerator
@pytest.mark.parametrize(
    "options",
    [
        ("strategy=both",),
        ("strategy=kv_on_gpu", "components=original", "dtype=float16"),
        ("strategy=kv_on_gpu", "upload=fresh", "prefetch.priority=high"),
        ("strategy=kv_on_cpu", "prefetch.where=inline"),
        ("strategy=uva", "prefetch.lead=previous_step", "seq_len=12"),
        ("strategy=uva", "decoder.compile=true"),
    ],
)
def test_other_ways_on_a_gpu(run_inline, options):
    rows = run_inline("hardware=cuda", *DECODE, "fusion=gated_conv", *options, CASES)
    assert set(statuses(rows).values()) == {"ok"}, rows


def test_a_step_waits_where_rows_are_late(configure, monkeypatch):
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, *DECODE, "strategy=kv_on_gpu", CASES))
        step, ready = bench.built.runs["step"], bench.built.runs["ready"]
        arrive = HostFetch.arrive

        def late(fetch):
            time.sleep(0.02 if fetch is step.fetches[0] else 0.05)
            return arrive(fetch)

        monkeypatch.setattr(HostFetch, "arrive", late)
        first, second = step.reached(bench.built.batches[0])
        in_place = ready.reached(bench.built.batches[0])
    assert first.waits_ms >= 20
    assert second.waits_ms >= 50
    assert second.ms >= first.ms + first.waits_ms, "it is reached behind the first"
    assert all(at.waits_ms < first.waits_ms for at in in_place)


def test_layers_with_tables_are_those_that_were_asked_for(run_inline, tmp_path):
    run_inline(*DECODE, "decoder.engram_layers=[2]", CASES)
    frame = load_results(tmp_path).set_index("case")
    assert (frame["engram_layers"] == "2").all()
    assert frame.at["decoder", "window_ms"].startswith("2=")


@pytest.mark.slow
def test_all_strategies_are_held_against_the_same_step(configure):
    made = []
    for options in (
        ("strategy=kv_on_cpu",), ("strategy=kv_on_gpu",), ("strategy=uva",), ("strategy=uva", "lookup.widen=false"),
        ("strategy=device",),
    ):  # fmt: skip
        plan = parts_of(configure(*TINY, *DECODE, *options, "dtype=fp8", "fusion=gated_conv", CASES)).plan
        tasks = plan.tasks_of("ready")
        made.append((bytes_moved(tasks), flops(tasks), [task.load.stage.name for task in tasks]))
    assert all(each == made[0] for each in made)
    assert made[0][-1] == ["projection", "fusion"] * 2 + ["decoder"]


def test_all_layers_know_the_machine_and_none_has_the_table_of_another(configure, monkeypatch):
    bench = bench_of(configure(*TINY, *DECODE, CASES))
    first, second = (layer.parts for layer in bench.layers)
    rows = min(first.plan.geometry.rows, second.plan.geometry.rows)
    assert not torch.equal(first.table.parts[0][:rows], second.table.parts[0][:rows])
    assert not torch.equal(first.weights.projection.weight, second.weights.projection.weight)
    limits, distinct = Limits({}), Distinct(0.5, 0.25, 4)
    bench.plan.plan.know(limits, distinct)
    for plan in (bench.plan.plan, *bench.plan.layers.values()):
        assert plan.limits is limits
        assert plan.task(plan.stages[0]).load.distinct_rows == 0.5


def test_a_layer_whose_own_strategy_is_the_run_s_is_the_run_s(configure):
    plan = parts_of(configure(*TINY, *DECODE, "strategy=kv_on_gpu", "strategies.1=kv_on_gpu", CASES)).plan
    assert plan.step.layers[1] is plan


@pytest.mark.parametrize(("batches", "steps"), [(4, 2), (5, 3), (1, 4), (4, 1), (3, 7)])
def test_samples_go_through_all_batches_step_by_step(batches, steps):
    drawn = [Batch(torch.tensor([[number]]), torch.tensor([[0]])) for number in range(batches)]
    before, run = steps_before(drawn, steps), []
    last = [drawn[(steps * (number + 1) - 1) % batches] for number in range(batches)]  # as they are timed
    for batch in last:
        run += [int(each.ids) for each in (*before(batch), batch)]
    assert run == [number % batches for number in range(batches * steps)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategies", "told"),
    [
        (("strategies.3=uva",), "tiny strategies.3=uva"),
        (("strategies.1=device", "strategies.3=kv_on_cpu"), "tiny strategies.1=device strategies.3=kv_on_cpu"),
        (
            ("strategy=uva", "strategies.3=kv_on_gpu", "dtype=fp8", "lookup.rows_per_program=8"),
            "tiny strategies.3=kv_on_gpu",
        ),
    ],
)
def test_layers_may_have_strategies_of_their_own(run_inline, tmp_path, strategies, told):
    rows = run_inline(*DECODE, *strategies, "fusion=gated_conv", "capture=none", ON_GPU, CASES, *QUICK)
    assert set(statuses(rows).values()) == {"ok"}, rows
    frame = load_results(tmp_path)
    assert (frame["strategy"] == told).all()
    assert not frame["options"].str.contains("strategies").any(), "what is told there is told once"
    tables = frame["used_rows"] * frame["row_bytes"]
    assert (frame["table_bytes"] > tables).all(), "of both layers"


def test_a_layer_with_a_strategy_of_its_own_has_the_components_of_that_strategy(configure):
    plan = parts_of(configure(*TINY, *DECODE, "strategy=uva", "strategies.3=kv_on_gpu", "cases=[step]")).plan
    own = configure(*TINY, "strategy=kv_on_gpu")
    uva, kv_on_gpu = plan.step.layers.values()
    assert uva is plan
    for group in ("strategy", "hashing", "lookup", "table", "projection", "upload"):
        assert kv_on_gpu.config[group] == own[group]


def test_an_engine_leaves_multiprocessors_to_the_decoder(configure):
    engine = ("components=vllm_0_33", "dtype=fp8", "dtype.layout=split", "cases=[layer,step]", "fusion=gated_conv")
    for where, programs in (("beside", 3), ("inline", 6)):
        plan = parts_of(configure(*TINY, *DECODE, *engine, f"prefetch.where={where}")).plan
        where = plan.geometry.table_bytes, 6, None
        assert reading_of(plan.config, 99, *where, beside=plan.step.is_beside).programs == programs
        assert reading_of(plan.config, 99, *where).programs == 6


def test_nothing_is_looked_up_for_rows_in_place(configure, monkeypatch):
    bench = bench_of(configure(*TINY, *DECODE, CASES))

    def lookup(*_):
        raise AssertionError("a lookup")

    monkeypatch.setattr(GatherLookup, "__call__", lookup)
    bench.timed("ready").calls[0]()
    bench.timed("decoder").calls[0]()
    with pytest.raises(AssertionError, match="a lookup"):
        bench.timed("step").calls[0]()


@pytest.mark.slow
def test_a_step_that_reads_the_rows_of_another_is_a_mismatch(run_inline, monkeypatch):
    arrive = HostFetch.arrive

    def late(self):
        rows, now = getattr(self, "before", None), arrive(self)
        self.before = tuple(tensor.clone() for tensor in now)
        return now if rows is None else rows

    monkeypatch.setattr(HostFetch, "arrive", late)
    rows = statuses(run_inline(*DECODE, CASES))
    assert rows["step"] == rows["fetch"] == "mismatch"
    assert rows["decoder"] == "ok"


@pytest.mark.slow
def test_rows_that_were_fetched_for_other_ids_are_a_mismatch(run_inline, monkeypatch):
    monkeypatch.setattr(Ahead, "forget", lambda self: None)
    rows = statuses(run_inline(*PROMPT, "prefetch.lead=previous_step", "batches=1", CASES))
    assert rows == {"fetch": "ok", "decoder": "ok", "ready": "ok", "step": "mismatch"}


@pytest.mark.slow
def test_a_decoder_that_leaves_out_a_layer_is_a_mismatch(run_inline, monkeypatch):
    monkeypatch.setattr(InStep, "_first", lambda self, end: lambda ids: (self.decoder.begin(*ids),))
    rows = statuses(run_inline(*DECODE, CASES))
    assert rows == {"fetch": "ok", "decoder": "mismatch", "ready": "mismatch", "step": "mismatch"}


@pytest.mark.slow
def test_a_decoder_that_breaks_leaves_the_other_cases(run_inline, monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Step, "begin", broken)
    rows = statuses(run_inline(*DECODE))
    assert {rows[case] for case in ("decoder", "ready", "step")} == {"oom_device"}
    assert rows["full"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("cases=[step]",), "cases=step: no decoder is chosen; decoder=dense_8b has it"),
        (("ids=device",), "ids=device: says nothing without a decoder"),
        (("prefetch.where=inline",), "prefetch.where=inline: says nothing without a decoder"),
        ((*DECODE, "ids=sampled"), "ids=sampled: must be one of auto, host, device"),
        ((*DECODE, "prefetch.lead=previous_step"), "prefetch.lead=previous_step: ids of a decode step are sampled"),
        ((*PROMPT, "prefetch.lead=previous_step", "prefetch.where=inline"), "prefetch.lead=previous_step: rows come"),
        (
            ("decoder=tiny", "decoder.layers=4"),
            "decoder.engram_layers=[1, 15]: 4 layers are built, 0 to 3; decoder.layers=16",
        ),
        ((*DECODE, "ids=host", "prefetch.lead=previous_step"), "prefetch.lead=previous_step: ids of a decode step"),
        ((*DECODE, "prefetch.where=inline", "prefetch.priority=high"), "prefetch.priority=high: rows that are fetched"),
        ((*DECODE, "decoder.engram_layers=[1,2]"), "decoder.engram_layers=[1, 2]: the model has tables at [1, 3]; one"),
        ((*DECODE, "decoder.engram_layers=[0,2]"), "decoder.engram_layers=[0, 2]: the model has tables at [1, 3]; one"),
        ((*DECODE, "decoder.engram_layers=[]"), "decoder.engram_layers=[]: must be one layer at least"),
        ((*DECODE, "decoder.layers=null"), "decoder="),
        ((*DECODE, "steps_per_sample=0"), "steps_per_sample=0: must be at least 1"),
        ((*DECODE, "decoder.engram_layers=[2,2]"), "decoder.engram_layers=[2, 2]: must be one layer at least"),
        ((*DECODE, "strategies.2=uva"), "strategies.2=uva: no table stands there; decoder.engram_layers are [1, 3]"),
        ((*DECODE, "strategies.3=gpu"), "strategies.3=gpu: must be one of both, "),
        ((*DECODE, "strategies.last=uva"), "strategies.last=uva: must be of a layer"),
        ((*DECODE, "strategies.3=uva", "strategy=uva", "components=vllm_0_33", "dtype=fp8", "dtype.layout=split"),
         "strategies.3=uva: components=vllm_0_33 has one way for all layers"),
        (("strategies.3=uva",), "strategies.3=uva: says nothing without a decoder"),
        ((*DECODE, "decoder.heads=3"), "decoder.heads=3: must be a multiple of decoder.kv_heads=2"),
    ],
)  # fmt: skip
def test_what_no_step_can_be_is_refused(configure, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        check(configure(*TINY, *overrides))
    assert str(refusal.value).startswith(says)


def test_a_decoder_that_does_not_fit_says_how_many_layers_would(run_inline):
    (row, *_) = run_inline(*DECODE, CASES, "decoder.layers=100000", "decoder.hidden_size=4096")
    assert row["status"] == "oom_device"
    assert "of the decoder's 100000 layers would fit: decoder.layers=" in row["error"]


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_is_its_own_context(run_inline):
    rows = run_inline(*PROMPT, "seq_len=40", "decoder.context=8", CASES)
    assert set(statuses(rows).values()) == {"ok"}, rows
