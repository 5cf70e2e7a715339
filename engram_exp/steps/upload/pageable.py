"""The original's way: `tensor.to(device)` from pageable memory into a fresh device buffer, one transfer a tensor."""

from __future__ import annotations

import torch

from engram_exp.machine.placement import Placement
from engram_exp.steps.upload.step import Upload


class PageableUpload(Upload):
    """The driver stages the bytes through a pinned buffer of its own."""

    pinned_source = False

    def __init__(self, placement: Placement) -> None:
        self.device = placement.device

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Copies of the tensors on the device, in memory of their own."""
        return tuple(tensor.to(self.device) for tensor in tensors)
