"""Which of the row ids of a call are distinct, and which of these each of them is."""

from __future__ import annotations

import torch

from engram_exp.machine.placement import Placement

INDEX_BYTES = 8


class Numbering:
    """Sorts row ids and numbers the distinct ones, in shapes that do not depend on how many there are, so that a CUDA
    graph can replay it.

    Args:
        max_row_ids: of a call, at most.
        device: of the row ids.

    last: the number [1] of the last distinct one, int64.
    """

    def __init__(self, max_row_ids: int, device: torch.device) -> None:
        placement = Placement(device)
        self.indices = placement.empty(3, max_row_ids, dtype=torch.int64)
        self.changes = placement.empty(max_row_ids, dtype=torch.bool)
        self.row_ids: torch.Tensor | None = None  # in order, and the distinct ones

    @staticmethod
    def bytes(row_ids: int, row_id_bytes: int) -> int:
        """Bytes that it keeps, beside what a radix sort takes."""
        return row_ids * (3 * INDEX_BYTES + 1 + 2 * row_id_bytes)

    def __call__(self, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct ones of row ids [N], ascending, and behind them the first again and again, [N]; and which of
        them each of the row ids is, int64 [N]. Overwritten by the next call."""
        count = len(row_ids)
        if self.row_ids is None:
            self.row_ids = row_ids.new_empty(2, self.indices.shape[1])
        ordered, distinct = self.row_ids[:, :count]
        places, numbers, numbers_in_place = self.indices[:, :count]
        changes = self.changes[:count]
        torch.sort(row_ids, out=(ordered, places))
        changes[:1] = False
        torch.ne(ordered[1:], ordered[:-1], out=changes[1:])
        torch.cumsum(changes, dim=0, out=numbers)
        distinct.copy_(ordered[:1].expand(count)).scatter_(0, numbers, ordered)
        numbers_in_place.scatter_(0, places, numbers)
        self.last = numbers[-1:]
        return distinct, numbers_in_place


class ReadBack:
    """Numbers row ids on the device, and hands the distinct ones to the host, which waits for them. All row ids that
    there may be are copied, so that it waits once: how many of them are distinct comes with them.

    Args:
        max_row_ids: of a call, at most.
        row_id_dtype: of the row ids.
        device: where they are.
    """

    def __init__(self, max_row_ids: int, row_id_dtype: torch.dtype, device: torch.device) -> None:
        self.has_link = device.type != "cpu"
        on_host = Placement(torch.device("cpu"), pinned=self.has_link)
        self.numbering = Numbering(max_row_ids, device)
        self.row_ids = on_host.empty(max_row_ids, dtype=row_id_dtype)
        self.last = on_host.empty(1, dtype=torch.int64)

    def __call__(self, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct ones of row ids [N], ascending, on the host; and which of them each of the row ids is, int64 [N]
        on the device. Overwritten by the next call. What was launched on the stream before it has ended."""
        distinct, numbers = self.numbering(row_ids)
        read_back = self.row_ids[: len(row_ids)].copy_(distinct, non_blocking=True)
        self.last.copy_(self.numbering.last, non_blocking=True)
        if self.has_link:
            torch.accelerator.current_stream().synchronize()
        return read_back[: int(self.last) + 1], numbers
