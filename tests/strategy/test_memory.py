import psutil
import pytest
import torch
from common import demo_geometry
from places import CPU

from engram_exp.config.derived import threads_of
from engram_exp.errors import DoesNotFitError
from engram_exp.machine import cgroup, memory
from engram_exp.machine.memory import forget_peaks, peak_bytes
from engram_exp.strategy.footprint import Footprint, Ring, check_fits, footprint
from engram_exp.strategy.plan import PlannedStage

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
    assert needed.host_bytes == 4 * ids + 5 * row_ids + needed.table_bytes + 2**29 + weights * 6
    assert needed.device_bytes == 2**29 + tokens * 5120 * 2 + weights * 2
    three = footprint(geometry, GPU_STAGES, [], (64, 4096), batches=4, kv_buffers=3)
    assert three.device_bytes - needed.device_bytes == 2 * tokens * 5120 * 2


def test_a_ring_keeps_a_few_chunks():
    geometry = demo_geometry()
    tokens, weights = 64 * 4096, 5120 * 1024 + 5120 + 4096
    ring = Ring(GPU_STAGES, chunk_tokens=1000, depth=2)
    needed = footprint(geometry, [], [], (64, 4096), batches=4, kv_buffers=1, ring=ring)
    ids, chunk_ids, chunk_rows = (tokens + 64 * 2) * 8, 1000 * 16 * 4, 1000 * 16 * 128
    assert needed.host_bytes == 4 * ids + chunk_ids + 2 * chunk_rows + needed.table_bytes + weights * 6
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
    rows = (demo_geometry(values_per_scale=32), [PlannedStage("widening", "device")])
    real, made_up = (footprint(*rows, names, **shape) for names in ([], ["widening"]))
    assert made_up.device_bytes - real.device_bytes == 100 * 16 * 66


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


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of this process, by the path of each below the topmost one."""
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/batch/job\n")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")

    def write(group, **files):
        folder = tmp_path / "groups" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")

    return write


def test_a_control_group_counts_its_limit_and_what_it_could_drop(groups):
    system = memory.free_host_bytes()
    usage = {"memory_current": 2_000_000, "memory_stat": "anon 5\ninactive_file 500000"}
    groups("batch/job", memory_max="max", **usage)
    assert abs(memory.free_host_bytes() - system) < 2**30
    groups("batch", memory_max=3_000_000, **usage)
    assert memory.free_host_bytes() == 1_500_000, "the group above counts, too"
    groups("batch/job", memory_max=2_100_000, **usage)
    assert memory.free_host_bytes() == 600_000


def test_a_quota_of_cpu_time_counts(groups, configure, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    config = configure()
    assert (cgroup.cpus(), threads_of(config)) == (None, 64)
    groups("batch/job", cpu_max="max 100000")
    assert threads_of(config) == 64
    groups("batch", cpu_max="1650000 100000")
    assert threads_of(config) == 16
    groups("batch/job", cpu_max="50000 100000")
    assert threads_of(config) == 1
    assert threads_of(configure("hardware.threads=3")) == 3


@pytest.mark.parametrize("own", ["", "4:memory:/a\n", "0::/../outside\n", None])
def test_without_a_group_of_its_own_nothing_is_limited(groups, own):
    groups("", memory_max="1", cpu_max="1 1")
    cgroup.OWN.unlink() if own is None else cgroup.OWN.write_text(own)
    assert cgroup.free_bytes() is cgroup.cpus() is None


def test_a_group_above_its_limit_has_nothing_free(groups):
    groups("batch/job", memory_max=1000, memory_current=5000, memory_stat="inactive_file 0")
    assert cgroup.free_bytes() == 0


def test_a_remedy_is_a_share_of_the_real_table():
    for device, where in (("cuda", "host"), ("cpu", "device")):
        sides = (11 * 10**9, 0) if where == "host" else (0, 11 * 10**9)
        with pytest.raises(DoesNotFitError, match=r"model\.table_scale=0\.13 would fit"):
            check_fits(Footprint(*sides, 10**10, where), 4 * 10**9, 8 * 10**9, torch.device(device), table_scale=0.5)


def test_the_peak_of_the_host_is_in_bytes_and_can_be_forgotten():
    kept = psutil.Process().memory_info().rss
    torch.ones(2**28, dtype=torch.uint8)
    before = peak_bytes(CPU.device)["peak_host_bytes"]
    assert before >= kept + 2**27
    forget_peaks(CPU.device)
    assert peak_bytes(CPU.device)["peak_host_bytes"] < before - 2**27
