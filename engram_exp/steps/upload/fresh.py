"""From pinned memory into fresh device buffers, without waiting: each tensor by itself."""

from __future__ import annotations

import torch

from engram_exp.machine.placement import Placement
from engram_exp.steps.upload.step import Upload


class FreshUpload(Upload):
    """`tensor.to(device, non_blocking=True)`, one transfer a tensor; nothing is kept of what was copied.

    What PyTorch's allocator pinned, it hands out again only when the copy has read it: a source may be fresh, too. A
    source that is not pinned keeps the host waiting.
    """

    fresh = True

    def __init__(self, placement: Placement) -> None:
        self.device = placement.device

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Copies of the tensors on the device, in memory of their own."""
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
