"""Copies from pinned memory into kept device buffers, without waiting for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from engram_exp.machine.placement import Placement
from engram_exp.steps.upload.step import Upload

Tensors = tuple[torch.Tensor, ...]
MOST_ROUTES = 8192  # that are remembered, more than a run has batches; each keeps its source


class Route(NamedTuple):
    """What is copied where, and what the upload then returns."""

    sources: Tensors
    targets: Tensors
    results: Tensors


class PinnedUpload(Upload):
    """Tensors that fill a stretch of memory between them (the fused keys and value, ids and their history) cross in one
    transfer.

    A source that is not pinned, such as the fresh output of the original's components, goes through a pinned staging
    buffer first.
    """

    keeps_sources = True

    def __init__(self, placement: Placement) -> None:
        self.on_device = placement
        self.on_host = Placement(torch.device("cpu"), pinned=True)
        self.staging: dict[int, torch.Tensor] = {}
        self.targets: dict[int, torch.Tensor] = {}
        self.routes: dict[tuple[Any, ...], Route] = {}

    def __call__(self, tensors: Tensors) -> Tensors:
        """The tensors on the device; overwritten by the next call."""
        identity = tuple((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
        route = self.routes.get(identity)
        if route is None:
            route = self._route(tensors)
            if all(source.is_pinned() for source in route.sources):
                if len(self.routes) == MOST_ROUTES:
                    self.routes.clear()
                self.routes[identity] = route  # kept buffers come again; working this out costs as much as a copy
            else:
                route = route._replace(sources=tuple(self._staged(n, source) for n, source in enumerate(route.sources)))
        for source, target in zip(route.sources, route.targets, strict=True):
            target.copy_(source, non_blocking=True)
        return route.results

    def _route(self, tensors: Tensors) -> Route:
        first = min(tensor.storage_offset() for tensor in tensors)
        end = max(_end(tensor) for tensor in tensors)
        storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        if len(storages) > 1 or sum(tensor.numel() for tensor in tensors) != end - first:
            targets = tuple(_kept(self.targets, n, tensor, self.on_device) for n, tensor in enumerate(tensors))
            return Route(tensors, targets, targets)
        whole = tensors[0].as_strided((end - first,), (1,), first)
        target = _kept(self.targets, 0, whole, self.on_device)
        shift = target.storage_offset() - first
        results = tuple(target.as_strided(t.shape, t.stride(), t.storage_offset() + shift) for t in tensors)
        return Route((whole,), (target,), results)

    def _staged(self, number: int, source: torch.Tensor) -> torch.Tensor:
        if source.is_pinned():
            return source
        return _kept(self.staging, number, source, self.on_host).copy_(source)


def _kept(buffers: dict[int, torch.Tensor], slot: int, like: torch.Tensor, placement: Placement) -> torch.Tensor:
    buffer = buffers.get(slot)
    if buffer is None or buffer.numel() < like.numel() or buffer.dtype != like.dtype:
        buffer = buffers[slot] = placement.empty(like.numel(), dtype=like.dtype)
    return buffer[: like.numel()].view(like.shape)


def _end(tensor: torch.Tensor) -> int:
    """Behind the tensor's last element, in elements of its storage."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + 1 + sum(steps))
