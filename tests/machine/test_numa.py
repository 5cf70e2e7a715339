"""Which node a process is bound to, and that it is."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from common import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.config.checks import check
from engram_exp.errors import ConfigError
from engram_exp.machine import numa
from engram_exp.machine.topology import Gpu
from engram_exp.run.worker import bind_to_node

NODES = {0: "0-3,8", 2: "4-7"}
GPUS = [Gpu(0, 18), Gpu(0, 18), Gpu(2, 18), Gpu(2, 18)]


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cpus_are_read_as_the_kernel_writes_them(cpus):
    stretches, listed = sorted(cpus), []
    while stretches:
        last = next((n for n in range(1, len(stretches)) if stretches[n] != stretches[0] + n), len(stretches))
        listed.append(f"{stretches[0]}-{stretches[last - 1]}" if last > 1 else str(stretches[0]))
        stretches = stretches[last:]
    assert numa.cpus_in(",".join(listed)) == cpus


@pytest.mark.parametrize(
    ("asked", "visible", "nodes"),
    [(2, "", [2, 2, 2]), ("near", "", [0, 0, 2]), ("near", "3,2,1", [2, 2, 0])],
)
def test_each_process_has_its_node(monkeypatch, asked, visible, nodes):
    monkeypatch.setenv(numa.VISIBLE, visible)
    assert numa.nodes_of(asked, 3, NODES, GPUS) == nodes


@pytest.mark.parametrize(
    ("asked", "nodes", "gpus", "visible", "message"),
    [
        (0, {0: "0-7"}, GPUS, "", "hardware.numa=0: this machine has one node of memory, where everything is"),
        (1, NODES, GPUS, "", "hardware.numa=1: there is no such node; choose from 0, 2, or near"),
        ("near", NODES, GPUS[:1], "", "hardware.numa=near: which node a GPU is near to is not known here"),
        ("near", NODES, [Gpu(None, 0)] * 2, "", "hardware.numa=near: which node a GPU is near to is not known here"),
        ("near", NODES, GPUS, "GPU-1,GPU-2", "hardware.numa=near: CUDA_VISIBLE_DEVICES names GPUs otherwise"),
    ],
)
def test_what_cannot_be_bound_is_refused(monkeypatch, asked, nodes, gpus, visible, message):
    monkeypatch.setenv(numa.VISIBLE, visible)
    with pytest.raises(ConfigError) as refused:
        numa.nodes_of(asked, 2, nodes, gpus)
    assert str(refused.value).startswith(message)


def test_cpus_are_those_of_the_node_that_may_be_used():
    assert numa.cpus_of(0, range(2, 20), NODES) == [2, 3, 8]
    with pytest.raises(ConfigError, match=r"hardware\.numa=2: none of its CPUs may be used here, but .0, 1"):
        numa.cpus_of(2, [0, 1], NODES)


@pytest.mark.parametrize("rank", range(4))
def test_ranks_of_one_node_share_its_cpus(monkeypatch, rank):
    bound = []
    monkeypatch.setattr(numa, "cpus_of_nodes", lambda: NODES)
    monkeypatch.setattr(numa, "places_of_gpus", lambda: GPUS)
    monkeypatch.setattr(numa, "bind_memory", bound.append)
    monkeypatch.delenv(numa.VISIBLE, raising=False)
    hardware = SimpleNamespace(numa="near", affinity=list(range(9)), threads=None)
    bind_to_node(SimpleNamespace(hardware=hardware), rank, 4)
    assert hardware.affinity == [[0, 1], [2, 3], [4, 5], [6, 7]][rank]
    assert (hardware.threads, bound) == (min(2, len(os.sched_getaffinity(0))), [rank // 2 * 2])


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (8, 2), (100, 4), (3, 1)])
def test_ranks_share_what_a_control_group_leaves_them(monkeypatch, quota, threads):
    monkeypatch.setattr(numa, "cpus_of_nodes", lambda: {0: "0-7", 2: "8-15"})
    monkeypatch.setattr(numa, "places_of_gpus", lambda: GPUS)
    monkeypatch.setattr(numa, "bind_memory", lambda node: None)
    monkeypatch.setattr("engram_exp.machine.cgroup.cpus", lambda: quota)
    monkeypatch.delenv(numa.VISIBLE, raising=False)
    hardware = SimpleNamespace(numa="near", affinity=list(range(16)), threads=None)
    bind_to_node(SimpleNamespace(hardware=hardware), 1, 4)
    assert hardware.threads == threads


@pytest.mark.parametrize(
    ("asked", "rank", "free"), [("near", 0, 20), ("near", 2, 30), ("near", 3, 30), (2, 0, 15), (0, 3, 10)]
)
def test_ranks_share_the_memory_of_the_node_that_they_are_bound_to(monkeypatch, asked, rank, free):
    """Of the node 0 are 40 bytes free, of the node 2 60; two of four ranks are near to each."""
    monkeypatch.setattr(numa, "cpus_of_nodes", lambda: NODES)
    monkeypatch.setattr(numa, "places_of_gpus", lambda: GPUS)
    monkeypatch.setattr(numa, "free_bytes_of_node", {0: 40, 2: 60}.__getitem__)
    monkeypatch.delenv(numa.VISIBLE, raising=False)
    assert numa.free_bytes(asked, rank, 4) == free


BOUND = """
import mmap, re
from engram_exp.machine.numa import bind_memory
bind_memory(0)
memory = mmap.mmap(-1, 2**22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"x" * 2**22)
assert re.search(r"bind:0 .*anon=\\d+", open("/proc/self/numa_maps").read())
"""


def test_memory_is_bound_to_the_node():
    if not os.path.exists("/proc/self/numa_maps"):
        pytest.skip("this kernel knows no nodes")
    done = subprocess.run([sys.executable, "-c", BOUND], cwd=ROOT, capture_output=True, text=True)
    if "does not bind memory" in done.stderr:
        pytest.skip("this container does not let processes bind memory")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("hardware.numa=far",), "hardware.numa=far: must be the number of a node, near, or null"),
        (("hardware.numa=-1",), "hardware.numa=-1: must be the number of a node, near, or null"),
        (("hardware.numa=0", "worker=inline"), "worker=inline: cannot change hardware.numa of this process"),
    ],
)
def test_the_key_takes_nodes(configure, overrides, message):
    with pytest.raises(ConfigError) as refused:
        check(configure(*TINY, *overrides))
    assert str(refused.value).startswith(message)


@pytest.mark.skipif(len(numa.cpus_of_nodes()) > 1, reason="needs a machine with one node")
def test_a_machine_of_one_node_binds_nothing(configure):
    config = configure(*TINY, "hardware.numa=0")
    with pytest.raises(ConfigError, match="this machine has one node of memory"):
        check(config)
    check(config, here=False)
