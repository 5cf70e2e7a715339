"""Where a component runs, and the buffers that it keeps there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engram_exp.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """A device, and whether host buffers on it are pinned.

    Args:
        device: where the component runs and leaves its output.
        pinned: host buffers are page-locked, so that an accelerator can copy from them without staging.
    """

    device: torch.device
    pinned: bool = False

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A kept buffer. It is poisoned: every page is written, and whatever is not computed shows."""
        buffer = torch.empty(shape, dtype=dtype, device=self.device, pin_memory=self.pinned)
        poison(buffer)
        return buffer

    def require(self, device_type: str, choice: str) -> None:
        """Refuse a component that cannot run here.

        Raises:
            ConfigError: the device is of another type than the component `choice` (`group=option`) needs.
        """
        if self.device.type != device_type:
            group, _, option = choice.partition("=")
            raise ConfigError(group, option, f"runs on {device_type}, but this strategy places it on {self.device}")


def poison(tensor: torch.Tensor) -> None:
    """Overwrite a tensor with what no correct step returns: NaN, or the row id 0, which is safe to look up and yet
    wrong in every column but the first."""
    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
