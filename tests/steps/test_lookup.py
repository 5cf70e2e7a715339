"""Rows, the tables that hold them, and every way to fetch them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, KERNEL_DEVICE

from engram_exp.errors import ConfigError, RegistrationError, SkippedError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine import host_memory
from engram_exp.machine.host_memory import HostMemory, _huge_page_share
from engram_exp.machine.placement import Placement
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


@st.composite
def row_formats(draw):
    """Any way to store rows, of sizes that are no powers of two, too."""
    values, dtype = draw(st.integers(1, 40)), draw(st.sampled_from(DTYPES))
    if draw(st.booleans()):
        return RowFormat(values, dtype)
    if draw(st.booleans()):
        return RowFormat(values, dtype, one_scale=0.01)
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
    row_format=row_formats(),
    seed=st.integers(0, 2**31),
    order=st.sampled_from(["as_asked", "sorted", "partitioned", "auto"]),
    sort_from_rows=st.integers(0, 60),
    rows_per_program=st.sampled_from([1, 4, 16, "auto"]),
    programs=st.sampled_from([None, 1, 3, "auto", "multiprocessors"]),
    widen=st.booleans(),
    in_host_memory=st.booleans(),
    data=st.data(),
)
def test_the_kernel_gathers_every_row_in_any_order_and_widens_it(
    rows, row_format, seed, order, sort_from_rows, rows_per_program, programs, widen, in_host_memory, data
):
    if in_host_memory:
        table = HostTable(rows, row_format, seed, PINNABLE, huge_pages=False, pinned=True)
    else:
        table = DeviceTable(rows, row_format, seed, ON_KERNEL_DEVICE)
    row_ids = some_row_ids(data, rows, seed)
    tokens, columns = row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2]
    launch = {"sort_from_rows": sort_from_rows, "rows_per_program": rows_per_program, "programs": programs}
    lookup = by_triton(table, tokens + 2, columns, None, order, **launch, widen=widen)
    for asked in (row_ids, row_ids.flip(0)):
        got = lookup(asked.to(KERNEL_DEVICE)).cpu()
        want = row_format.widen(table.contents(asked)) if widen else table.contents(asked)
        assert got.dtype == want.dtype
        assert torch.equal(got, want.reshape(tokens, -1))


@pytest.mark.parametrize("order", ["as_asked", "sorted", "partitioned"])
@pytest.mark.parametrize(("values", "scales_for"), [(256, 32), (160, None), (80, None), (64, None), (256, None)])
@pytest.mark.parametrize("split", [False, True])
def test_the_kernel_reads_the_rows_of_real_models(order, values, scales_for, split):
    row_format = RowFormat(values, torch.bfloat16, scales_for, split)
    table = HostTable(1000, row_format, 3, PINNABLE, huge_pages=True, pinned=True)
    row_ids = torch.randint(0, 1000, (1, 37, 3), dtype=torch.int32)
    got = by_triton(table, 37, 3, None, order, rows_per_program=16)(row_ids.to(KERNEL_DEVICE)).cpu()
    assert torch.equal(got, table.contents(row_ids).reshape(37, -1))
    wide = by_triton(table, 37, 3, None, order, rows_per_program=16, widen=True)(row_ids.to(KERNEL_DEVICE)).cpu()
    assert torch.equal(wide, row_format.widen(table.contents(row_ids)).reshape(37, -1))


RULES = (*ORDERED, *UNORDERED, ON_THE_DEVICE)
LAUNCHES = sorted({(way.rows_per_program, way.programs or 0) for way in (*RULES, *launches(132))})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("order", ["as_asked", "partitioned"])
@pytest.mark.parametrize(("rows_per_program", "programs"), LAUNCHES)
def test_every_launch_of_auto_widens_to_the_bit(rows_per_program, programs, order, split, dtype):
    """More blocks of rows than programs where there are few of these; the last block is not full."""
    row_format = RowFormat(64, dtype, 32, split)
    table = HostTable(5000, row_format, 3, PINNABLE, huge_pages=False, pinned=True)
    tokens = 401 if rows_per_program > 1 else 47  # Triton's interpreter takes milliseconds for each block
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


def test_a_device_table_is_filled_in_pieces(monkeypatch):
    monkeypatch.setattr("engram_exp.steps.tables.device.ROWS_AT_A_TIME", 7)
    for row_format in (RowFormat(5, torch.bfloat16), RowFormat(40, torch.bfloat16, 32, split=True)):
        table = DeviceTable(30, row_format, 3, ON_KERNEL_DEVICE)
        stored = torch.cat([part.cpu() for part in table.parts], dim=1)
        assert torch.equal(stored, table.contents(torch.arange(30)))


def test_contents_are_finite_the_same_in_every_dtype_and_depend_on_row_and_seed():
    row_ids = torch.arange(1000)
    values = [RowFormat(64, dtype).contents(row_ids, seed=5).float() for dtype in DTYPES]
    assert torch.isfinite(values[0]).all()
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert len(torch.unique(values[0], dim=0)) == 1000
    assert not torch.equal(values[0], RowFormat(64, torch.float32).contents(row_ids, seed=6))
    assert abs(values[0].mean()) < 0.02


def test_fp8_rows_are_finite_and_use_nearly_every_value_and_scale():
    row_format = RowFormat(256, torch.float32, values_per_scale=32)
    stored = row_format.contents(torch.arange(500), seed=1)
    assert stored.dtype == torch.uint8
    assert stored.shape == (500, 264)
    assert torch.isfinite(row_format.widen(stored)).all()
    assert len(torch.unique(stored[:, :256])) == 254, "all e4m3 values but NaN"
    assert stored[:, 256:].float().unique().tolist() == list(range(119, 127))
    packed = row_format.contents(torch.arange(5), seed=1)
    assert torch.equal(packed, RowFormat(256, torch.float32, 32, split=True).contents(torch.arange(5), seed=1))
    one = RowFormat(256, torch.float32, one_scale=0.01)
    stored = one.contents(torch.arange(500), seed=1)
    assert stored.shape == (500, 256)
    assert len(torch.unique(stored)) == 254
    assert one.widen(stored).abs().max() == np.float32(448) * np.float32(0.01)


@pytest.mark.parametrize("row_id", [-1, 10])
def test_row_ids_outside_the_table_are_an_error(row_id):
    table = host_table(10, RowFormat(4, torch.float32))
    row_ids = torch.tensor([[[0, row_id, 9]]], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 row ids are outside of 0 to 9"):
        GatherLookup(table, 1, 3, CPU)(row_ids)
    with pytest.raises(IndexError):
        EmbeddingLookup(table, 1, 3, CPU)(row_ids)


def test_rows_beyond_32_bits_have_contents():
    assert torch.isfinite(RowFormat(8, torch.float32).contents(torch.tensor([2**33]), 0)).all()


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
    with pytest.raises(ConfigError, match=r"^lookup=.*dtype\.layout=packed") as raised:
        EmbeddingLookup(table, 1, 1, CPU)
    assert str(raised.value.with_choices({"lookup": "mine"})).startswith("lookup=mine: "), "as it was typed"


SMAPS = """7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      1024 kB
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
Size:               1024 kB
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize(
    ("address", "share"), [(0x7F0000000000, 0.25), (0x7F0000400010, 1.0), (0x7F00008FFFFF, 0.0), (0x10, None)]
)
def test_huge_pages_are_counted_where_the_memory_lies(address, share):
    assert _huge_page_share(SMAPS.splitlines(), address) == share


def test_the_kernel_tells_about_this_process():
    memory = HostMemory(2**22, huge_pages=False)
    memory.bytes.fill_(1)
    assert memory.huge_page_share() == 0, "the kernel was asked for ordinary pages"


def test_too_few_huge_pages_are_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(HostMemory, "huge_page_share", lambda self: 0.25)
    monkeypatch.setattr("engram_exp.steps.tables.host.SMALL_BYTES", 0)
    table = host_table(10, RowFormat(4, torch.float32), huge_pages=True)
    assert table.huge_page_share == 0.25
    assert "2 MiB pages granted for 25 % of the table" in caplog.text


def test_a_driver_that_refuses_to_pin_is_quoted(monkeypatch):
    driver = SimpleNamespace(cudaHostRegister=lambda *_: 1, cudaGetErrorString=lambda code: f"error {code}")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    placement = Placement(torch.device("cpu"), pinned=True)
    with pytest.raises(
        RegistrationError, match=r"^the driver refuses to pin .* GB .*error 1.*ulimit -l.*table=pageable"
    ):
        HostTable(10, RowFormat(4, torch.float32), 0, placement, huge_pages=False, pinned=True)


def test_pinned_memory_is_counted_and_given_back(monkeypatch):
    calls = []
    driver = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: calls.append(("register", address)) or 0,
        cudaHostUnregister=lambda address: calls.append(("unregister", address)),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    before = host_memory.HostMemory.pinned_bytes
    memory = HostMemory(10_000, huge_pages=False)
    memory.pin()
    address = memory.bytes.data_ptr()
    assert host_memory.HostMemory.pinned_bytes == before + 10_000
    del memory
    assert calls == [("register", address), ("unregister", address)]
    assert host_memory.HostMemory.pinned_bytes == before
