"""Chunks that overlap give what whole batches give."""

import gc
from itertools import cycle

import psutil
import pytest
import torch
from common import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, DEVICES, KERNEL_DEVICE, parts_of
from safetensors.torch import load_file

from engram_exp.config.derived import chunk_tokens_of
from engram_exp.layer.tokens import Batch
from engram_exp.machine.host_memory import HostMemory
from engram_exp.run.whole import build_whole_run
from engram_exp.steps.hashing.numpy import NumpyHasher
from engram_exp.strategy.schedule import cut, streams_of

KEPT = ("cases=[full]", "save_tensors=true", "iterations=1", "batches=2")
IN_CHUNKS = ("schedule=pipelined", "schedule.chunk_tokens=5", "schedule.ring_depth=2")


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(1, 6), seq_len=st.integers(1, 12), chunk_tokens=st.integers(1, 80), seed=st.integers(0, 99)
)
def test_chunks_hash_to_what_the_batch_hashes_to(tiny_plan, batch_size, seq_len, chunk_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randint(0, 1000, (batch_size, 2 + seq_len), generator=generator)
    batch = Batch(stream[:, 2:].contiguous(), torch.where(stream[:, :2] < 500, -1, stream[:, :2]))
    hasher = NumpyHasher(tiny_plan, batch.ids.numel(), CPU)
    cuts = cut(batch_size, seq_len, chunk_tokens)
    assert all(0 < piece.tokens <= chunk_tokens for piece in cuts)
    row_ids = torch.cat([hasher(*piece.of(batch)).flatten(0, 1) for piece in cuts])
    assert torch.equal(row_ids, hasher(*batch).flatten(0, 1))


@pytest.mark.parametrize("dtype", ["float32", "fp8"])
@pytest.mark.parametrize(
    "options", [("strategy=uva", "lookup.widen=false", "lookup.rows_per_program=8"), ("strategy=device",)]
)
@pytest.mark.usefixtures("few_looks")
def test_rows_are_read_while_others_are_computed(run_inline, tmp_path, options, dtype):
    common = (*options, f"hardware={KERNEL_DEVICE.type}", f"dtype={dtype}", *KEPT)
    capture = ["capture=graph", "capture=none"] if KERNEL_DEVICE.type == "cuda" else ["capture=none"]
    assert run_inline(*common, "schedule=serial")[0]["status"] == "ok"
    serial = load_file(tmp_path / "tensors.safetensors")
    for chunks in (("schedule.chunk_tokens=5", "schedule.ring_depth=2"), ("schedule.chunk_tokens=12",)):
        for captured in capture:
            row = run_inline(*common, "schedule=pipelined", *chunks, captured)[0]
            assert row["status"] == "ok", row["error"]
            pipelined = load_file(tmp_path / "tensors.safetensors")
            for name in ("keys", "value"):
                torch.testing.assert_close(pipelined[name], serial[name], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu"])
@pytest.mark.parametrize("dtype", ["float32", "fp8", "fp8_one_scale"])
def test_a_pipeline_gives_the_same_keys_and_value(run_inline, tmp_path, device, strategy, dtype):
    common = (f"strategy={strategy}", f"hardware={device}", f"dtype={dtype}", *KEPT)
    assert run_inline(*common, "schedule=serial")[0]["status"] == "ok"
    serial = load_file(tmp_path / "tensors.safetensors")
    for chunk_tokens, ring_depth in ((1, 3), (5, 1), (12, 2), (20, 3), (50, 2)):
        chunks = (f"schedule.chunk_tokens={chunk_tokens}", f"schedule.ring_depth={ring_depth}")
        row = run_inline(*common, *chunks)[0]
        assert row["status"] == "ok", row["error"]
        pipelined = load_file(tmp_path / "tensors.safetensors")
        for name in ("keys", "value"):
            torch.testing.assert_close(pipelined[name], serial[name], rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        (["schedule.chunk_tokens=100"], 100),
        (["schedule=serial"], None),
        (["batch_size=64", "seq_len=4096"], 16384),  # 32 MiB
        (["batch_size=8", "seq_len=4096"], 8192),  # a quarter
        (["batch_size=64", "seq_len=1"], 2048),  # 4 MiB
        (["batch_size=1", "seq_len=8192", "model=deepseek_v41_flash", "dtype=fp8"], 2048),
    ],
)
def test_chunks_are_a_quarter_within_bounds(configure, overrides, tokens):
    assert chunk_tokens_of(configure(*overrides)) == tokens


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["projection=linear"], "projection=fused, or schedule=serial"),
        pytest.param(
            ["upload=pageable", "hardware=cuda"], "upload=pinned, or schedule=serial", marks=pytest.mark.accelerator
        ),
    ],
)
@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["schedule=pipelined"], "schedule=pipelined"),
        (["schedule.chunk_tokens=7"], "schedule.chunk_tokens=7"),
    ],
)
def test_components_that_cannot_overlap_are_refused(run_inline, overrides, says, asked, named):
    row = run_inline(*asked, *overrides)[0]
    assert row["status"] == "refused"
    assert row["error"].startswith(f"{named}: ")
    assert says in row["error"]


@pytest.mark.accelerator
def test_a_graph_needs_an_upload_that_does_not_wait(run_inline):
    row = run_inline("strategy=uva", "upload=pageable", "hardware=cuda")[0]
    assert (row["status"], row["error"].partition(":")[0]) == ("refused", "capture=graph")


@given(others=st.lists(st.integers(0, 70), min_size=2, max_size=5))
def test_streams_never_coincide_however_many_others_use_the_pool(others):
    drawn = cycle(range(32))  # as PyTorch's pool
    with pytest.MonkeyPatch.context() as patch:
        for module in (torch, torch.cuda):
            patch.setattr(module, "Stream", lambda device=None, priority=0: next(drawn))
        streams_of.cache_clear()
        found = []
        for before in others:
            for _ in range(before):
                torch.Stream()
            found.append(streams_of("cuda"))
        streams_of.cache_clear()
    assert found == [found[0]] * len(others)
    assert len(set(found[0])) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_graph_needs_a_gpu(run_inline):
    row = run_inline("strategy=uva")[0]
    assert (row["status"], row["error"].partition(":")[0]) == ("refused", "capture=graph")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", ["kv_on_gpu", "kv_on_cpu"])
@pytest.mark.slow
def test_repeated_calls_leak_nothing(configure, device, strategy):
    parts = parts_of(configure(*TINY, f"strategy={strategy}", f"hardware={device}", *IN_CHUNKS, "seq_len=200"))
    with torch.inference_mode():
        whole_run = build_whole_run(parts, "full", {})
        for _ in range(30):
            whole_run(parts.batches[0])
        before = psutil.Process().memory_info().rss, torch.cuda.memory_allocated() if device == "cuda" else 0
        for _ in range(300):
            whole_run(parts.batches[0])
        after = psutil.Process().memory_info().rss, torch.cuda.memory_allocated() if device == "cuda" else 0
    assert after[0] - before[0] < 2**22
    assert after[1] == before[1]


@pytest.mark.accelerator
def test_a_run_gives_its_pinned_memory_back(run_inline):
    run_inline("strategy=kv_on_gpu", "hardware=cuda")
    gc.collect()
    before = HostMemory.pinned_bytes
    for strategy in ("kv_on_gpu", "kv_on_cpu", "uva"):
        assert {row["status"] for row in run_inline(f"strategy={strategy}", "hardware=cuda")} == {"ok"}
    gc.collect()
    assert HostMemory.pinned_bytes == before


def test_a_chunk_takes_as_many_whole_sequences_as_it_can():
    assert [piece.tokens for piece in cut(5, 4, 9)] == [8, 8, 4]
    assert [piece.tokens for piece in cut(2, 10, 4)] == [4, 4, 2] * 2
