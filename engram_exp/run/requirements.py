"""What a configuration needs of the machine, checked before anything is filled."""

from __future__ import annotations

import psutil
import torch

from engram_exp.config.checks import check_cpus
from engram_exp.errors import ConfigError, SkippedError
from engram_exp.machine.data_sheets import DataSheet, data_sheet_of, is_of
from engram_exp.machine.environment import cpu_name
from engram_exp.machine.placement import triton_is_interpreted
from engram_exp.run.parts import Builder
from engram_exp.vocabulary import DEVICE, HOST


def require_machine(builder: Builder) -> None:
    """Skip what this machine cannot do, and refuse the data sheet of another.

    Raises:
        SkippedError: the strategy needs an accelerator that is not there, or memory that a kernel can read.
        ConfigError: CPUs that are not there, more threads than CPUs, or the data sheet of another device.
    """
    check_cpus(builder.config.hardware)
    _require_accelerator(builder)
    _require_readable_table(builder)
    sheet = builder.config.hardware.data_sheet
    if sheet:
        require_data_sheet(sheet.gpu, sheet.memory_gb, device_name(builder), total_device_bytes(builder.device))


def require_data_sheet(gpu: str, memory_gb: float, name: str, memory_bytes: int) -> None:
    """Refuse the data sheet of another part, or of a variant with other memory, link or power.

    Args:
        gpu, memory_gb: of the sheet.
        name, memory_bytes: of the device.

    Raises:
        ConfigError: naming the device.
    """
    if not is_of(gpu, memory_gb, name, memory_bytes):
        remedy = f"the device is {name} with {memory_bytes / 1e9:.0f} GB; use its own option or hardware=auto"
        raise ConfigError("hardware.data_sheet.gpu", gpu, remedy)


def data_sheet(builder: Builder) -> DataSheet | None:
    """What the vendor promises of the device: as configured, else looked up by the device's name."""
    configured: DataSheet | None = builder.config.hardware.data_sheet
    return configured or data_sheet_of(device_name(builder), total_device_bytes(builder.device))


def total_device_bytes(device: torch.device) -> int:
    """Memory of the accelerator, or of the host where the CPU stands in for it."""
    return psutil.virtual_memory().total if device.type == "cpu" else int(torch.accelerator.get_memory_info(device)[1])


def device_name(builder: Builder) -> str:
    """Of the accelerator, or of the CPU that stands in for it."""
    return torch.cuda.get_device_name() if builder.device.type == "cuda" else cpu_name()


def _require_accelerator(builder: Builder) -> None:
    for step in ("hashing", "lookup"):
        if builder.device.type == "cpu" and builder.place_of(step) == DEVICE and not triton_is_interpreted():
            raise SkippedError(f"no accelerator: this strategy runs {step} on one")


def _require_readable_table(builder: Builder) -> None:
    strategy, table = builder.config.strategy, builder.config.table
    through_link = strategy.table == HOST and strategy.lookup == DEVICE and builder.device.type == "cuda"
    if through_link and not table.get("pinned", False):
        raise SkippedError("a kernel reads host memory only where it is pinned: table=pinned or table=huge")
