"""What the machine of a run can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from engram_exp.machine.environment import machine
from engram_exp.measure.disk_limits import disk_peaks
from engram_exp.measure.limits import Limits
from engram_exp.measure.peaks import machine_limits, rank_limits
from engram_exp.run.plan import Plan, device_name
from engram_exp.steps.tables.on_disk import DiskTable


def known_limits(plan: Plan, on_disk: Sequence[DiskTable], announce: Callable[[str], None]) -> Limits | None:
    """What this machine can do, and its ranks between them, measured now if it has not been before.

    Args:
        plan: of the run.
        on_disk: its tables in files, whose disks count.
        announce: is told what is measured.

    Returns:
        None if nobody asked.
    """
    config, ranks = plan.config, plan.ranks
    if config.limits == "none":
        return None
    hardware = config.hardware
    identity = {
        **machine(),
        "device_name": device_name(plan.device),
        "threads": torch.get_num_threads(),
        "pin_threads": hardware.pin_threads,
        "affinity": list(hardware.affinity or []),
        **({} if hardware.numa is None else {"numa": hardware.numa}),
    }
    where: Any = Path(config.limits_dir), identity, plan.device
    how: Any = {"refresh": config.limits == "refresh", "announce": announce}
    found = ranks.from_first(lambda: machine_limits(*where, **how))
    if ranks.size > 1:
        return rank_limits(found, *where, ranks=ranks, **how)
    for table in on_disk:
        found = found.beside(disk_peaks(Path(config.limits_dir), table.files[0], machine(), **how))
    return found
