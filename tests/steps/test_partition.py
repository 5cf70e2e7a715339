"""Row ids come out bucket by bucket, each once and with its place, whatever they are."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import KERNEL_DEVICE

from engram_exp.steps.lookup.partition_triton import Partition

ANY = st.integers(0, 2**31)


def check(partition, row_ids):
    """One call; what it leaves behind must do for the next."""
    count = len(row_ids)
    ordered = torch.full((count + 3,), -1, dtype=row_ids.dtype, device=KERNEL_DEVICE)
    places = torch.full((count + 3,), -1, dtype=torch.int32, device=KERNEL_DEVICE)
    partition(row_ids.to(KERNEL_DEVICE), ordered[:count], places[:count])
    assert (ordered[count:] == -1).all()
    ordered, places = ordered[:count].cpu().long(), places[:count].cpu().long()
    assert torch.equal(places.sort().values, torch.arange(count)), "each place once"
    assert torch.equal(ordered, row_ids[places].long())
    buckets = ordered >> partition.shift
    assert (buckets[1:] >= buckets[:-1]).all(), "bucket by bucket"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5000), shift=st.integers(0, 13), counts=st.lists(st.integers(1, 700), min_size=1, max_size=3),
    distinct=st.integers(1, 700), dtype=st.sampled_from([torch.int32, torch.int64]), seed=ANY,
)  # fmt: skip
@example(rows=1, shift=0, counts=[1, 1], distinct=1, dtype=torch.int32, seed=0)
@example(rows=1000, shift=3, counts=[600, 300], distinct=1, dtype=torch.int32, seed=0)
def test_any_row_ids_are_grouped(rows, shift, counts, distinct, dtype, seed):
    partition = Partition(rows, 1, max(counts), KERNEL_DEVICE, shift)
    generator = torch.Generator().manual_seed(seed)
    for count in counts:
        few = torch.randint(rows, (distinct,), generator=generator, dtype=dtype)
        row_ids = few[torch.randint(distinct, (count,), generator=generator)]
        row_ids[[0, -1]] = torch.tensor([rows - 1, 0], dtype=dtype)
        check(partition, row_ids)


def test_rows_beyond_32_bits_are_grouped():
    rows = 2**33
    check(Partition(rows, 264, 4, KERNEL_DEVICE), torch.tensor([rows - 1, 0, 2**31, 5], dtype=torch.int64))


@pytest.mark.accelerator
@pytest.mark.parametrize("count", [1, 1536, 24_576, 196_608, 6_291_456])
def test_a_graph_replays_it_on_new_row_ids(count):
    rows = 384_006_168
    partition = Partition(rows, 264, count, KERNEL_DEVICE)
    row_ids = torch.zeros(count, dtype=torch.int32, device=KERNEL_DEVICE)
    ordered, places = torch.empty(2, count, dtype=torch.int32, device=KERNEL_DEVICE)
    partition(row_ids, ordered, places)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        partition(row_ids, ordered, places)
    for share in (1.0, 0.001, 0.0):
        row_ids.random_(max(1, int(rows * share)))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(places.sort().values, torch.arange(count, dtype=torch.int32, device=KERNEL_DEVICE))
        assert torch.equal(ordered, row_ids[places.long()])
        buckets = ordered >> partition.shift
        assert (buckets[1:] >= buckets[:-1]).all()
