"""What this machine can do at best: measured once, kept in a file, used as the limit of every case."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engram_exp.machine.disturbance import LoadMeter
from engram_exp.machine.files import write_text
from engram_exp.machine.memory import forget_peaks
from engram_exp.measure.limits import Limits
from engram_exp.measure.rates import Peaks, resources
from engram_exp.measure.rig import Rig

log = logging.getLogger(__name__)

VERSION = 8
BUSY_SHARE = 0.1  # of the CPUs, taken by others: what is measured meanwhile may be less than the machine can do


def machine_limits(
    folder: Path, identity: dict[str, Any], device: torch.device, *, refresh: bool, announce: Callable[[str], None]
) -> Limits:
    """The limits of this machine: read from its file, or measured and written there.

    A file that is damaged is measured anew and replaced; one that cannot be written costs a warning.

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
            return Limits(_read(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%r): what this machine can do is measured anew", path, error)
    announce(f"measuring what this machine can do, once; it is kept in {path}")
    meter = LoadMeter()
    peaks = measure_peaks(device)
    load = meter.read()
    forget_peaks(device)
    if load["others_share"] > BUSY_SHARE:
        log.warning(
            "others used %.0f %% of the CPUs while limits were measured, which may be too low now: measure them again "
            "with limits=refresh when the machine is idle",
            100 * load["others_share"],
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"machine": identity, "load": load, "peaks": peaks}, indent=1))
    except OSError as error:
        log.warning(
            "what this machine can do is not kept for the next run, which measures it again: %s (limits_dir=%s)",
            error,
            folder,
        )
    return Limits(peaks)


def measure_peaks(device: torch.device) -> dict[str, dict[str, Any]]:
    """The best rates of this machine, of the fastest sample each: curves by name, from every file of `measure.rates`.

    Args:
        device: the accelerator, or the CPU that stands in for it.
    """
    rig = Rig(device)
    peaks: dict[str, dict[str, Any]] = {}
    for resource in resources():
        peaks |= resource.measure(rig)
    return {name: curve for name, curve in peaks.items() if curve}


def _read(path: Path) -> Peaks:
    """The curves of a file.

    Raises:
        OSError, ValueError, KeyError, TypeError: they are not there, or not all of their values are rates or times.
    """
    peaks: Peaks = json.loads(path.read_text(encoding="utf-8"))["peaks"]
    if not isinstance(peaks, dict):
        raise TypeError(f"peaks is {peaks!r}")
    _check("peaks", peaks)
    return peaks


def _check(name: str, value: object) -> None:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _check(f"{name}, {key}", inner)
    elif not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}")
