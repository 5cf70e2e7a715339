"""What is compared, and when it differs."""

import pytest
import torch

from engram_exp import load_results, load_samples
from engram_exp.errors import MismatchError
from engram_exp.run import verify
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.steps.projection.rms_norm import KeyNorm
from engram_exp.steps.upload.pinned import PinnedUpload
from engram_exp.steps.widening.numba import NumbaWidening


def test_tokens_on_both_sides_of_every_edge_are_compared():
    found = verify.compared_tokens(100_000, 4096, 12_345).tolist()
    assert found == sorted(set(found))
    for edge in (0, 4096, 12_345, 100_000):
        assert set(range(max(0, edge - 32), min(100_000, edge + 32))) <= set(found)
    assert len(found) < 1000


def test_what_is_not_a_number_is_not_close():
    with pytest.raises(MismatchError, match=r"1 of 2 compared vectors differ .*, by up to inf"):
        verify.require_close("keys", torch.tensor([[1.0, torch.nan], [1.0, 1.0]]), torch.ones(2, 2), 0.1)


def test_equal_values_of_another_dtype_are_a_mismatch():
    with pytest.raises(MismatchError, match=r"^hashing: torch.int64 \[3\] instead of torch.int32 \[3\]"):
        verify.require_equal("hashing", torch.arange(3), torch.arange(3, dtype=torch.int32))


def wrong_hash(self, ids, history, original=NumbaHasher.__call__):
    row_ids = original(self, ids, history)
    row_ids[-1, -1, -1] += 1
    return row_ids


def unwritten_rows(self, row_ids):
    return self.rows[: row_ids.numel()].view(row_ids.shape[0] * row_ids.shape[1], -1)


def norm_with_another_gain(self, embeddings, original=FusedProjection.__call__):
    self.norm = KeyNorm(self.weights)
    self.norm.gain = self.norm.gain * 1.02
    return original(self, embeddings)


def stale_after_the_first_call(self, ids, history, original=NumbaHasher.__call__):
    if not hasattr(self, "kept"):
        self.kept = original(self, ids, history)
    return self.kept


@pytest.mark.parametrize(
    ("component", "wrong", "says"),
    [
        (NumbaHasher, wrong_hash, "hashing: 1 of"),
        (GatherLookup, unwritten_rows, "lookup: .* values differ"),
        (FusedProjection, norm_with_another_gain, "projection, keys: .* vectors differ"),
        (NumbaHasher, stale_after_the_first_call, "full, keys: .* vectors differ"),
    ],
)
def test_a_wrong_component_is_a_mismatch_and_gets_no_time(run_inline, tmp_path, monkeypatch, component, wrong, says):
    monkeypatch.setattr(component, "__call__", wrong)
    rows = run_inline()
    assert {row["status"] for row in rows} == {"mismatch"}
    frame = load_results(tmp_path)
    assert frame["error"].str.contains(says).all(), frame["error"][0]
    assert frame["wall_ms_median"].isna().all()
    assert load_samples(tmp_path).empty


def test_a_wrong_value_in_mid_sequence_is_noticed(run_inline, monkeypatch):
    def wrong_in_the_middle(self, embeddings, original=FusedProjection.__call__):
        keys, value = original(self, embeddings)
        value[900:1000] *= 1.1
        return keys, value

    monkeypatch.setattr(FusedProjection, "__call__", wrong_in_the_middle)
    rows = run_inline("batch_size=1", "seq_len=2000", "cases=[projection]")
    assert rows[0]["status"] == "mismatch", rows


@pytest.mark.accelerator
def test_a_wrong_upload_is_a_mismatch(run_inline, monkeypatch):
    monkeypatch.setattr(PinnedUpload, "__call__", lambda self, tensors: tuple(t.cuda() * 0 for t in tensors))
    rows = run_inline("hardware=cuda")
    assert {row["status"] for row in rows} == {"mismatch"}
    assert rows[0]["error"].startswith("up_embed:")


def test_a_wrong_widening_is_a_mismatch(run_inline, monkeypatch):
    def doubled(self, rows, original=NumbaWidening.__call__):
        return original(self, rows).mul_(2)

    monkeypatch.setattr(NumbaWidening, "__call__", doubled)
    (row,) = run_inline("dtype=fp8", "strategy=kv_on_cpu", "cases=[widening]")
    assert row["status"] == "mismatch", row
    assert row["error"].startswith("widening: ")
