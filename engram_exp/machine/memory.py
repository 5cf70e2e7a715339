"""What a run needs, and what is free, before anything is allocated. All sizes in bytes."""

from __future__ import annotations

import gc
import resource
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from engram_exp.machine import cgroup
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.peer_memory import SymmetricMemory

RESET_PEAK = Path("/proc/self/clear_refs")  # 5: the peak of resident memory (proc(5))


def peak_bytes(device: torch.device) -> dict[str, int]:
    """The most memory that this process has had since it began, or since `forget_peaks`, by column: on the device, on
    the host, and of the latter what was pinned."""
    pinned_by_torch = torch.cuda.host_memory_stats()["allocated_bytes.peak"] if device.type == "cuda" else 0
    on_device = torch.accelerator.max_memory_allocated() + SymmetricMemory.kept_bytes() if device.type != "cpu" else 0
    return {
        "peak_device_bytes": on_device,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "pinned_bytes": pinned_by_torch + HostMemory.peak_pinned_bytes,
    }


def forget_peaks(device: torch.device) -> None:
    """Give back what is not used any more, and keep it out of the peaks of what follows."""
    gc.collect()
    HostMemory.peak_pinned_bytes = HostMemory.pinned_bytes
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
    if device.type == "cuda":
        _empty_host_cache()
        torch.cuda.reset_peak_host_memory_stats()
    with suppress(OSError):
        RESET_PEAK.write_text("5")


def _empty_host_cache() -> None:
    """Give back pinned memory that PyTorch keeps though nobody uses it, and counts as allocated."""
    empty = getattr(torch.accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)
    if empty is not None:
        empty()


def free_host_bytes() -> int:
    """Host memory that can be allocated: what the system has, or less where a control group allows less."""
    free = psutil.virtual_memory().available
    allowed = cgroup.free_bytes()
    return free if allowed is None else min(free, allowed)


def free_device_bytes(device: torch.device) -> int:
    """Device memory that can be allocated; host memory where the CPU stands in for the device."""
    if device.type == "cpu":
        return free_host_bytes()
    free, _ = torch.accelerator.get_memory_info(device)
    return int(free)
