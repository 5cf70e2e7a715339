"""What every upload is."""

from __future__ import annotations

from typing import ClassVar

import torch

from engram_exp.stage import Load, Reference, Stage, Tensors


class Upload(Stage):
    """Tensors on the host -> the same on the device.

    Built as `Upload(placement)` and called with a tuple of tensors.
    """

    built_from = ("placement",)
    pinned_source: ClassVar[bool] = True  # it wants what it copies in pinned memory
    keeps_sources: ClassVar[bool] = False  # it holds on to what it copied, which must come again
    fresh: ClassVar[bool] = False  # it hands out other memory on each call

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """What crosses the link."""
        return load.bytes_of(load.stage.makes)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """The link."""
        return {"link": cls.bytes_moved(load)}

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """What it was given."""
        return inputs, 0.0
