"""Whole runs with a fusion: its cases, its proofs, its tensors."""

import re

import numpy as np
import pytest
import torch
from common import ROOT, TINY
from places import DEVICES, KERNEL_DEVICE, bench_of, parts_of
from safetensors.torch import load_file

from engram_exp import load_results, load_samples
from engram_exp.run.whole import ChunkStages, build_whole_run
from engram_exp.stage import Strategy
from engram_exp.steps.fusion.numba import NumbaFusion
from engram_exp.steps.fusion.plain import PlainFusion

GATE_ALONE = ("fusion=gated", "model.conv_kernel=null", "model.conv_dilation=null")
CONV = ("fusion=gated_conv",)
CAPTURES = ["capture=none", "capture=auto"] if KERNEL_DEVICE.type == "cuda" else ["capture=none"]
IN_CHUNKS = ("schedule=pipelined", "schedule.chunk_tokens=5", "schedule.ring_depth=2")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fusion", [GATE_ALONE, CONV])
@pytest.mark.parametrize(
    "strategy",
    [("kv_on_cpu", "schedule=serial"), ("kv_on_cpu", *IN_CHUNKS), ("kv_on_gpu", *IN_CHUNKS, "dtype=fp8"),
     ("kv_on_gpu", "components=original", "dtype=float16"), ("uva", "seq_len=5", "lookup.rows_per_program=8"),
     ("device", "tokens.history=true", "seq_len=5")],
)  # fmt: skip
@pytest.mark.usefixtures("few_looks")
def test_the_layer_has_its_rows(run_inline, tmp_path, strategy, fusion, device):
    name, *more = strategy
    if name in ("uva", "device") and device == "cpu":
        more.append("capture=none")
    rows = run_inline(f"strategy={name}", f"hardware={device}", *fusion, *more)
    statuses = {row["case"]: row["status"] for row in rows}
    assert list(statuses)[-2:] == ["full", "layer"]
    assert statuses["fusion"] == statuses["layer"] == statuses["full"] == "ok", rows
    assert set(statuses.values()) <= {"ok", "skipped"}
    frame = load_results(tmp_path).set_index("case")
    for column in ("bytes_moved", "flops"):
        known = frame[column].dropna()
        assert known["layer"] == known["full"] + known["fusion"]
    assert set(load_samples(tmp_path)["case"]) >= {"fusion", "layer"}


def layer_of(run_inline, tmp_path, *overrides):
    rows = run_inline("save_tensors=true", *overrides)
    assert {row["status"] for row in rows} <= {"ok", "skipped"}, rows
    return load_file(tmp_path / "tensors.safetensors")


@pytest.mark.parametrize("history", ["true", "false"])
@pytest.mark.usefixtures("few_looks")
def test_all_strategies_and_schedules_give_the_same_hidden_state(run_inline, tmp_path, history):
    device = KERNEL_DEVICE.type
    once = "cases=[layer]", "iterations=1", "batches=2"
    common = (*CONV, "dtype=float32", f"tokens.history={history}", f"hardware={device}", *once)
    uva = "strategy=uva", "lookup.rows_per_program=8"
    outcomes = [
        layer_of(run_inline, tmp_path, *common, *more)
        for more in (
            ("strategy=kv_on_cpu", "schedule=serial"),
            ("strategy=kv_on_gpu", "projection=linear", "schedule=serial"),
            (*uva, "capture=none"),
            *(
                (f"strategy={strategy}", f"schedule.chunk_tokens={chunk}", f"schedule.ring_depth={depth}")
                for strategy, chunk, depth in (
                    ("kv_on_cpu", 1, 3), ("kv_on_gpu", 5, 2), ("kv_on_cpu", 11, 1), ("kv_on_gpu", 12, 2),
                    ("kv_on_cpu", 50, 2),
                )
            ),
            *(
                (*uva, "schedule=pipelined", f"schedule.chunk_tokens={chunk}", captured)
                for chunk in (5, 12)
                for captured in CAPTURES
            ),
        )
    ]  # fmt: skip
    for other in outcomes[1:]:
        torch.testing.assert_close(other["layer"], outcomes[0]["layer"], rtol=1e-4, atol=1e-5)


LINES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/measuring.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("history", ["true", "false"])
@pytest.mark.parametrize(("fusion", "bias"), [(GATE_ALONE, "false"), (CONV, "true")])
def test_the_layer_can_be_computed_again_from_its_tensors(run_inline, tmp_path, monkeypatch, fusion, bias, history):
    common = (f"tokens.history={history}", f"model.bias={bias}", "dtype=float32", "cases=[layer]")
    tensors = layer_of(run_inline, tmp_path, *fusion, *common)
    named = {"embeddings", "weight", "key_norm", "query_norm", "hidden", "layer", "keys", "value"}
    named |= {"bias"} if bias == "true" else set()
    named |= {"conv_norm", "conv_weight", "history_value", "history_scale"} if fusion == CONV else set()
    assert set(tensors) == named | {"token_ids", "history", "row_ids"}
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    (lines,) = LINES
    exec(lines, found)
    assert np.abs(found["layer"].reshape(24, 2, 16) - tensors["layer"].numpy()).max() < 1e-4
    assert np.abs(found["layer"] - found["hidden"]).max() > 0.1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("fusion=gated_conv", *GATE_ALONE[1:]),
            "this model has no convolution (model.conv_kernel=null); use fusion=gated",
        ),
        (("fusion=gated",), "this model convolves what it has gated; use fusion=gated_conv"),
    ],
)
def test_a_fusion_of_other_models_is_refused(run_inline, overrides, says):
    rows = run_inline(*overrides)
    assert {row["status"] for row in rows} == {"refused"}
    assert rows[0]["error"].startswith("fusion: ")
    assert says in rows[0]["error"]


def right(self, *tensors, original=NumbaFusion.__call__):
    return original(self, *tensors)


def in_place(self, keys, value, hidden, *history):
    fused = right(self, keys, value, hidden, *history)
    return hidden[-len(fused) :].copy_(fused)


def with_the_first_hidden_state(self, keys, value, hidden, *history):
    kept = self.__dict__.setdefault("kept", hidden.clone())
    return right(self, keys, value, kept, *history)


def with_the_first_history(self, keys, value, hidden, *history):
    kept = self.__dict__.setdefault("kept", [tensor.clone() for tensor in history])
    return right(self, keys, value, hidden, *kept)


def without_history(self, keys, value, hidden, values, scales):
    return right(self, keys, value, hidden, values, torch.zeros_like(scales))


def without_convolution(self, keys, value, hidden, *history):
    self.taps = self.taps[:, :0].copy()
    return right(self, keys, value, hidden, *history)


def with_the_convolution_of_another_order(self, *tensors):
    if not hasattr(self, "turned"):
        self.turned, self.taps = True, self.taps[:, ::-1].copy()
    return right(self, *tensors)


def not_gated(self, keys, value, hidden, *history):
    return hidden + value[:, None] / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [in_place, with_the_first_hidden_state, with_the_first_history, without_history, without_convolution,
     with_the_convolution_of_another_order, not_gated],
)  # fmt: skip
@pytest.mark.parametrize("schedule", [("schedule=serial",), IN_CHUNKS])
def test_a_wrong_fusion_gets_no_time(run_inline, tmp_path, monkeypatch, wrong, schedule):
    monkeypatch.setattr(NumbaFusion, "__call__", wrong)
    run_inline(*CONV, "tokens.history=true", "seq_len=40", *schedule)
    frame = load_results(tmp_path).set_index("case")
    bad = frame[frame["status"] == "mismatch"]
    assert set(bad.index) == {"fusion", "layer"}, frame[["status", "error"]]
    assert bad["wall_ms_median"].isna().all()
    assert {"fusion", "layer"}.isdisjoint(load_samples(tmp_path)["case"])


@pytest.mark.slow
def test_a_wrong_token_in_mid_sequence_is_noticed(run_inline, monkeypatch):
    def wrong_in_the_middle(self, *tensors):
        fused = right(self, *tensors)
        fused[900:1000] *= 1.1
        return fused

    monkeypatch.setattr(NumbaFusion, "__call__", wrong_in_the_middle)
    rows = run_inline(*CONV, "batch_size=1", "seq_len=2000", "cases=[fusion,layer]", "schedule=serial")
    assert {row["status"] for row in rows} == {"mismatch"}, rows


@pytest.mark.slow
def test_a_layer_that_remembers_is_noticed(run_inline, monkeypatch):
    known = {}

    def remembered(self, batch, original=Strategy.__call__):
        if self.stages[-1].name != "fusion":
            return original(self, batch)
        if batch[0].data_ptr() not in known:
            known[batch[0].data_ptr()] = tuple(tensor.clone() for tensor in original(self, batch))
        return known[batch[0].data_ptr()]

    monkeypatch.setattr(Strategy, "__call__", remembered)
    statuses = {row["case"]: row["status"] for row in run_inline(*CONV, "schedule=serial")}
    assert statuses["layer"] == "mismatch"
    assert statuses["fusion"] == statuses["full"] == "ok"


def test_what_fails_in_the_fusion_leaves_full(run_inline, monkeypatch):
    def fail(self, *_):
        raise RuntimeError("broken")

    monkeypatch.setattr(NumbaFusion, "__call__", fail)
    for schedule in (("schedule=serial",), IN_CHUNKS):
        statuses = {row["case"]: row["status"] for row in run_inline(*CONV, *schedule)}
        assert {case for case, status in statuses.items() if status == "crash"} == {"fusion", "layer"}
        assert statuses["full"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gates_near_zero_fail_nothing(configure, dtype):
    """Of thousands of gates, some have a product so near to 0 that its sign follows from rounding."""
    with torch.inference_mode():
        bench = bench_of(
            configure(*TINY, *CONV, f"dtype={dtype}", "model.hidden_size=64", "model.hc_mult=4", "seq_len=2048",
                      "cases=[layer]", "schedule=serial")
        )  # fmt: skip
        bench.build()
        assert not bench.errors
        result, tasks = bench.built.last["layer"], bench.plan.tasks_of("layer")
        inputs = bench.parts.batches[0]
        result = bench.calls("layer")[0]()
        bench.verifier.require("layer", tasks, inputs, result, torch.arange(bench.plan.tokens))


def test_without_a_fusion_nothing_of_it_is_built(configure):
    plan = parts_of(configure(*TINY)).plan
    assert "fusion" not in [stage.name for stage in plan.stages]
    assert plan.wholes == ("full",)
    assert parts_of(configure(*TINY)).weights.projection.norms_keys
    assert not parts_of(configure(*TINY, *CONV)).weights.projection.norms_keys


@pytest.mark.slow
def test_the_wholes_of_a_pipeline_share_their_chunks(configure):
    parts = parts_of(configure(*TINY, *CONV, *IN_CHUNKS))
    with torch.inference_mode():
        chunks = ChunkStages(parts)
        full, layer = (build_whole_run(parts, case, {}, chunks) for case in ("full", "layer"))
        keys, value = full(parts.batches[0])
        (hidden,) = layer(parts.batches[0])
        want = PlainFusion(parts.weights.fusion, 24, parts.plan.memory("device"), 0)
        state = parts.model_state
        brought = (state.hidden, state.history_value, state.history_scale)
        torch.testing.assert_close(hidden, want(keys, value, *brought), rtol=2e-2, atol=2e-2)
    assert len(chunks.built[0]) == 4
    assert full.result[0].data_ptr() == keys.data_ptr()


@pytest.mark.accelerator
@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu", "uva", "device"])
def test_the_memory_of_a_whole_does_not_depend_on_other_cases(run_inline, strategy):
    shape = (*CONV, "worker=inline", f"strategy={strategy}", "hardware=cuda", "batch_size=64", "seq_len=64")
    peaks = {row["case"]: row["peak_device_bytes"] for row in run_inline(*shape, "cases=all")}
    for case in ("full", "layer"):
        (alone,) = run_inline(*shape, f"cases=[{case}]")
        assert 0 < peaks[case] == pytest.approx(alone["peak_device_bytes"], rel=0.02)
