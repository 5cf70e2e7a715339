"""What is free, and what was used at most."""

import psutil
import pytest
import torch
from places import CPU

from engram_exp.config.derived import threads_of
from engram_exp.machine import cgroup, memory
from engram_exp.machine.memory import forget_peaks, peak_bytes
from engram_exp.machine.peer_memory import SymmetricMemory


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_peak_of_the_host_is_in_bytes_and_can_be_forgotten():
    kept = psutil.Process().memory_info().rss
    torch.ones(2**28, dtype=torch.uint8)
    before = peak_bytes(CPU.device)["peak_host_bytes"]
    assert before >= kept + 2**27
    forget_peaks(CPU.device)
    assert peak_bytes(CPU.device)["peak_host_bytes"] < before - 2**27


def test_memory_that_ranks_read_of_each_other_counts_as_long_as_it_is_kept(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 5)
    kept = object.__new__(SymmetricMemory)  # what it makes of a GPU is what the tests of an accelerator are for
    kept.own = torch.empty(100, dtype=torch.uint8)
    SymmetricMemory.kept.add(kept)
    assert peak_bytes(torch.device("xpu"))["peak_device_bytes"] == 105
    del kept
    assert peak_bytes(torch.device("xpu"))["peak_device_bytes"] == 5
