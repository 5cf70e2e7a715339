"""What a machine can do at best, and the time that each step therefore takes at least.

A limit is a bound, not a model: each resource is taken at the best rate that was measured for it alone, and the whole
of a strategy at its busiest resource, as if all others could work at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from engram_exp.layer.geometry import EngramGeometry
from engram_exp.strategy.plan import PlannedStage
from engram_exp.vocabulary import HOST, LINK

Peaks = Mapping[str, Mapping[str, float]]


class Limit(NamedTuple):
    """The shortest time that a resource allows.

    ms: the time.
    by: the rate that decides: link, host or device memory, host rows, host or device GEMM.
    """

    ms: float
    by: str


@dataclass(frozen=True)
class Workload:
    """What a run asks of its stages.

    Args:
        geometry: of the layer.
        tokens: T.
        sequences: B.
        dtype: the compute dtype.
        table: host or device.
        unique_rows: distinct rows among those asked for, as a share: the rest may come from a cache.
        staged: in chunks, whose row ids and rows caches may hold until the next stage, or the link, has read them.
    """

    geometry: EngramGeometry
    tokens: int
    sequences: int
    dtype: str
    table: str
    unique_rows: float
    staged: bool = False


class Limits:
    """Limits of one machine.

    Args:
        peaks: as `measure.peaks.measure_peaks` returns them.
    """

    def __init__(self, peaks: Peaks) -> None:
        self.peaks = peaks

    def of_stage(self, stage: PlannedStage, work: Workload) -> Limit | None:
        """The limit of one stage; None where nothing that bounds it could be measured."""
        geometry, name = work.geometry, stage.name
        moved = geometry.bytes_moved(name, work.tokens, work.sequences)
        bounds = []
        if stage.place == LINK:
            if "link_to_device_ms" in self.peaks:
                bounds.append(Limit(_time_at(self.peaks["link_to_device_ms"], moved), LINK))
            return bounds[0] if bounds else None
        place = self._measured(stage.place)
        if work.staged and name in ("hashing", "lookup"):
            moved -= geometry.row_ids_bytes(work.tokens)
        if name == "lookup":
            asked, stored = work.tokens * geometry.columns, geometry.stored_bytes(work.tokens)
            moved -= round((1 - work.unique_rows) * stored) + (stored if work.staged else 0)
            if place == HOST:
                rows_per_s = _rate_at(self.peaks["host_rows_per_s"], geometry.row_bytes)
                bounds.append(Limit(work.unique_rows * asked / rows_per_s * 1e3, "host rows"))
            elif work.table == HOST:
                moved = stored
                if "link_to_device_ms" in self.peaks:
                    bounds.append(Limit(work.unique_rows * stored / self.link_bytes_per_s * 1e3, LINK))
        memory_gb_per_s = max(self.peaks[f"{place}_gb_per_s"].values())
        bounds.append(Limit(moved / memory_gb_per_s / 1e6, f"{place} memory"))
        tflop_per_s = self.peaks[f"{place}_tflop_per_s"].get(work.dtype)
        flops = geometry.flops(name, work.tokens)
        if flops and tflop_per_s:
            bounds.append(Limit(flops / tflop_per_s / 1e9, f"{place} GEMM"))
        return max(bounds)

    def of(self, work, load):  # type: ignore[no-untyped-def]
        return None

    def _measured(self, place: str) -> str:
        """The place whose rates count: without an accelerator the host stands in for the device."""
        return place if f"{place}_gb_per_s" in self.peaks else HOST

    def of_all(self, stages: Iterable[PlannedStage], work: Workload) -> Limit:
        """The limit of a strategy: its busiest resource, named by what takes most of its time."""
        busy: dict[str, list[Limit]] = {}
        for stage in stages:
            limit = self.of_stage(stage, work)
            if limit:
                busy.setdefault(LINK if limit.by == LINK else self._measured(stage.place), []).append(limit)
        busiest = max(busy.values(), key=lambda limits: sum(limit.ms for limit in limits))
        return Limit(sum(limit.ms for limit in busiest), max(busiest).by)

    def summary(self, dtype: str) -> str:
        """The rates that decide most limits, for a human reader."""
        rates = []
        for place in ("host", "device"):
            if f"{place}_gb_per_s" in self.peaks:
                rates.append(f"{place} memory {max(self.peaks[f'{place}_gb_per_s'].values()):.0f} GB/s")
                rates.append(f"{place} {dtype} {self.peaks[f'{place}_tflop_per_s'].get(dtype, 0):.3g} TFLOP/s")
        if "link_to_device_ms" in self.peaks:
            rates.append(f"link {self.link_bytes_per_s / 1e9:.1f} GB/s")
        return ", ".join(rates)

    @property
    def link_bytes_per_s(self) -> float:
        """The best rate of a transfer to the device."""
        return max(int(size) / ms * 1e3 for size, ms in self.peaks["link_to_device_ms"].items())


def _time_at(curve: Mapping[str, float], size_bytes: int) -> float:
    """A measured time at a size. A transfer has a latency and a rate: straight lines between the measured sizes, the
    shortest time below them, in proportion above."""
    points = _points(curve)
    (first, shortest), (last, longest) = points[0], points[-1]
    if size_bytes <= first:
        return shortest
    for (left, at_left), (right, at_right) in pairwise(points):
        if size_bytes <= right:
            return at_left + (at_right - at_left) * (size_bytes - left) / (right - left)
    return longest * size_bytes / last


def _rate_at(curve: Mapping[str, float], row_bytes: int) -> float:
    """A measured rate of rows at a row size: a power law between the measured sizes, the rate of the smallest below
    them, and as many bytes a second as at the largest above."""
    points = _points(curve)
    (first, highest), (last, lowest) = points[0], points[-1]
    if row_bytes <= first:
        return highest
    for (left, at_left), (right, at_right) in pairwise(points):
        if row_bytes <= right:
            return at_left * (at_right / at_left) ** (math.log(row_bytes / left) / math.log(right / left))
    return lowest * last / row_bytes


def _points(curve: Mapping[str, float]) -> list[tuple[int, float]]:
    return sorted((int(key), value) for key, value in curve.items())
