"""Chunks and graphs on a GPU are right because every wait is where it must be, and none is anywhere else."""

import pytest
import torch
from common import TINY
from places import built_stages, parts_of

from engram_exp.run.whole import build_whole_run
from engram_exp.stage import Strategy
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.steps.upload.pinned import PinnedUpload
from engram_exp.strategy.schedule import Graph, Pipeline, Replay, Slot, streams_of

pytestmark = pytest.mark.accelerator

A_WHILE = 20_000_000  # cycles of a GPU: some 10 ms
IN_CHUNKS = ("schedule=pipelined", "schedule.chunk_tokens=5", "schedule.ring_depth=2")


def test_a_pipeline_and_a_capture_have_streams_of_their_own(configure):
    parts = parts_of(configure(*TINY, "strategy=uva", "hardware=cuda", *IN_CHUNKS, "capture=none"))
    for _ in range(33):
        pipeline = build_whole_run(parts, "full", {})
        assert pipeline.beside.stream_id == streams_of("cuda").beside.stream_id
    assert pipeline.beside.stream_id != streams_of("cuda").capturing.stream_id


def test_a_graph_is_replayed_on_its_own_buffers_only(configure):
    parts = parts_of(configure(*TINY, "strategy=uva", "hardware=cuda"))
    with torch.inference_mode():
        strategy = Strategy(list(built_stages(parts).values()))
        replay = Replay(strategy)
        want = replay(parts.batches[0])[0].clone()
        assert torch.equal(replay(parts.batches[0])[0], want)
        with pytest.raises(RuntimeError, match="captured for other buffers"):
            replay(parts.batches[1])


def slow_upload(self, tensors, original=PinnedUpload.__call__):
    torch.cuda._sleep(A_WHILE)
    return original(self, tensors)


def slow_lookup(self, row_ids, original=TritonLookup.__call__):
    torch.cuda._sleep(A_WHILE)
    return original(self, row_ids)


def slow_projection(self, embeddings, original=FusedProjection.__call__):
    if embeddings.is_cuda:
        torch.cuda._sleep(A_WHILE)
    return original(self, embeddings)


def no_wait(*_):
    pass


@pytest.mark.parametrize(
    ("strategy", "slow", "wait"),
    [
        ("kv_on_gpu", (PinnedUpload, slow_upload), "host_waits"),
        ("kv_on_cpu", (PinnedUpload, slow_upload), "host_waits"),
        ("kv_on_gpu", (PinnedUpload, slow_upload), "device_waits"),
        ("kv_on_gpu", (FusedProjection, slow_projection), "beside_waits"),
        ("uva", (TritonLookup, slow_lookup), "device_waits"),
        ("uva", (FusedProjection, slow_projection), "beside_waits"),
        ("device", (TritonLookup, slow_lookup), "device_waits"),
    ],
)
@pytest.mark.parametrize("whole", [("cases=full",), ("cases=layer", "fusion=gated_conv")])
def test_delays_change_nothing_as_long_as_every_wait_is_there(run_inline, monkeypatch, strategy, slow, wait, whole):
    arguments = (f"strategy={strategy}", "hardware=cuda", *whole, *IN_CHUNKS, "capture=none")
    component, slowed = slow
    monkeypatch.setattr(component, "__call__", slowed)
    assert run_inline(*arguments)[0]["status"] == "ok"
    monkeypatch.setattr(Slot, wait, no_wait)
    assert run_inline(*arguments)[0]["status"] == "mismatch"


@pytest.mark.parametrize(
    ("strategy", "owner", "wait"),
    [("kv_on_cpu", Pipeline, "beside_waits"), ("kv_on_cpu", Slot, "device_waits"), ("kv_on_gpu", Slot, "device_waits")],
)
@pytest.mark.parametrize("waits", [True, False])
def test_keys_and_value_can_be_read_behind_a_call_and_until_the_next(
    configure, monkeypatch, strategy, owner, wait, waits
):
    parts = parts_of(configure(*TINY, f"strategy={strategy}", "hardware=cuda", *IN_CHUNKS))
    first, second = parts.batches[:2]
    with torch.inference_mode():
        monkeypatch.setattr(PinnedUpload, "__call__", slow_upload)
        whole_run = build_whole_run(parts, "full", {})
        for batch in (second, first):
            want = whole_run(batch)[0]
            torch.cuda.synchronize()
        want = want.clone()
        whole_run(second)
        torch.cuda.synchronize()
        if not waits:
            monkeypatch.setattr(owner, wait, no_wait)
        keys = whole_run(first)[0]
        if wait == "beside_waits":
            torch.cuda.synchronize()
            torch.cuda._sleep(A_WHILE * 10)
        read = keys.clone()
        whole_run(second)
        torch.cuda.synchronize()
    assert torch.equal(read, want) == waits


@pytest.mark.parametrize("waits", [True, False])
def test_rows_are_read_once_the_ids_of_this_call_are_hashed(configure, monkeypatch, waits):
    parts = parts_of(configure(*TINY, "strategy=uva", "hardware=cuda", *IN_CHUNKS, "capture=none"))
    first, second = parts.batches[:2]
    with torch.inference_mode():
        overlap = build_whole_run(parts, "full", {})
        overlap(first)
        want = overlap(second)[0].clone()
        torch.cuda.synchronize()
        monkeypatch.setattr(FusedProjection, "__call__", slow_projection)
        if not waits:
            monkeypatch.setattr(Pipeline, "beside_waits", no_wait)
        overlap(first)
        keys = overlap(second)[0]
        torch.cuda.synchronize()
    assert torch.equal(keys, want) == waits


@pytest.mark.parametrize("waits", [True, False])
def test_a_graph_reads_its_ids_before_they_are_overwritten(configure, monkeypatch, waits):
    if not waits:
        monkeypatch.setattr(Graph, "host_waits", no_wait)
    monkeypatch.setattr(PinnedUpload, "__call__", slow_upload)
    parts = parts_of(configure(*TINY, "strategy=uva", "hardware=cuda", "batches=2"))
    with torch.inference_mode():
        stages = built_stages(parts)
        graph = build_whole_run(parts, "full", stages)
        first, second = parts.batches
        graph(first)
        torch.cuda.synchronize()
        keys = graph(first)[0].clone()
        graph(second)
        torch.cuda.synchronize()
        want = Strategy(list(stages.values()))(first)[0]
    assert torch.equal(keys, want) == waits


@pytest.mark.parametrize(
    ("strategy", "schedule"),
    [
        *((strategy, IN_CHUNKS) for strategy in ("kv_on_gpu", "kv_on_cpu", "uva", "device")),
        ("uva", (*IN_CHUNKS, "capture=none")),
        ("uva", ()),
        ("device", ()),
    ],
)
@pytest.mark.parametrize(("whole", "fusion"), [("full", "none"), ("layer", "gated_conv")])
def test_nothing_waits_for_the_device_between_kernels(configure, strategy, schedule, whole, fusion):
    parts = parts_of(configure(*TINY, f"strategy={strategy}", "hardware=cuda", f"fusion={fusion}", *schedule))
    with torch.inference_mode():
        stages = {} if schedule else built_stages(parts)
        whole_run = build_whole_run(parts, whole, stages)
        for batch in parts.batches[:3]:
            whole_run(batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            whole_run(parts.batches[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
