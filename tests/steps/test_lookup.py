"""Rows, the tables that hold them, and every way to fetch them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, KERNEL_DEVICE

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup import order
from engram_exp.steps.lookup.embedding import EmbeddingLookup
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.order import ON_THE_DEVICE, ORDERED, UNORDERED, launches
from engram_exp.steps.lookup.staged import StagedLookup
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ON_KERNEL_DEVICE = Placement(KERNEL_DEVICE)
PINNABLE = Placement(torch.device("cpu"), pinned=KERNEL_DEVICE.type == "cuda")


def host_table(rows, row_format, seed=0, *, huge_pages=False):
    return HostTable(rows, row_format, seed, CPU, huge_pages=huge_pages, pinned=False)


def by_triton(table, max_tokens, columns, placement, order="as_asked", **launch):
    launch = {"sort_from_rows": 0, "rows_per_program": 4, "warps": 4, "programs": None, **launch}
    return TritonLookup(table, max_tokens, columns, ON_KERNEL_DEVICE, order, **launch)


def golden_table(rows: int, row_values: int) -> SimpleNamespace:
    values = np.sin(0.37 * np.arange(rows * row_values) + 0.37).astype(np.float32)
    return SimpleNamespace(
        place="host",
        parts=(torch.from_numpy(values.reshape(rows, row_values)),),
        row_format=RowFormat(row_values, torch.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize("lookup", [EmbeddingLookup, GatherLookup, by_triton])
def test_golden_embeddings(lookup):
    expected = golden("forward")
    row_ids = torch.from_numpy(expected["rows"])
    table = golden_table(int(expected["primes"].sum()), 8)
    if lookup is by_triton:
        table.parts, row_ids = tuple(part.to(KERNEL_DEVICE) for part in table.parts), row_ids.to(KERNEL_DEVICE)
    embeddings = lookup(table, row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2], CPU)(row_ids)
    assert np.array_equal(embeddings.cpu().numpy(), expected["embeddings"].reshape(48, 128))


def test_auto_may_sort_one_call_and_partition_another(monkeypatch):
    monkeypatch.setattr(order, "DENSE_ROWS", 10)
    table = host_table(400, RowFormat(8, torch.float32))
    table.parts = tuple(part.to(KERNEL_DEVICE) for part in table.parts)
    lookup = by_triton(table, 20, 1, CPU, order="auto")
    for number, expected in [(5, "partitioned"), (20, "sorted"), (5, "partitioned")]:
        row_ids = torch.arange(399, 399 - number, -1, dtype=torch.int32, device=KERNEL_DEVICE).view(1, number, 1)
        assert lookup.reading(rows=number).order == expected
        assert torch.equal(lookup(row_ids), table.parts[0][row_ids.flatten().long()])


@st.composite
def row_formats(draw, one_scale=0.01):
    """Any way to store rows, of sizes that are no powers of two, too."""
    values, dtype = draw(st.integers(1, 40)), draw(st.sampled_from(DTYPES))
    if draw(st.booleans()):
        return RowFormat(values, dtype)
    if draw(st.booleans()):
        return RowFormat(values, dtype, one_scale=one_scale)
    return RowFormat(values, dtype, draw(st.sampled_from([1, 3, 8, 32])), draw(st.booleans()))


def some_row_ids(data, rows, seed):
    shape = [data.draw(st.integers(1, 4)) for _ in range(3)]
    generator = torch.Generator().manual_seed(seed)
    row_ids = torch.randint(0, rows, shape, generator=generator, dtype=torch.int32)
    row_ids.view(-1)[[0, -1]] = torch.tensor([0, rows - 1], dtype=torch.int32)
    return row_ids


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300), row_format=row_formats(), seed=st.integers(0, 2**31), huge=st.booleans(), data=st.data()
)
@pytest.mark.parametrize("lookup", [EmbeddingLookup, GatherLookup])
@pytest.mark.slow
def test_a_gathered_row_equals_the_contents(lookup, rows, row_format, seed, huge, data):
    if lookup is EmbeddingLookup and len(row_format.part_widths) > 1:
        return
    table = host_table(rows, row_format, seed, huge_pages=huge)
    row_ids = some_row_ids(data, rows, seed)
    got = lookup(table, row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2], CPU)(row_ids)
    assert got.shape == (row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2] * row_format.width)
    assert torch.equal(got, table.contents(row_ids).reshape(got.shape))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 300), row_format=row_formats(), seed=st.integers(0, 2**31), apart=st.booleans(),
       data=st.data())  # fmt: skip
def test_staged_rows_equal_the_contents_whole_or_in_two_parts(rows, row_format, seed, apart, data):
    table = host_table(rows, row_format, seed)
    row_ids = some_row_ids(data, rows, seed)
    tokens, columns = row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2]
    lookup = StagedLookup(table, tokens, columns, CPU, apart)
    got, stored = lookup(row_ids), table.contents(row_ids).view(tokens, columns, -1)
    want = stored.split(row_format.part_widths, dim=-1) if apart and row_format.split else (stored,)
    assert len(got) == len(want)
    assert all(torch.equal(one, other.flatten(1)) for one, other in zip(got, want, strict=True))
    assert lookup(row_ids)[0].data_ptr() != got[0].data_ptr(), "fresh memory"


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 300),
    row_format=row_formats(one_scale=0.01 if KERNEL_DEVICE.type == "cuda" else 0.5),  # no interpreter rounds
    seed=st.integers(0, 2**31),
    order=st.sampled_from(["as_asked", "sorted", "partitioned", "auto"]),
    sort_from_rows=st.integers(0, 60),
    rows_per_program=st.sampled_from([1, 4, 16, "auto"]),
    programs=st.sampled_from([None, 1, 3, "auto", "multiprocessors"]),
    stages=st.sampled_from([1, 3]),
    widen=st.booleans(),
    in_host_memory=st.booleans(),
    data=st.data(),
)
def test_the_kernel_gathers_every_row_in_any_order_and_widens_it(
    rows, row_format, seed, order, sort_from_rows, rows_per_program, programs, stages, widen, in_host_memory, data
):
    if in_host_memory:
        table = HostTable(rows, row_format, seed, PINNABLE, huge_pages=False, pinned=True)
    else:
        table = DeviceTable(rows, row_format, seed, ON_KERNEL_DEVICE)
    row_ids = some_row_ids(data, rows, seed)
    tokens, columns = row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2]
    launch = {"sort_from_rows": sort_from_rows, "rows_per_program": rows_per_program, "programs": programs}
    launch |= {"stages": stages}
    lookup = by_triton(table, tokens + 2, columns, None, order, **launch, widen=widen)
    for asked in (row_ids, row_ids.flip(0)):
        got = lookup(asked.to(KERNEL_DEVICE)).cpu()
        want = row_format.widen(table.contents(asked)) if widen else table.contents(asked)
        assert got.dtype == want.dtype
        assert torch.equal(got, want.reshape(tokens, -1))


@pytest.mark.parametrize("order", ["as_asked", "sorted", "partitioned"])
@pytest.mark.parametrize(
    ("values", "scales_for", "split"),
    [(256, 32, False), (256, 32, True), *((values, None, False) for values in (64, 80, 160, 256))],
)
def test_the_kernel_reads_the_rows_of_real_models(order, values, scales_for, split):
    row_format = RowFormat(values, torch.bfloat16, scales_for, split)
    table = HostTable(1000, row_format, 3, PINNABLE, huge_pages=True, pinned=True)
    row_ids = torch.randint(0, 1000, (1, 11, 3), dtype=torch.int32)  # two blocks and one row
    got = by_triton(table, 11, 3, None, order, rows_per_program=16)(row_ids.to(KERNEL_DEVICE)).cpu()
    assert torch.equal(got, table.contents(row_ids).reshape(11, -1))
    wide = by_triton(table, 11, 3, None, order, rows_per_program=16, widen=True)(row_ids.to(KERNEL_DEVICE)).cpu()
    assert torch.equal(wide, row_format.widen(table.contents(row_ids)).reshape(11, -1))


RULES = (*ORDERED, *UNORDERED, ON_THE_DEVICE)
ON_A_GPU = pytest.mark.accelerator  # where each launch and dtype is a kernel of its own; one interpreter runs all
LAUNCHES = sorted({(way.rows_per_program, way.programs or 0) for way in (*RULES, *launches(132))})


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("order", ["as_asked", "partitioned"])
@pytest.mark.parametrize(
    ("rows_per_program", "programs", "dtype"),
    [
        pytest.param(*launch, dtype, marks=() if dtype == torch.bfloat16 or launch == LAUNCHES[0] else ON_A_GPU)
        for launch in LAUNCHES
        for dtype in DTYPES
    ],
)
def test_every_launch_of_auto_widens_to_the_bit(rows_per_program, programs, order, split, dtype):
    """More blocks of rows than programs, whose number is no constant of the kernel; the last block is not full."""
    row_format = RowFormat(64, dtype, 32, split)
    table = HostTable(5000, row_format, 3, PINNABLE, huge_pages=False, pinned=True)
    programs = min(programs, 4)
    tokens = -(-8 * rows_per_program // 3)  # Triton's interpreter takes milliseconds for each block
    row_ids = torch.randint(0, 5000, (1, tokens, 3), dtype=torch.int32)
    row_ids.view(-1)[:4] = torch.tensor([4999, 0, 0, 4999], dtype=torch.int32)
    launch = {"rows_per_program": rows_per_program, "programs": programs or None}
    got = by_triton(table, tokens, 3, None, order, **launch, widen=True)(row_ids.to(KERNEL_DEVICE)).cpu()
    assert torch.equal(got, row_format.widen(table.contents(row_ids)).reshape(tokens, -1))


@pytest.mark.accelerator
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("order", ["as_asked", "sorted", "partitioned", "auto"])
@pytest.mark.parametrize("tokens", [1, 64, 1024, 8192])
def test_a_gpu_widens_as_many_rows_as_a_step_asks_for(tokens, order, split):
    row_format = RowFormat(256, torch.bfloat16, 32, split)
    table = HostTable(400_000, row_format, 3, PINNABLE, huge_pages=True, pinned=True)
    row_ids = torch.randint(0, 400_000, (tokens, 1, 24), dtype=torch.int32)
    launch = {"rows_per_program": "auto", "programs": "auto", "sort_from_rows": "auto"}
    lookup = by_triton(table, tokens, 24, None, order, **launch, widen=True)
    for asked in (row_ids, row_ids.flip(0)):
        got = lookup(asked.to(KERNEL_DEVICE)).cpu()
        assert torch.equal(got, row_format.widen(table.contents(asked)).reshape(tokens, -1))


@pytest.mark.parametrize(
    ("options", "key"),
    [({"order": "random"}, "order"), ({"rows_per_program": 3}, "rows_per_program"), ({"warps": 0}, "warps"),
     ({"programs": 0}, "programs")],
)  # fmt: skip
def test_launches_that_triton_cannot_do_are_refused(options, key):
    table = DeviceTable(10, RowFormat(4, torch.float32), 0, ON_KERNEL_DEVICE)
    with pytest.raises(ConfigError, match=rf"^lookup\.{key}="):
        by_triton(table, 1, 1, None, **options)


@pytest.mark.accelerator
def test_pageable_memory_is_out_of_reach_for_a_kernel():
    table = host_table(10, RowFormat(4, torch.float32))
    with pytest.raises(SkippedError, match="table=pinned or table=huge"):
        by_triton(table, 1, 1, None)


def test_more_rows_than_one_block():
    table = host_table(5000, RowFormat(24, torch.bfloat16), 1, huge_pages=True)
    row_ids = torch.randint(0, 5000, (3, 500, 4))
    assert torch.equal(GatherLookup(table, 1500, 4, CPU)(row_ids), table.contents(row_ids).reshape(1500, 96))


@pytest.mark.parametrize("row_id", [-1, 10])
def test_row_ids_outside_the_table_are_an_error(row_id):
    table = host_table(10, RowFormat(4, torch.float32))
    row_ids = torch.tensor([[[0, row_id, 9]]], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 row ids are outside of 0 to 9"):
        GatherLookup(table, 1, 3, CPU)(row_ids)
    with pytest.raises(IndexError):
        EmbeddingLookup(table, 1, 3, CPU)(row_ids)


def test_gather_keeps_its_buffer_and_embedding_does_not():
    table = host_table(10, RowFormat(4, torch.float32))
    row_ids = torch.zeros(1, 2, 3, dtype=torch.int32)
    gather = GatherLookup(table, 2, 3, CPU)
    assert gather(row_ids).data_ptr() == gather(row_ids).data_ptr()
    embedding = EmbeddingLookup(table, 2, 3, CPU)
    first = embedding(row_ids)
    assert first.data_ptr() != embedding(row_ids).data_ptr()


def test_an_embedding_takes_a_table_in_one_piece():
    table = host_table(10, RowFormat(64, torch.bfloat16, 32, split=True))
    with pytest.raises(ConfigError, match=r"^lookup: .*dtype\.layout=packed") as raised:
        EmbeddingLookup(table, 1, 1, CPU)
    assert str(raised.value.with_choices({"lookup": "mine"})).startswith("lookup=mine: "), "as it was typed"
