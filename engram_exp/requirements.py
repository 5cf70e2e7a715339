"""What a configuration needs of the machine, checked before anything is filled."""

from __future__ import annotations

import torch

from engram_exp.build import Builder
from engram_exp.errors import ConfigError, SkippedError
from engram_exp.measure.environment import cpu_name
from engram_exp.placement import triton_is_interpreted
from engram_exp.plan import DEVICE, HOST


def require_machine(builder: Builder) -> None:
    """Skip what this machine cannot do, and refuse the data sheet of another.

    Raises:
        SkippedError: the strategy needs an accelerator that is not there, or memory that a kernel can read.
        ConfigError: the configured data sheet is not that of the device.
    """
    _require_accelerator(builder)
    _require_readable_table(builder)
    sheet = builder.config.hardware.data_sheet
    name = device_name(builder)
    if sheet and f" {sheet.gpu}" not in f" {name}":
        remedy = f"the device is {name}; use its own option or hardware=auto"
        raise ConfigError("hardware.data_sheet.gpu", sheet.gpu, remedy)


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
