"""Control groups of both versions: what they leave to this process, and whom they killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from engram_exp.campaign.process import describe_exit
from engram_exp.machine import cgroup

V1 = "9:name=systemd:/\n4:memory:/batch/job\n1:cpu,cpuacct:/batch/job\n0::/\n"
UNLIMITED = 9223372036854771712


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Files of control groups, by their path below the mounted tree; `own` is what the kernel says of this process."""
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")

    def write(own, **files):
        (tmp_path / "own").write_text(own)
        for path, texts in files.items():
            folder = tmp_path / "groups" / path.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(f"{text}\n")

    return write


def memory(limit, used, inactive):
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {inactive}",
    }


def test_version_1_limits_memory(groups):
    groups(V1, memory__batch__job=memory(UNLIMITED, 1, 0))
    assert cgroup.free_bytes() is None
    groups(V1, memory__batch__job=memory(3000, 1000, 100), memory__batch=memory(10_000, 9000, 500))
    assert cgroup.free_bytes() == 1500, "the group above counts, too"
    groups(V1, memory__batch__job=memory(500, 1000, 100))
    assert cgroup.free_bytes() == 0


@pytest.mark.parametrize("own", [V1, V1.replace("/batch/job", "/../elsewhere")])
def test_a_container_of_version_1_sees_its_group_at_the_top(groups, own):
    groups(own, memory=memory(3000, 1000, 100), cpu={"cpu.cfs_quota_us": 250_000, "cpu.cfs_period_us": 100_000})
    assert cgroup.free_bytes() == 2100
    assert cgroup.cpus() == 2


def test_version_1_limits_cpu_time(groups):
    groups(V1, cpu__batch__job={"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000})
    assert cgroup.cpus() is None
    groups(V1, cpu__batch={"cpu.cfs_quota_us": 1_650_000, "cpu.cfs_period_us": 100_000})
    assert cgroup.cpus() == 16
    groups(V1, cpu__batch__job={"cpu.cfs_quota_us": 50_000, "cpu.cfs_period_us": 100_000})
    assert cgroup.cpus() == 1


def test_kills_are_counted_by_both_versions(groups):
    groups(V1)
    assert cgroup.oom_kills() == 0
    groups(V1, memory__batch__job={"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3"})
    assert cgroup.oom_kills() == 3
    groups("0::/batch/job\n", batch__job={"memory.events": "low 0\noom 2\noom_kill 5\noom_group_kill 1"})
    assert cgroup.oom_kills() == 5


def test_only_a_kill_of_the_memory_controller_is_oom_host():
    assert describe_exit(-9, 1).status == "oom_host"
    assert "memory controller" in describe_exit(-9, 1).error
    for code, kills in ((-9, 0), (-15, 1), (-11, 1), (1, 1), (73, 1)):
        assert describe_exit(code, kills).status == "crash"


def test_a_group_that_really_runs_out_of_memory_is_seen(monkeypatch, tmp_path):
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in lines if ":memory:" in line), None)
    group = Path(f"/sys/fs/cgroup/memory{own}/engram_exp-test")
    try:
        if own is None:
            raise OSError("no memory controller of version 1")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the right to make a control group ({error})")
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 * 2**20))
        (tmp_path / "own").write_text(f"4:memory:{own}/engram_exp-test\n")
        monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
        before = cgroup.oom_kills()
        join = f"open('{group}/cgroup.procs', 'w').write('0')"
        script = f"{join}\nkept = []\nfor _ in range(100): kept.append(bytearray(2**23))"
        done = subprocess.run([sys.executable, "-c", script])
        ending = describe_exit(done.returncode, cgroup.oom_kills() - before)
        assert ending.status == "oom_host"
    finally:
        group.rmdir()
