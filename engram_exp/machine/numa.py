"""Nodes of memory: the CPUs of one, and memory that is taken from it alone.

Nothing here imports PyTorch: whoever binds a process does so before it starts threads, which keep what they find.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from engram_exp.errors import ConfigError
from engram_exp.machine.topology import Gpu, cpus_of_nodes, free_bytes_of_node, places_of_gpus

KEY = "hardware.numa"
NEAR = "near"  # to the GPU of the process
MPOL_BIND = 2  # set_mempolicy(2)
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # its number among the system's calls
MOST_NODES = 1024  # of a mask
VISIBLE = "CUDA_VISIBLE_DEVICES"


def cpus_in(listed: str) -> set[int]:
    """The CPUs of a list as the kernel writes it: `0-3,8`."""
    ends = (part.partition("-") for part in listed.split(",") if part)
    return {cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1)}


def nodes_of(
    asked: int | str, processes: int, nodes: Mapping[int, str] | None = None, gpus: Sequence[Gpu] | None = None
) -> list[int]:
    """The node of each process of this host.

    Args:
        asked: the value of `hardware.numa`: a node, or `near`: that of the process's GPU.
        processes: how many there are, each with the GPU of its number.
        nodes, gpus: of this host; None: as it tells them.

    Raises:
        ConfigError: there is one node alone, or no such node, or it is not known which GPU is near to which.
    """
    nodes = cpus_of_nodes() if nodes is None else nodes
    if len(nodes) < 2:
        raise ConfigError(KEY, asked, "this machine has one node of memory, where everything is; null would work")
    if asked != NEAR:
        if asked not in nodes:
            raise ConfigError(KEY, asked, f"there is no such node; choose from {', '.join(map(str, nodes))}, or {NEAR}")
        return [int(asked)] * processes
    gpus = places_of_gpus() if gpus is None else gpus
    found = [gpus[number].node if number < len(gpus) else None for number in _visible(processes)]
    known = [node for node in found if node in nodes]
    if len(known) < processes:
        remedy = f"which node a GPU is near to is not known here; choose from {', '.join(map(str, nodes))}"
        raise ConfigError(KEY, NEAR, remedy)
    return [node for node in known if node is not None]


def cpus_of(node: int, allowed: Collection[int], nodes: Mapping[int, str] | None = None) -> list[int]:
    """Those of a node's CPUs that may be used.

    Raises:
        ConfigError: none of them may.
    """
    own = cpus_in((cpus_of_nodes() if nodes is None else nodes)[node]) & set(allowed)
    if not own:
        raise ConfigError(KEY, node, f"none of its CPUs may be used here, but {sorted(allowed)}")
    return sorted(own)


def free_bytes(asked: int | str, number: int, processes: int) -> int:
    """Memory that can be allocated by a process which is bound to a node: its part, where others are bound to it, too.

    Args:
        asked, processes: as `nodes_of` has them.
        number: of the process.

    Raises:
        ConfigError: as `nodes_of` does.
    """
    nodes = nodes_of(asked, processes)
    return free_bytes_of_node(nodes[number]) // nodes.count(nodes[number])


def bind_memory(node: int) -> None:
    """Take all memory that this thread, and those that it starts, write first from one node.

    Raises:
        ConfigError: the kernel does not allow it, as in some containers.
    """
    number = SET_MEMPOLICY.get(platform.machine())
    mask = (ctypes.c_ulong * (MOST_NODES // 64))()
    mask[node // 64] = 1 << node % 64
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None or libc.syscall(number, MPOL_BIND, mask, MOST_NODES):
        reason = os.strerror(ctypes.get_errno()) if number else f"unknown on {platform.machine()}"
        raise ConfigError(KEY, node, f"the kernel does not bind memory to it ({reason}); null would work")


def require(asked: int | str, processes: int, allowed: Collection[int]) -> None:
    """Refuse what `hardware.numa` cannot be here.

    Raises:
        ConfigError: as whoever binds a process would.
    """
    for node in sorted(set(nodes_of(asked, processes))):
        cpus_of(node, allowed)
        with ThreadPoolExecutor(1) as thread:  # which alone is bound
            thread.submit(bind_memory, node).result()


def _visible(processes: int) -> list[int]:
    """The numbers, among all, of the GPUs that the processes see."""
    listed = [text for text in os.environ.get(VISIBLE, "").split(",") if text]
    if not listed:
        return list(range(processes))
    if not all(map(str.isdecimal, listed)):
        raise ConfigError(KEY, NEAR, f"{VISIBLE} names GPUs otherwise than by numbers; name a node")
    return [int(text) for text in listed[:processes]]
