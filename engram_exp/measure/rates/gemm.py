"""Matrix products of host and device, in floating-point operations: the best of several shapes, of each dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from engram_exp.machine.memory import free_device_bytes
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import SECONDS, Rig
from engram_exp.vocabulary import DEVICE, HOST

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = (  # m, k, n: squares, and the projections of `demo` and DeepSeek-V4.1-Flash
    (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (8192, 1024, 5120), (65536, 1024, 5120), (8192, 6144, 25600), (32768, 6144, 25600),
)  # fmt: skip


def measure(rig: Rig) -> dict[str, dict[str, float]]:
    """`host_tflop_per_s`, `device_tflop_per_s`: dtype -> TFLOP/s."""
    curves = {}
    for place in rig.devices:
        rates = {str(dtype).removeprefix("torch."): _tflop_per_s(rig, place, dtype) for dtype in DTYPES}
        curves[f"{place}_tflop_per_s"] = {dtype: rate for dtype, rate in rates.items() if rate}
    return curves


def _tflop_per_s(rig: Rig, place: str, dtype: torch.dtype) -> float:
    """The best over the shapes; those that would take long because smaller ones are slow are left out.

    One factor has 4 significant bits, as rows of fp8 have: a GPU at its power limit multiplies few bits faster.
    """
    device, best = rig.devices[place], 0.0
    for m, k, n in SIZES:
        flops, needed = 2 * m * k * n, (m * k + k * n + m * n) * dtype.itemsize
        if (best and flops / best > 2 * SECONDS * 1e12) or 2 * needed > free_device_bytes(device):
            continue
        a = torch.randint(-15, 16, (m, k), dtype=torch.int8, device=device).to(dtype).div_(8)
        b = torch.randn(n, k, device=device).mul_(k**-0.5).to(dtype)
        out = torch.zeros(m, n, dtype=dtype, device=device)
        best = max(best, flops / rig.best_s(place, partial(torch.mm, a, b.t(), out=out)) / 1e12)
    return best


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """One bound for each side."""
    for place in (HOST, DEVICE):
        flops, tflop_per_s = work.get(f"{place} GEMM", 0), peaks.get(f"{place}_tflop_per_s", {}).get(load.dtype)
        if flops and tflop_per_s:
            yield Limit(flops / tflop_per_s / 1e9, f"{place} GEMM")


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The rate of each side in the run's dtype."""
    for place in (HOST, DEVICE):
        if tflop_per_s := peaks.get(f"{place}_tflop_per_s", {}).get(dtype):
            yield f"{place} {dtype} {tflop_per_s:.3g} TFLOP/s"
