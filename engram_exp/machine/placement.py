"""Where a component runs, and the buffers that it keeps there."""

from __future__ import annotations

import logging
import math
import os
import threading
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.host_memory import HostMemory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """A device, and what buffers on it are like.

    Args:
        device: where the component runs and leaves its output.
        pinned: host buffers are page-locked, so that an accelerator can copy from them without staging.
        buffer: what `empty` hands out instead of new memory: a chunk's place in a larger whole.
    """

    device: torch.device
    pinned: bool = False
    buffer: torch.Tensor | None = None

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A kept buffer. New memory is poisoned: every page is written, and whatever is not computed shows."""
        if self.buffer is not None:
            return self.buffer.view(-1)[: math.prod(shape)].view(shape)
        if self.pinned and torch.cuda.is_available():
            memory = HostMemory(math.prod(shape) * dtype.itemsize, huge_pages=True)
            buffer = memory.bytes[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            poison(buffer)
            memory.pin()
            return buffer
        buffer = torch.empty(shape, dtype=dtype, device=self.device, pin_memory=self.pinned)
        poison(buffer)
        return buffer

    def require(self, device_type: str, group: str) -> None:
        """Refuse a component that cannot run here.

        Raises:
            ConfigError: the device is of another type than this component of a group needs.
        """
        if self.device.type != device_type:
            places = f"runs on {device_type}, but this strategy places it on {self.device}"
            raise ConfigError(group, None, f"{places}; choose another {group} or strategy")

    def require_triton(self, group: str) -> None:
        """Refuse a Triton kernel without a GPU, unless it is interpreted.

        Raises:
            ConfigError: as `require`.
        """
        if not triton_is_interpreted():
            self.require("cuda", group)


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 where the CPU stands in for it."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def cache_bytes(device: torch.device) -> int:
    """The second-level cache of a GPU, which keeps rows that were read through the link, too; 0 where there is none."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


@cache
def has_triton() -> bool:
    """Whether Triton is installed, as it is with PyTorch's CUDA builds; a warning tells if it is not."""
    found = find_spec("triton") is not None
    if not found:
        log.warning("Triton is not installed: what it would do in one kernel takes PyTorch several")
    return found


def triton_is_interpreted() -> bool:
    """Whether Triton's kernels run on the CPU, step by step: what tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def poison(tensor: torch.Tensor) -> None:
    """Overwrite a tensor with what no correct step returns."""
    tensor.fill_(poison_of(tensor.dtype))


def poison_of(dtype: torch.dtype) -> float:
    """NaN, or the row id 0, which is safe to look up and yet wrong in every column but the first; for stored fp8 rows
    255, NaN as a value and as a scale."""
    return math.nan if dtype.is_floating_point else 255 if dtype == torch.uint8 else 0


@cache
def kept_stream(device_type: str, of: str) -> torch.Stream:
    """A stream of the current device of a type that one use has for itself as long as the process lives: PyTorch hands
    out the same 32 in turn, so that two which many runs ask for anew may be one.

    Args:
        device_type: such as cuda.
        of: the use.
    """
    return torch.Stream(device=device_type)


def wake(device: torch.device) -> None:
    """Let the driver set the device up while all else is imported."""
    if device.type != "cpu":
        own = torch.device(device.type, torch.accelerator.current_device_index())  # another thread has another one
        threading.Thread(target=torch.empty, args=(1,), kwargs={"device": own}, daemon=True).start()
