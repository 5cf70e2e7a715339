"""What this machine can do at best: measured once, kept in a file, used as the limit of every case."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from numba import njit, prange

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.files import write_text
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.memory import forget_peaks, free_device_bytes, free_host_bytes
from engram_exp.machine.placement import Placement, has_triton
from engram_exp.measure.clock import Clock
from engram_exp.measure.limits import Limits
from engram_exp.steps.lookup.gather import ROWS_AHEAD, prefetch_row
from engram_exp.vocabulary import HOST

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
MIB = 2**20
TRANSFER_BYTES = [2**power for power in range(10, 31, 2)]
ROW_BYTES = (64, 128, 256, 264, 512, 1024)
ROWS = 2**20  # of a gather ...
GATHERS = 16  # ... and so many of them before rows come again: more than a cache holds
MEMORY_BYTES = 2**31  # of the memory that rows are read from, unless less is free
STREAM_BYTES = 2**29  # of a copy
GEMM_SIZES = (  # m, k, n: squares, and the projections of `demo` and DeepSeek-V4.1-Flash
    (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (8192, 1024, 5120), (65536, 1024, 5120), (8192, 6144, 25600), (32768, 6144, 25600),
)  # fmt: skip
LINK_LAUNCH: dict[str, Any] = {"rows_per_program": 16, "warps": 4, "programs": 528}  # as lookup=triton_link
SECONDS = 0.25  # for each measurement
SAMPLES = 4  # of each, at least
VERSION = 5


def machine_limits(
    folder: Path, identity: dict[str, Any], device: torch.device, *, refresh: bool, announce: Callable[[str], None]
) -> Limits:
    """The limits of this machine: read from its file, or measured and written there.

    Args:
        folder: of the files.
        identity: what the limits depend on; they are measured anew where it differs.
        device: the accelerator, or the CPU that stands in for it.
        refresh: measure even if there is a file.
        announce: called with a line before measuring.
    """
    identity = {"version": VERSION, **identity}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{device.type}-{digest}.json"
    if path.exists() and not refresh:
        try:
            return Limits(json.loads(path.read_text(encoding="utf-8"))["peaks"])
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s cannot be read and is measured anew", path)
    announce(f"measuring what this machine can do, once; it is kept in {path}")
    peaks = measure_peaks(device)
    forget_peaks(device)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"machine": identity, "peaks": peaks}, indent=1))
    return Limits(peaks)


def measure_peaks(device: torch.device) -> dict[str, dict[str, float]]:
    """The best rates of this machine, of the fastest sample each.

    Returns:
        link_to_device_ms, link_to_host_ms: bytes -> ms of a copy from or to pinned memory.
        link_rows_per_s_as_asked, link_rows_per_s_sorted: bytes of a row -> rows that a kernel reads through the link.
            To read, not a bound: more when the table is smaller, or when more rows are sorted at a time.
        host_rows_per_s: bytes of a row -> random rows that all CPU threads read, without writing them.
        host_gb_per_s, device_gb_per_s: copy (read and written) and read.
        host_tflop_per_s, device_tflop_per_s: dtype -> matrix product. What a machine lacks is left out.
    """
    size = min(MEMORY_BYTES, free_host_bytes() // 4)
    memory = HostMemory(size // (4 * MIB) * (4 * MIB), huge_pages=True)
    memory.bytes.random_()
    clock = Clock(CPU)
    peaks = {
        "host_gb_per_s": _host_gb_per_s(memory, clock),
        "host_rows_per_s": _host_rows_per_s(memory, clock),
        "host_tflop_per_s": _tflop_per_s(CPU, clock),
    }
    if device.type == "cpu":
        return peaks
    clock = Clock(device)
    peaks["device_gb_per_s"] = {"copy": _copy_gb_per_s(device, clock), "read": _read_gb_per_s(device, clock)}
    peaks["device_tflop_per_s"] = _tflop_per_s(device, clock)
    if device.type == "cuda":
        memory.pin()
        peaks |= _link_ms(memory, device, clock)
        if has_triton():
            peaks |= _link_rows_per_s(memory, device, clock)
    return peaks


def _best_s(call: Callable[[], object], clock: Clock) -> float:
    """The fastest of several calls, in seconds."""
    clock.time(call, uses_device=True)
    best, taken, deadline = float("inf"), 0, time.perf_counter() + SECONDS
    while taken < SAMPLES or time.perf_counter() < deadline:
        best = min(best, clock.time(call, uses_device=True).wall_ms / 1e3)
        taken += 1
        if best > SECONDS:
            break
    return best


def _host_gb_per_s(memory: HostMemory, clock: Clock) -> dict[str, float]:
    words = memory.bytes.view(torch.int64).numpy()
    return {
        "copy": _copy_gb_per_s(CPU, clock),
        "read": memory.bytes.nbytes / _best_s(partial(_read, words), clock) / 1e9,
    }


def _copy_gb_per_s(device: torch.device, clock: Clock) -> float:
    source = torch.ones(STREAM_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * STREAM_BYTES / _best_s(partial(target.copy_, source), clock) / 1e9


def _read_gb_per_s(device: torch.device, clock: Clock) -> float:
    source = torch.ones(STREAM_BYTES // 4, device=device)
    total = torch.zeros((), device=device)
    return STREAM_BYTES / _best_s(partial(torch.sum, source, dim=0, out=total), clock) / 1e9


def _host_rows_per_s(memory: HostMemory, clock: Clock) -> dict[str, float]:
    rates = {}
    for row_bytes in ROW_BYTES:
        table = _rows_of(memory, row_bytes).view(torch.int64).numpy()
        row_ids = cycle(torch.randint(len(table), (GATHERS, ROWS), dtype=torch.int32).numpy())
        rates[str(row_bytes)] = ROWS / _best_s(partial(_read_next, table, row_ids), clock)
    return rates


def _tflop_per_s(device: torch.device, clock: Clock) -> dict[str, float]:
    """The best over several shapes; those that would take long because smaller ones are slow are left out.

    One factor has 4 significant bits, as rows of fp8 have: a GPU at its power limit multiplies few bits faster.
    """
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        best = 0.0
        for m, k, n in GEMM_SIZES:
            flops, needed = 2 * m * k * n, (m * k + k * n + m * n) * dtype.itemsize
            if (best and flops / best > 2 * SECONDS * 1e12) or 2 * needed > free_device_bytes(device):
                continue
            a = torch.randint(-15, 16, (m, k), dtype=torch.int8, device=device).to(dtype).div_(8)
            b = torch.randn(n, k, device=device).mul_(k**-0.5).to(dtype)
            out = torch.zeros(m, n, dtype=dtype, device=device)
            best = max(best, flops / _best_s(partial(torch.mm, a, b.t(), out=out), clock) / 1e12)
        rates[str(dtype).removeprefix("torch.")] = best
    return rates


def _link_ms(memory: HostMemory, device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    on_device = torch.empty(TRANSFER_BYTES[-1], dtype=torch.uint8, device=device)
    to_device: dict[str, float] = {}
    to_host: dict[str, float] = {}
    for size in TRANSFER_BYTES:
        if size <= memory.bytes.nbytes:
            here, there = memory.bytes[:size], on_device[:size]
            for known, source, target in ((to_device, here, there), (to_host, there, here)):
                known[str(size)] = 1e3 * _best_s(partial(target.copy_, source, non_blocking=True), clock)
    return {"link_to_device_ms": to_device, "link_to_host_ms": to_host}


def _link_rows_per_s(memory: HostMemory, device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    from engram_exp.steps.lookup.triton import TritonLookup  # Triton comes with PyTorch's CUDA builds only

    rates: dict[str, dict[str, float]] = {"as_asked": {}, "sorted": {}}
    for row_bytes in ROW_BYTES:
        part = _rows_of(memory, row_bytes)
        table: Any = SimpleNamespace(place=HOST, parts=(part,), row_format=RowFormat(row_bytes, torch.uint8))
        row_ids = cycle(torch.randint(len(part), (GATHERS, 1, ROWS, 1), dtype=torch.int32, device=device))
        for order, known in rates.items():
            lookup = TritonLookup(table, ROWS, 1, Placement(device), order, sort_from_rows=0, **LINK_LAUNCH)
            known[str(row_bytes)] = ROWS / _best_s(partial(_look_up_next, lookup, row_ids), clock)
    return {f"link_rows_per_s_{order}": known for order, known in rates.items()}


def _read_next(table: Any, row_ids: Iterator[Any]) -> None:
    _read_rows(table, next(row_ids))


def _look_up_next(lookup: Callable[[torch.Tensor], torch.Tensor], row_ids: Iterator[torch.Tensor]) -> None:
    lookup(next(row_ids))


def _rows_of(memory: HostMemory, row_bytes: int) -> torch.Tensor:
    rows = memory.bytes.nbytes // row_bytes
    return memory.bytes[: rows * row_bytes].view(rows, row_bytes)


@njit(parallel=True, cache=True)
def _read(words):  # type: ignore[no-untyped-def]
    total = 0
    for index in prange(len(words)):
        total += words[index]
    return total


@njit(parallel=True, cache=True, error_model="numpy")
def _read_rows(table, row_ids):  # type: ignore[no-untyped-def]
    total = 0
    words = table.shape[1]
    for block in prange((len(row_ids) + 511) // 512):
        for index in range(block * 512, min(len(row_ids), block * 512 + 512)):
            if index + ROWS_AHEAD < len(row_ids):
                prefetch_row(table, row_ids[index + ROWS_AHEAD])
            row = row_ids[index]
            for word in range(words):
                total += table[row, word]
    return total
