import pytest
import torch
from conftest import demo_geometry

from engram_exp import memory
from engram_exp.errors import DoesNotFitError
from engram_exp.memory import Footprint, Ring, check_fits, footprint
from engram_exp.plan import PlannedStage

CUDA = torch.device("cuda")
GPU_STAGES = [
    PlannedStage("hashing", "host"), PlannedStage("lookup", "host"), PlannedStage("up_embed", "link"),
    PlannedStage("projection", "device"),
]  # fmt: skip


def test_the_footprint_is_the_sum_of_what_is_kept():
    geometry = demo_geometry()
    tokens, weights = 64 * 4096, 5120 * 1024 + 5120 + 4096
    needed = footprint(geometry, GPU_STAGES, [], (64, 4096), batches=4, kv_buffers=1)
    ids, row_ids = (tokens + 64 * 2) * 8, tokens * 16 * 4
    assert needed.table_bytes == 10_344_164 * 128
    assert needed.host_bytes == 4 * ids + 5 * row_ids + needed.table_bytes + 2**29 + weights * 4
    assert needed.device_bytes == 2**29 + tokens * 5120 * 2 + weights * 2
    three = footprint(geometry, GPU_STAGES, [], (64, 4096), batches=4, kv_buffers=3)
    assert three.device_bytes - needed.device_bytes == 2 * tokens * 5120 * 2


def test_a_ring_keeps_a_few_chunks():
    geometry = demo_geometry()
    tokens, weights = 64 * 4096, 5120 * 1024 + 5120 + 4096
    ring = Ring(GPU_STAGES, chunk_tokens=1000, depth=2)
    needed = footprint(geometry, [], [], (64, 4096), batches=4, kv_buffers=1, ring=ring)
    ids, chunk_ids, chunk_rows = (tokens + 64 * 2) * 8, 1000 * 16 * 4, 1000 * 16 * 128
    assert needed.host_bytes == 4 * ids + chunk_ids + 2 * chunk_rows + needed.table_bytes + weights * 4
    assert needed.device_bytes == 2 * chunk_rows + tokens * 5120 * 2 + weights * 2


def test_a_table_counts_where_it_lives_and_a_gpu_may_sort():
    geometry = demo_geometry()
    stages = [PlannedStage(name, "device") for name in ("hashing", "lookup", "projection")]
    there = footprint(geometry, stages, [], (1, 100), batches=1, kv_buffers=1, table="device")
    here = footprint(geometry, stages, [], (1, 100), batches=1, kv_buffers=1, table="host")
    assert there.device_bytes - here.device_bytes == here.host_bytes - there.host_bytes == geometry.table_bytes
    assert here.device_bytes > geometry.sort_bytes(100) == 2 * 100 * 16 * 12


def test_made_up_inputs_count():
    geometry = demo_geometry()
    upload, projection = PlannedStage("up_kv", "link"), PlannedStage("projection", "device")
    shape = {"shape": (1, 100), "batches": 1, "kv_buffers": 1}
    real, made_up = (footprint(geometry, [upload], names, **shape) for names in ([], ["up_kv"]))
    assert made_up.host_bytes - real.host_bytes == 100 * 5120 * 2
    real, made_up = (footprint(geometry, [projection], names, **shape) for names in ([], ["projection"]))
    assert made_up.device_bytes - real.device_bytes == 100 * 1024 * 2


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        (Footprint(10**9, 9 * 10**9, 0), "needs 9.00 GB of device memory, 8.00 GB are free: a smaller batch_size"),
        (Footprint(5 * 10**9, 0, 10**9), "needs 5.00 GB of host memory, 4.00 GB are free: a smaller batch_size"),
        (Footprint(11 * 10**9, 0, 10**10), r"needs 11.00 GB of host memory, 4.00 GB are free: model.table_scale=0.26"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(needed, says):
    with pytest.raises(DoesNotFitError) as refusal:
        check_fits(needed, 4 * 10**9, 8 * 10**9, CUDA, table_scale=1.0)
    assert str(refusal.value).startswith(says)


def test_without_a_device_both_sides_share_the_host():
    needed = Footprint(3 * 10**9, 3 * 10**9, 0)
    check_fits(needed, 4 * 10**9, 4 * 10**9, CUDA, 1.0)
    with pytest.raises(DoesNotFitError, match=r"needs 6\.00 GB of host memory"):
        check_fits(needed, 4 * 10**9, 4 * 10**9, torch.device("cpu"), 1.0)


def test_a_control_group_counts_its_limit_and_what_it_could_drop(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    system = memory.free_host_bytes()
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert memory.free_host_bytes() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(memory.free_host_bytes() - system) < 2**30
