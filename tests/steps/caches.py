"""Small caches of rows, and what is in them."""

import numpy as np
import torch
from places import CPU, KERNEL_DEVICE

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.cached import CachedLookup
from engram_exp.steps.lookup.cached_copy import CachedCopyLookup
from engram_exp.steps.lookup.row_cache_triton import RowCache
from engram_exp.steps.tables.host import HostTable

KINDS = (CachedLookup, CachedCopyLookup)  # what misses is read by the GPU, or copied by the CPU
PINNABLE = Placement(torch.device("cpu"), pinned=KERNEL_DEVICE.type == "cuda")
PLACEMENT = CPU if KERNEL_DEVICE.type == "cpu" else Placement(KERNEL_DEVICE)
FORMATS = (
    RowFormat(5, torch.bfloat16),
    RowFormat(24, torch.bfloat16, values_per_scale=16),
    RowFormat(24, torch.bfloat16, values_per_scale=8, split=True),
    RowFormat(8, torch.float32),
)


def table_of(rows, row_format):
    return HostTable(rows, row_format, 0, PINNABLE, huge_pages=False, pinned=True)


def cached(table, most, sets, ways, policy="lru", profile=(), rows_per_program=4, programs=2, kind=CachedLookup):
    row_format = table.row_format
    row_bytes = row_format.width * row_format.storage_dtype.itemsize
    set_bytes = RowCache.set_bytes(ways, row_bytes, 4, policy)
    launch = (rows_per_program, 4, programs) if kind is CachedLookup else ()
    return kind(
        table, most, 1, PLACEMENT, lambda *_: np.array(profile, dtype=np.int32), (sets + 0.5) * set_bytes / 1e9,
        ways, policy, "warm", 1, *launch,
    )  # fmt: skip


def look_up(lookup, row_ids):
    """The rows of row ids, and how many of these hit."""
    before = int(lookup.counts[0])
    rows = lookup(torch.tensor(row_ids, dtype=torch.int32, device=KERNEL_DEVICE).view(1, -1, 1)).cpu()
    return rows, int(lookup.counts[0]) - before


def kept_by(lookup):
    """The row ids in the cache, by set."""
    assert torch.equal(lookup.cache.heads.cpu(), torch.full_like(lookup.cache.heads.cpu(), -1)), "chains are empty"
    return [{row_id for row_id in tags if row_id >= 0} for tags in lookup.cache.tags.tolist()]


def gathered_by(lookup):
    """A list to which the row ids are added that the CPU gathers; none where it gathers none."""
    row_ids, gather = [], getattr(lookup, "gather", None)
    lookup.gather = lambda some: (row_ids.extend(some.flatten().tolist()), gather(some))[1]
    return row_ids
