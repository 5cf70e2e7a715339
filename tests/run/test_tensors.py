"""The tensors that a run saves: the same whatever the strategy, and no reason to fail."""

import pytest
import torch
from places import KERNEL_DEVICE
from safetensors.torch import load_file

from engram_exp.run import experiment as module
from engram_exp.steps.projection.linear import LinearProjection


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


def run_and_load(run_inline, tmp_path, *overrides):
    rows = run_inline("save_tensors=true", *overrides)
    assert {row["status"] for row in rows} <= {"ok", "skipped"}, rows
    return load_file(tmp_path / "tensors.safetensors")


@pytest.mark.parametrize("history", ["true", "false"])
def test_all_strategies_and_components_give_the_same_keys_and_value(run_inline, tmp_path, history):
    device = KERNEL_DEVICE.type
    common = (f"hardware={device}", "dtype=float32", f"tokens.history={history}", "cases=full", "seq_len=5")
    capture = "capture=none" if device == "cpu" else "capture=graph"
    outcomes = [
        run_and_load(run_inline, tmp_path, f"strategy={strategy}", *more, *common)
        for strategy, *more in (
            ("kv_on_cpu", "schedule=serial"),
            ("kv_on_cpu", "components=original"),
            ("kv_on_gpu", "schedule=serial"),
            ("kv_on_gpu", "components=original"),
            ("uva", capture),
            ("uva", "capture=none", "lookup.order=sorted"),
            ("device", capture),
        )
    ]
    first = outcomes[0]
    assert set(first) == {"token_ids", "history", "row_ids", "embeddings", "keys", "value"}
    assert first["keys"].shape == (10, 2, 16)
    assert (first["history"] >= 0).all() == (history == "true")
    for other in outcomes[1:]:
        for name in ("token_ids", "history", "row_ids", "embeddings"):
            assert torch.equal(first[name], other[name]), name
        for name in ("keys", "value"):
            torch.testing.assert_close(first[name], other[name], rtol=1e-4, atol=1e-5)


def test_tensors_hold_what_the_cases_make(run_inline, tmp_path):
    assert set(run_and_load(run_inline, tmp_path, "cases=[hashing]")) == {"token_ids", "history", "row_ids"}
    assert set(run_and_load(run_inline, tmp_path, "cases=[projection]")) == {"token_ids", "history"}
    assert "value" not in run_and_load(run_inline, tmp_path, "cases=[lookup]")


def test_tensors_of_what_is_right_are_saved_when_another_step_fails(run_inline, tmp_path, monkeypatch):
    monkeypatch.setattr(LinearProjection, "__call__", raises(RuntimeError("broken")))
    rows = run_inline("strategy=kv_on_gpu", "projection=linear", "schedule=serial", "save_tensors=true")
    statuses = {row["case"]: row["status"] for row in rows}
    assert statuses == {"hashing": "ok", "lookup": "ok", "projection": "crash", "up_embed": "skipped", "full": "crash"}
    assert {"row_ids", "embeddings"} <= load_file(tmp_path / "tensors.safetensors").keys()


def test_tensors_that_cannot_be_written_fail_no_case(run_inline, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("engram_exp.run.saved_tensors.os.replace", raises(OSError("no space left")))
    monkeypatch.setattr(module, "write_run", lambda *_: None)
    rows = run_inline("save_tensors=true", "cases=[hashing]")
    assert [row["status"] for row in rows] == ["ok"]
    assert "tensors.safetensors cannot be written: no space left" in caplog.text
    assert not list(tmp_path.glob("tensors*"))
