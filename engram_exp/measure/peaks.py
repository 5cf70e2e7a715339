"""What this machine can do at best: measured once, kept in a file, used as the limit of every case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.environment import transparent_huge_pages
from engram_exp.machine.memory import forget_peaks
from engram_exp.machine.ranks import FIRST, Ranks
from engram_exp.measure import kept
from engram_exp.measure.limits import Limits
from engram_exp.measure.rates import all_ranks, peers, resources
from engram_exp.measure.rig import Rig, host_bytes

log = logging.getLogger(__name__)

VERSION, VERSION_OF_RANKS = 8, 2
THIS_MACHINE = "this machine"
OUTGROWN = 2  # times the memory that limits were measured on: they say too little of such tables
BUSY_SHARE = 0.1  # of the CPUs, taken by others: what is measured meanwhile may be less than the machine can do


def machine_limits(
    folder: Path, identity: dict[str, Any], device: torch.device, *, refresh: bool, announce: Callable[[str], None]
) -> Limits:
    """The limits of this machine: read from its file, or measured and written there.

    They are measured anew, and their file is replaced, where it is damaged or much more memory is free than when it was
    written. A file that cannot be written costs a warning.

    Args:
        folder: of the files.
        identity: what the limits depend on; they are measured anew where it differs.
        device: the accelerator, or the CPU that stands in for it.
        refresh: measure even if there is a file.
        announce: called with a line before measuring.
    """
    path, identity = _file(folder, identity, device)
    found = None if refresh else _kept(path, device, announce)
    if found is None:
        announce(f"measuring what this machine can do, once; it is kept in {path}")
        found = _measured(device)
        kept.write(path, THIS_MACHINE, {"machine": identity, **found})
    return Limits(found["peaks"], _in_words(found["memory"]))


def rank_limits(
    limits: Limits,
    folder: Path,
    identity: dict[str, Any],
    device: torch.device,
    *,
    ranks: Ranks,
    refresh: bool,
    announce: Callable[[str], None],
) -> Limits:
    """These limits, and what several ranks can send each other and do at once: read from a file of so many ranks, or
    measured by all of them together and written there by the first.

    Args:
        limits: of the machine.
        folder, identity, device, refresh, announce: as `machine_limits` has them.
        ranks: of the run.
    """
    of_hosts = [ranks.local_size] * ranks.hosts
    path, identity = _file(folder, {**identity, "ranks": of_hosts, "of_ranks": VERSION_OF_RANKS}, device)
    found = ranks.from_first(lambda: None if refresh else _kept(path, device, announce))
    if found is None:
        if ranks.rank == FIRST:
            announce(f"measuring what {ranks.size} ranks send each other and do together, once; it is kept in {path}")
        rig = Rig(device, ranks)
        found = {"memory": {"host_bytes": rig.host_bytes, "huge_page_share": None}, "peaks": {}}
        found["peaks"] = {**peers.measure(rig), **all_ranks.measure(rig)}
        del rig
        forget_peaks(device)  # of what measuring took
        if ranks.rank == FIRST:
            kept.write(path, THIS_MACHINE, {"machine": identity, **found})
    return Limits({**limits.peaks, **found["peaks"]}, limits.measured_on)


def _file(folder: Path, identity: dict[str, Any], device: torch.device) -> tuple[Path, dict[str, Any]]:
    """Where limits are kept, and all that they depend on."""
    identity = {"version": VERSION, "transparent_huge_pages": transparent_huge_pages(), **identity}
    return kept.file_of(folder, device.type, identity), identity


def _kept(path: Path, device: torch.device, announce: Callable[[str], None]) -> dict[str, Any] | None:
    """What a file says; None where it is not there or damaged, or of much less memory than is free now."""
    found = kept.read(path, THIS_MACHINE, check=lambda content: _in_words(content["memory"]))
    if found is None or host_bytes(device) < OUTGROWN * found["memory"]["host_bytes"]:
        return found
    announce(f"{path} is of {_in_words(found['memory'])}, and more is free now")
    return None


def _measured(device: torch.device) -> dict[str, Any]:
    """What a file says besides: `peaks`, the `memory` that they were measured on, and the `load` meanwhile."""
    meter, rig = LoadMeter(), Rig(device)
    peaks = measure_peaks(rig)
    load = meter.read()
    memory = {"host_bytes": rig.host_bytes, "huge_page_share": rig.memory.huge_page_share()}
    del rig
    forget_peaks(device)
    if load["others_share"] > BUSY_SHARE:
        log.warning(
            "others used %.0f %% of the CPUs while limits were measured, which may be too low now: measure them again "
            "with limits=refresh when the machine is idle",
            100 * load["others_share"],
        )
    return {"memory": memory, "load": load, "peaks": peaks}


def measure_peaks(rig: Rig) -> dict[str, dict[str, Any]]:
    """The best rates of this machine, of the fastest sample each: curves by name, from every file of `measure.rates`.

    Args:
        rig: of this machine.
    """
    peaks: dict[str, dict[str, Any]] = {}
    for resource in resources():
        peaks |= resource.measure(rig)
    return {name: curve for name, curve in peaks.items() if curve}


def _in_words(memory: Mapping[str, Any]) -> str:
    share = memory["huge_page_share"]
    pages = "" if share is None else f", {share:.0%} in huge pages"
    return f"up to {memory['host_bytes'] / 1e9:.1f} GB of host memory{pages}"
