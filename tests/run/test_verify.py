"""What is compared, and when it differs."""

import threading
from itertools import count

import numpy as np
import pytest
import torch
from places import KERNEL_DEVICE

from engram_exp import load_results, load_samples
from engram_exp.errors import MismatchError
from engram_exp.run import verify
from engram_exp.stage import Strategy
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.steps.projection.rms_norm import KeyNorm
from engram_exp.steps.upload.pinned import PinnedUpload
from engram_exp.steps.widening.numba import NumbaWidening


def test_tokens_on_both_sides_of_every_edge_are_compared():
    found = verify.compared_tokens(100_000, [4096, 12_345], torch.Generator().manual_seed(3)).tolist()
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
    ("component", "wrong", "says", "cases"),
    [
        (NumbaHasher, wrong_hash, "hashing: 1 of", {"hashing", "lookup", "full"}),
        (GatherLookup, unwritten_rows, "lookup: .* values differ", {"lookup", "full"}),
        (FusedProjection, norm_with_another_gain, "projection, keys: .* vectors differ", {"projection", "full"}),
        (NumbaHasher, stale_after_the_first_call, "full, keys: .* vectors differ", {"hashing", "lookup", "full"}),
    ],
)
def test_a_wrong_component_is_a_mismatch_and_gets_no_time(
    run_inline, tmp_path, monkeypatch, component, wrong, says, cases
):
    monkeypatch.setattr(component, "__call__", wrong)
    run_inline("schedule=serial")
    frame = load_results(tmp_path).set_index("case")
    assert set(frame.index[frame["status"] == "mismatch"]) == cases
    assert frame.loc[list(cases), "error"].str.contains(says).any(), frame["error"].to_list()
    assert frame.loc[list(cases), "wall_ms_median"].isna().all()
    assert cases.isdisjoint(load_samples(tmp_path)["case"])


def test_a_wrong_value_in_mid_sequence_is_noticed(run_inline, monkeypatch):
    def wrong_in_the_middle(self, embeddings, original=FusedProjection.__call__):
        keys, value = original(self, embeddings)
        value[900:1000] *= 1.1
        return keys, value

    monkeypatch.setattr(FusedProjection, "__call__", wrong_in_the_middle)
    rows = run_inline("batch_size=1", "seq_len=2000", "cases=[projection]")
    assert rows[0]["status"] == "mismatch", rows


def test_a_wrong_widening_is_a_mismatch(run_inline, monkeypatch):
    def doubled(self, rows, original=NumbaWidening.__call__):
        return original(self, rows).mul_(2)

    monkeypatch.setattr(NumbaWidening, "__call__", doubled)
    (row,) = run_inline("dtype=fp8", "strategy=kv_on_cpu", "cases=[widening]")
    assert row["status"] == "mismatch", row
    assert row["error"].startswith("widening: ")


def test_a_lookup_that_widens_wrongly_is_a_mismatch(run_inline, monkeypatch):
    def doubled(self, row_ids, original=TritonLookup.__call__):
        return original(self, row_ids).mul_(2)

    monkeypatch.setattr(TritonLookup, "__call__", doubled)
    device = KERNEL_DEVICE.type
    rows = run_inline("dtype=fp8", "strategy=uva", "capture=none", f"hardware={device}", "cases=[lookup,projection]")
    assert [(row["case"], row["status"]) for row in rows] == [("lookup", "mismatch"), ("projection", "ok")]
    assert rows[0]["error"].startswith("lookup: ")


@pytest.mark.accelerator
def test_a_wrong_upload_is_a_mismatch(run_inline, monkeypatch):
    monkeypatch.setattr(PinnedUpload, "__call__", lambda self, tensors: tuple(t.cuda() * 0 for t in tensors))
    rows = run_inline("hardware=cuda", "schedule=serial")
    statuses = {row["case"]: row["status"] for row in rows}
    assert statuses == {
        "hashing": "ok", "lookup": "ok", "up_embed": "mismatch", "projection": "ok", "full": "mismatch",
    }  # fmt: skip


look_up = GatherLookup.__call__


def remembered_by_pointer(self, row_ids):
    known = self.__dict__.setdefault("known", {})
    if row_ids.data_ptr() not in known:
        known[row_ids.data_ptr()] = look_up(self, row_ids).clone()
    return known[row_ids.data_ptr()]


def right_for_so_many_calls(number):
    def call(self, row_ids):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if self.calls <= number:
            self.__dict__["last"] = look_up(self, row_ids)
        return self.last

    return call


def wrong_in_every_tenth_call(self, row_ids):
    self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
    result = look_up(self, row_ids)
    return result.neg() if self.calls % 10 == 9 else result


class Lazy(torch.Tensor):
    """Computes when somebody looks."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        plain = [look_up(*a.pending) if isinstance(a, Lazy) else a for a in args]
        return function(*plain, **(kwargs or {}))


def lazy(self, row_ids):
    result = torch.empty(0, dtype=self.rows.dtype).as_subclass(Lazy)
    result.pending = (self, row_ids)
    return result


def negated_when_read(self, row_ids):
    return torch._neg_view(look_up(self, row_ids).neg())


def at_the_edges_only(self, row_ids):
    """And at the evenly spaced tokens that could be guessed."""
    tokens = row_ids.shape[0] * row_ids.shape[1]
    edges = torch.arange(32)
    guessed = torch.cat([edges, tokens - 1 - edges, torch.arange(0, tokens, max(1, tokens // 256))])
    whole = self.rows[: row_ids.numel()].view(tokens, -1)
    whole[guessed] = look_up(self, row_ids).clone()[guessed]
    rest = torch.ones(tokens, dtype=torch.bool)
    rest[guessed] = False
    whole[rest] = 0
    return whole


def written_later(self, row_ids):
    result = look_up(self, row_ids).clone()
    late = torch.zeros_like(result)
    bits = [tensor.view(torch.int16).numpy() for tensor in (late, result)]
    threading.Timer(0.05, np.copyto, bits).start()
    return late


CHEATERS = [
    remembered_by_pointer, right_for_so_many_calls(1), right_for_so_many_calls(20), lazy, negated_when_read,
    at_the_edges_only, wrong_in_every_tenth_call, written_later,
]  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATERS)
def test_who_does_not_do_the_work_gets_no_time(run_inline, tmp_path, monkeypatch, cheat):
    monkeypatch.setattr(GatherLookup, "__call__", cheat)
    shape = ("batch_size=4", "seq_len=400", "iterations=30", "batches=3", "budget_s=5")
    run_inline(*shape, "strategy=kv_on_cpu", "schedule=serial", "cases=[lookup,full]")
    frame = load_results(tmp_path).set_index("case")
    assert frame.loc["lookup", "status"] == "mismatch", frame[["status", "error"]]
    assert frame.loc["full", "status"] == "mismatch", frame[["status", "error"]]
    assert frame["wall_ms_median"].isna().all()
    assert load_samples(tmp_path).empty


def test_nobody_brings_the_reference_that_judges_it(run_inline, monkeypatch):
    def zeros(self, row_ids):
        return torch.zeros_like(look_up(self, row_ids))

    def wanted_zeros(reference, *inputs, wanted=GatherLookup.wanted):
        (rows,), tolerance = wanted(reference, *inputs)
        return (torch.zeros_like(rows),), tolerance

    monkeypatch.setattr(GatherLookup, "__call__", zeros)
    monkeypatch.setattr(GatherLookup, "wanted", wanted_zeros)
    assert {row["status"] for row in run_inline("strategy=kv_on_cpu", "cases=[lookup,full]")} == {"mismatch"}


def test_nobody_decides_how_strictly_it_is_checked(run_inline, monkeypatch):
    calls = count()

    def wrong_once(self, ids, history, original=NumbaHasher.__call__):
        row_ids = original(self, ids, history)
        row_ids[3, 1234] += next(calls) == 0
        return row_ids

    monkeypatch.setattr(NumbaHasher, "compares_all", False)
    monkeypatch.setattr(NumbaHasher, "__call__", wrong_once)
    (row,) = run_inline("hashing=numba", "cases=[hashing]", "batch_size=4", "seq_len=3000")
    assert row["status"] == "mismatch"


def test_a_whole_that_remembers_is_noticed(run_inline, monkeypatch):
    known = {}

    def remembered(self, batch, original=Strategy.__call__):
        if batch[0].data_ptr() not in known:
            known[batch[0].data_ptr()] = tuple(tensor.clone() for tensor in original(self, batch))
        return known[batch[0].data_ptr()]

    monkeypatch.setattr(Strategy, "__call__", remembered)
    rows = run_inline("strategy=kv_on_cpu", "schedule=serial")
    statuses = {row["case"]: row["status"] for row in rows}
    assert statuses["full"] == "mismatch"
    assert statuses["lookup"] == statuses["projection"] == "ok"
