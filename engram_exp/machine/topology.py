"""Which CPUs and GPUs of this host are near each other: nodes of memory, and links between GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

NODES = Path("/sys/devices/system/node")
PCI = Path("/sys/bus/pci/devices")
FREE = ("MemFree:", "Active(file):", "Inactive(file):")  # of a node's meminfo, KiB
MOST_NVLINKS = 18  # of a GPU
WAYS = {  # on PCIe from one GPU to another, as the driver numbers them
    0: "on one board",
    10: "behind one PCIe switch",
    20: "behind several PCIe switches",
    30: "behind one host bridge",
    40: "on one node, behind different host bridges",
    50: "on different nodes",
}


class Gpu(NamedTuple):
    """A GPU's place: the node of memory that it is near to, if the system tells, and its links to other GPUs, direct or
    through a switch, that are up."""

    node: int | None
    nvlinks: int


def cpus_of_nodes(nodes: Path = NODES) -> dict[int, str]:
    """CPUs of each node, as the kernel lists them: `0-15,32-47`."""
    found = {}
    for folder in nodes.glob("node[0-9]*"):
        with suppress(OSError):
            found[int(folder.name.removeprefix("node"))] = (folder / "cpulist").read_text().strip()
    return dict(sorted(found.items()))


def free_bytes_of_node(node: int, nodes: Path = NODES) -> int:
    """Memory of a node that can be allocated; what it keeps of files counts as free: the kernel drops that when it
    needs the room."""
    fields = (line.split() for line in (nodes / f"node{node}" / "meminfo").read_text().splitlines())
    return sum(int(kib) * 1024 for _, _, name, kib, *_ in fields if name in FREE)


def places_of_gpus(nvml: Any = None, pci: Path = PCI) -> list[Gpu]:
    """The place of each GPU; none where there is no driver.

    Args:
        nvml: the driver's library, which tests stand in for.
        pci: devices, as the kernel lists them.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    return [Gpu(_node_of(nvml, gpu, pci), _nvlinks_of(nvml, gpu)) for gpu in handles]


def ways_between_gpus(nvml: Any = None) -> dict[str, list[str]]:
    """What lies between GPUs on PCIe, the nearest first, and between which, as `0-1`; as far as the driver tells."""
    if nvml is None:
        import pynvml

        nvml = pynvml
    found: dict[int, list[str]] = {}
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return {}
    for (one, first), (other, second) in combinations(enumerate(handles), 2):
        with suppress(nvml.NVMLError):
            found.setdefault(nvml.nvmlDeviceGetTopologyCommonAncestor(first, second), []).append(f"{one}-{other}")
    return {WAYS[level]: pairs for level, pairs in sorted(found.items()) if level in WAYS}


def in_words(nodes: Mapping[int, str], gpus: Sequence[Gpu], ways: Mapping[str, Sequence[str]]) -> str:
    """Nodes with their CPUs, GPUs with theirs, and what lies between them, for a human reader."""
    told = [f"node {node}: CPUs {cpus}" for node, cpus in nodes.items()]
    for number, gpu in enumerate(gpus):
        near = "of no known node" if gpu.node is None else f"at node {gpu.node}"
        told.append(f"GPU {number} {near}, {gpu.nvlinks} NVLinks" if gpu.nvlinks else f"GPU {number} {near}, no NVLink")
    told += [f"GPUs {', '.join(pairs)} {way}" for way, pairs in ways.items()]
    return "; ".join(told)


def _node_of(nvml: Any, gpu: Any, pci: Path) -> int | None:
    """The kernel says -1 where the firmware did not tell it."""
    try:
        name = nvml.nvmlDeviceGetPciInfo(gpu).busId
        text = name.decode() if isinstance(name, bytes) else name
        node = int((pci / text.lower()[-len("0000:00:00.0") :] / "numa_node").read_text())
    except (nvml.NVMLError, OSError, ValueError):
        return None
    return node if node >= 0 else None


def _nvlinks_of(nvml: Any, gpu: Any) -> int:
    up = 0
    for link in range(MOST_NVLINKS):
        with suppress(nvml.NVMLError):  # it has no such link
            up += nvml.nvmlDeviceGetNvLinkState(gpu, link)
    return up
