"""Copies from pinned memory into kept device buffers, without waiting for them."""

from __future__ import annotations

import torch

from engram_exp.placement import poison


class PinnedUpload:
    """Tensors that fill one allocation between them (the fused keys and value) cross in one transfer.

    A source that is not pinned, such as the fresh output of the original's components, goes through a pinned staging
    buffer first.
    """

    pinned_source = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.staging: dict[int, torch.Tensor] = {}
        self.targets: dict[int, torch.Tensor] = {}

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The tensors on the device; overwritten by the next call."""
        storage = tensors[0].untyped_storage()
        if all(tensor.untyped_storage().data_ptr() == storage.data_ptr() for tensor in tensors) and (
            storage.nbytes() == sum(tensor.nbytes for tensor in tensors)
        ):
            whole = torch.empty(0, dtype=tensors[0].dtype).set_(storage)
            target = self._copy(0, whole)
            return tuple(target.as_strided(t.shape, t.stride(), t.storage_offset()) for t in tensors)
        return tuple(self._copy(slot, tensor) for slot, tensor in enumerate(tensors))

    def _copy(self, slot: int, source: torch.Tensor) -> torch.Tensor:
        if not source.is_pinned():
            source = self._kept(self.staging, slot, source, pinned=True).copy_(source)
        return self._kept(self.targets, slot, source, pinned=False).copy_(source, non_blocking=True)

    def _kept(self, buffers: dict[int, torch.Tensor], slot: int, like: torch.Tensor, *, pinned: bool) -> torch.Tensor:
        buffer = buffers.get(slot)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            device = torch.device("cpu") if pinned else self.device
            buffer = torch.empty(like.shape, dtype=like.dtype, device=device, pin_memory=pinned)
            poison(buffer)
            buffers[slot] = buffer
        return buffer
