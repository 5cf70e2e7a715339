"""Nodes and links, as a system tells them that has some."""

from types import SimpleNamespace

from engram_exp.machine.topology import (
    Gpu,
    cpus_of_nodes,
    free_bytes_of_node,
    in_words,
    places_of_gpus,
    ways_between_gpus,
)


class NoAnswer(Exception):  # noqa: N818
    pass


def nvml(bus_ids, links, levels=()):
    def ancestor(first, second):
        if (first, second) not in levels:
            raise NoAnswer
        return levels[first, second]

    def state(gpu, link):
        if link >= len(links[gpu]):
            raise NoAnswer
        return links[gpu][link]

    return SimpleNamespace(
        NVMLError=NoAnswer,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(bus_ids),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPciInfo=lambda gpu: SimpleNamespace(busId=bus_ids[gpu]),
        nvmlDeviceGetNvLinkState=state,
        nvmlDeviceGetTopologyCommonAncestor=ancestor,
    )


def file(path, text):
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_files_that_a_node_keeps_in_memory_count_as_free(tmp_path):
    lines = {"MemTotal": 100, "MemFree": 7, "Active(anon)": 50, "Active(file)": 20, "Inactive(file)": 3, "Shmem": 11}
    file(tmp_path / "node2/meminfo", "".join(f"Node 2 {name}:   {kib} kB\n" for name, kib in lines.items()))
    assert free_bytes_of_node(2, tmp_path) == 30 * 1024


def test_nodes_have_the_cpus_that_the_kernel_lists(tmp_path):
    file(tmp_path / "node1/cpulist", "8-15\n")
    file(tmp_path / "node0/cpulist", "0-7\n")
    file(tmp_path / "node10/other", "")
    file(tmp_path / "possible/cpulist", "0-15\n")
    assert list(cpus_of_nodes(tmp_path).items()) == [(0, "0-7"), (1, "8-15")]


def test_gpus_are_where_their_slot_is(tmp_path):
    file(tmp_path / "0000:1b:00.0/numa_node", "1\n")
    file(tmp_path / "0000:2c:00.0/numa_node", "-1\n")
    buses = ["00000000:1B:00.0", b"00000000:2C:00.0", "00000000:3D:00.0"]
    found = places_of_gpus(nvml(buses, [[1] * 18, [1, 0, 1], []]), tmp_path)
    assert found == [Gpu(1, 18), Gpu(None, 2), Gpu(None, 0)]
    assert in_words({0: "0-7", 1: "8-15"}, found[:2], {}) == (
        "node 0: CPUs 0-7; node 1: CPUs 8-15; GPU 0 at node 1, 18 NVLinks; GPU 1 of no known node, 2 NVLinks"
    )
    assert in_words({}, found[2:], {}) == "GPU 0 of no known node, no NVLink"


def test_what_lies_between_gpus_is_told_the_nearest_first():
    levels = {(0, 1): 50, (0, 2): 10, (1, 3): 10, (2, 3): 50}  # of two pairs the driver says nothing
    ways = ways_between_gpus(nvml("abcd", [], levels))
    assert list(ways.items()) == [("behind one PCIe switch", ["0-2", "1-3"]), ("on different nodes", ["0-1", "2-3"])]
    assert in_words({}, [], ways) == "GPUs 0-2, 1-3 behind one PCIe switch; GPUs 0-1, 2-3 on different nodes"


def test_without_a_driver_there_are_no_gpus():
    def refuse():
        raise NoAnswer

    library = nvml([], [])
    library.nvmlInit = refuse
    assert places_of_gpus(library) == []
    assert ways_between_gpus(library) == {}
