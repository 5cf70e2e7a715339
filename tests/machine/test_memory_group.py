"""A memory group of one's own, in folders that look like those of the kernel; and why there is none."""

import os

import pytest

from engram_exp.errors import SkippedError
from engram_exp.machine import cgroup, memory_group


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The tree of groups, with this process in one of them; nothing is left to be done when the tests end."""
    root, own = tmp_path / "groups", tmp_path / "own"
    (root / "job/step").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory\n")
    (root / "job/cgroup.subtree_control").write_text("memory\n")
    own.write_text("0::/job/step\n")
    monkeypatch.setattr(cgroup, "ROOT", root)
    monkeypatch.setattr(cgroup, "OWN", own)
    monkeypatch.setattr(memory_group.atexit, "register", lambda *call: left.append(call))
    left = []
    return root, left


def test_a_process_moves_into_a_group_of_its_own_and_back(groups):
    root, at_exit = groups
    (root / f"job/{memory_group.PREFIX}1").mkdir()
    group = memory_group.join(8 * 10**9)
    assert group == root / f"job/{memory_group.PREFIX}{os.getpid()}"
    assert {file.name: file.read_text() for file in group.iterdir()} == {
        "memory.max": "8000000000", "cgroup.procs": str(os.getpid()),
    }  # fmt: skip
    assert not (root / f"job/{memory_group.PREFIX}1").exists(), "its process has ended"
    ((leave, *told),) = at_exit
    for file in group.iterdir():
        file.unlink()  # the kernel's vanish with their folder
    leave(*told)
    assert not group.exists()
    assert (root / "job/step/cgroup.procs").read_text() == str(os.getpid())


def test_what_a_killed_process_has_left_tells_why(groups):
    root, _ = groups
    group = root / f"job/{memory_group.PREFIX}4711"
    assert memory_group.oom_kills_of(4711) == 0
    group.mkdir()
    (group / "memory.events").write_text("max 12\noom_kill 1\n")
    assert memory_group.oom_kills_of(4711) == 1


def test_nothing_goes_to_a_disk_instead(groups, monkeypatch):
    root, _ = groups
    group = root / f"job/{memory_group.PREFIX}{os.getpid()}"
    mkdir = type(group).mkdir
    monkeypatch.setattr(type(group), "mkdir", lambda path: (mkdir(path), (path / "memory.swap.max").write_text("max")))
    memory_group.join(1)
    assert (group / "memory.swap.max").read_text() == "0"


def test_the_controller_is_asked_for_where_it_is_not_there(groups):
    root, _ = groups
    (root / "job/cgroup.subtree_control").write_text("cpu\n")
    memory_group.join(1)
    assert (root / "job/cgroup.subtree_control").read_text() == "+memory"


NONE = "this machine does not limit memory by groups of version 2"
CONTROLLERS, OWN_CONTROLLERS = "groups/cgroup.controllers", "groups/job/cgroup.subtree_control"


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        (CONTROLLERS, None, NONE),
        (CONTROLLERS, "cpu", NONE),
        ("own", "4:memory:/job\n", NONE),
        ("own", "0::/\n", "this process is in the topmost group"),
        (OWN_CONTROLLERS, None, "no memory group can be made .*No such file"),
        (f"groups/job/{memory_group.PREFIX}4711", "another's", "no memory group can be made .*File exists"),
    ],
)
def test_why_there_is_none_is_told(groups, tmp_path, monkeypatch, file, text, why):
    monkeypatch.setattr(memory_group.os, "getpid", lambda: 4711)
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with pytest.raises(SkippedError, match=rf"^memory_limit_gb: {why}"):
        memory_group.join(10**9)
