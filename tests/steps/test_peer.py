"""The kernel that reads all shares at once: in Triton's interpreter on shares in this process, on GPUs on their own."""

from types import SimpleNamespace

import pytest
import torch
from places import KERNEL_DEVICE

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import SPLITS, Shards
from engram_exp.steps.exchange.peer_triton import PeerKernel

FORMATS = [RowFormat(8, torch.bfloat16), RowFormat(9, torch.bfloat16, 4), RowFormat(16, torch.bfloat16, 2, split=True)]


@pytest.mark.parametrize("row_format", FORMATS, ids=["words", "bytes", "parts"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("columns", "size"), [(5, 3), (2, 3)])
def test_rows_come_from_whoever_holds_them(row_format, split, columns, size):
    column_rows = [7 + 4 * column for column in range(columns)]
    shards = Shards(column_rows, sum(column_rows), size, split)
    of_ranks = []
    for share in range(size):
        spans = [torch.arange(span.first, span.first + span.rows) for span in shards.spans_of(share)]
        stored = row_format.contents(torch.cat([torch.empty(0, dtype=torch.int64), *spans]), 0)
        of_ranks.append(tuple(part.contiguous().to(KERNEL_DEVICE) for part in stored.split(row_format.part_widths, 1)))
    table = SimpleNamespace(row_format=row_format, of_ranks=of_ranks, parts=of_ranks[0])
    rows = torch.tensor(column_rows)
    row_ids = torch.randint(2**40, (6, columns)) % rows
    row_ids[0], row_ids[1] = 0, rows - 1
    row_ids += rows.cumsum(0) - rows
    out = torch.empty(row_ids.numel(), row_format.width, dtype=row_format.storage_dtype, device=KERNEL_DEVICE)
    PeerKernel(table, shards, out, rows_per_program=4, warps=1, programs=3)(row_ids.int().to(KERNEL_DEVICE))
    assert torch.equal(out.cpu(), row_format.contents(row_ids, 0).flatten(0, 1))
