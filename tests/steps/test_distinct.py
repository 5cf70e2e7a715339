"""Distinct rows are read once: the same result, and less to move."""

import math

import numpy as np
import pytest
import torch
from asked import tasks_of
from common import demo_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from in_step import DECODE
from places import CPU, DEVICES, KERNEL_DEVICE

from engram_exp.errors import ConfigError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.distinct import DistinctLookup
from engram_exp.steps.lookup.distinct_copy import DistinctCopyLookup
from engram_exp.steps.lookup.distinct_link import DistinctLinkLookup
from engram_exp.steps.lookup.distinct_numba import DistinctFinder
from engram_exp.steps.tables.host import HostTable

LAUNCH = {"rows_per_program": 4, "warps": 4, "programs": 3}
PLACEMENT = CPU if KERNEL_DEVICE.type == "cpu" else Placement(KERNEL_DEVICE)
PINNABLE = Placement(torch.device("cpu"), pinned=KERNEL_DEVICE.type == "cuda")


def table_of(rows, row_format):
    return HostTable(rows, row_format, 0, PINNABLE, huge_pages=False, pinned=True)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60), tokens=st.integers(1, 40), columns=st.integers(1, 5), split=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_come_back_to_where_they_are_asked_for(rows, tokens, columns, split, seed):
    row_format = RowFormat(24, torch.bfloat16, values_per_scale=16 if split else None, split=split)
    table = table_of(rows, row_format)
    lookup = DistinctLookup(table, 40, columns, PLACEMENT, **LAUNCH)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        row_ids = torch.randint(rows, (1, tokens, columns), generator=generator, dtype=torch.int32)
        got = lookup(row_ids.to(KERNEL_DEVICE)).cpu()
        assert torch.equal(got, table.contents(row_ids).reshape(tokens, -1))


def test_each_row_is_read_once(monkeypatch):
    read = []
    lookup = DistinctLookup(table_of(50, RowFormat(8, torch.float32)), 12, 2, CPU, **LAUNCH)
    once = lookup.read
    monkeypatch.setattr(lookup, "read", lambda row_ids: (read.append(row_ids.clone()), once(row_ids))[1])
    lookup(torch.tensor([7, 3, 7, 7, 3, 49, 0, 7], dtype=torch.int32).view(1, 4, 2))
    assert read[0].flatten().tolist() == [0, 3, 7, 49]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60), tokens=st.integers(1, 40), columns=st.integers(1, 5), split=st.booleans(),
    bound=st.sampled_from([0.01, 0.3, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_cross_the_link_once_as_far_as_there_is_room(rows, tokens, columns, split, bound, seed):
    row_format = RowFormat(24, torch.bfloat16, values_per_scale=16 if split else None, split=split)
    table = table_of(rows, row_format)
    lookup = DistinctLinkLookup(table, 40, columns, PLACEMENT, bound, **LAUNCH)
    generator, crossed, asked = torch.Generator().manual_seed(seed), 0, 0
    for _ in range(2):
        row_ids = torch.randint(rows, (1, tokens, columns), generator=generator, dtype=torch.int32)
        got = lookup(row_ids.to(KERNEL_DEVICE)).cpu()
        assert torch.equal(got, table.contents(row_ids).reshape(tokens, -1))
        distinct, uses = torch.unique(row_ids, return_counts=True)  # ascending
        room = math.ceil(bound * row_ids.numel())
        crossed += min(len(distinct), room) + int(uses[room:].sum())
        asked += row_ids.numel()
        assert lookup.counts.tolist() == [asked - crossed, asked]


@pytest.mark.slow
def test_nothing_crosses_the_link_where_the_table_is_on_the_device(run_inline):
    (row,) = run_inline("strategy=device", "lookup=distinct_link", "capture=none", "cases=[lookup]")
    assert (row["status"], row["link_bytes"]) == ("ok", 0)


def test_a_bound_that_is_no_share_is_refused():
    for bound in (0, 1.5):
        with pytest.raises(ConfigError, match=rf"^lookup.bound={bound}: must be above 0 and at most 1"):
            DistinctLinkLookup(table_of(9, RowFormat(8, torch.float32)), 4, 2, PLACEMENT, bound, **LAUNCH)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bound", [1.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_a_run_says_what_crossed_the_link(run_inline, device, bound):
    capture = "none" if device == "cpu" else "graph"
    rows = run_inline(
        "strategy=uva", f"hardware={device}", f"capture={capture}", "lookup=distinct_link", f"lookup.bound={bound}",
        "tokens.share=0.01", "batches=1", "cases=[lookup,full]", "dtype=fp8",
    )  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}, rows
    for row in rows:
        asked = row["batch_size"] * row["seq_len"] * 4 * 9  # 2 orders of 2 heads, rows of 9 bytes
        once = row["unique_row_fraction"] * asked
        assert row["link_bytes"] == pytest.approx(once) if bound == 1 else once < row["link_bytes"] < asked
        shares = [float(text.partition("=")[2]) for text in row["distinct_by_order"].split()]
        assert sum(shares) / 2 == pytest.approx(row["unique_row_fraction"], rel=1e-3)
        assert row.get("cache_hit_rate") is None


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 60), shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=3),
    columns=st.integers(1, 5), split=st.booleans(), find=st.sampled_from(["host", "device"]),
    threads=st.sampled_from([1, "auto"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_each_distinct_row_is_copied_once(rows, shapes, columns, split, find, threads, seed):
    row_format = RowFormat(24, torch.bfloat16, values_per_scale=16 if split else None, split=split)
    table, generator = table_of(rows, row_format), torch.Generator().manual_seed(seed)
    lookup, crossed, asked = DistinctCopyLookup(table, 40, columns, PLACEMENT, find, threads), 0, 0
    for sequences, tokens in shapes:
        row_ids = torch.randint(rows, (sequences, tokens, columns), generator=generator, dtype=torch.int32)
        got = lookup(row_ids).cpu()
        assert torch.equal(got, table.contents(row_ids).reshape(sequences * tokens, -1))
        apart = [row_ids] if find == "device" else row_ids.unbind(dim=2)
        crossed += sum(len(torch.unique(some)) for some in apart)
        asked += row_ids.numel()
        assert lookup.counts.tolist() == [asked - crossed, asked]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data(), columns=st.integers(1, 4), dtype=st.sampled_from([np.int32, np.int64]))
def test_distinct_row_ids_are_found_in_each_column(data, columns, dtype):
    finder = DistinctFinder(50, columns, np.dtype(dtype))
    for _ in range(3):
        tokens = data.draw(st.integers(1, 50))
        row_id = st.one_of(st.integers(0, 5), st.integers(0, 2**31 - 1), st.sampled_from([2**16 * k for k in range(9)]))
        asked = data.draw(st.lists(row_id, min_size=tokens * columns, max_size=tokens * columns))
        row_ids = np.array(asked, dtype=dtype).reshape(tokens, columns)
        ranks = np.empty(row_ids.shape, dtype=np.int32)
        distinct = finder(row_ids, ranks)
        assert np.array_equal(distinct[ranks], row_ids)
        assert len(distinct) == sum(len(set(column)) for column in row_ids.T.tolist())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("overrides", [[], pytest.param(["lookup.find=device"], marks=pytest.mark.slow)])
def test_a_run_copies_what_is_distinct(run_inline, device, overrides):
    rows = run_inline(
        "strategy=distinct", f"hardware={device}", "tokens.share=0.01", "batches=1", "cases=[lookup,full]", *overrides
    )
    assert {row["status"] for row in rows} == {"ok"}, rows
    asked = rows[0]["batch_size"] * rows[0]["seq_len"] * 4 * 8 * 2  # 2 orders of 2 heads, 8 values in bfloat16
    assert [row["link_bytes"] for row in rows] == [pytest.approx(rows[0]["unique_row_fraction"] * asked)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("find", ["host", "device"])
def test_distinct_rows_are_copied_in_a_step_of_a_model(run_inline, device, find):
    rows = run_inline(
        "strategy=distinct", f"hardware={device}", f"lookup.find={find}", *DECODE, "cases=[fetch,ready,step]"
    )
    assert {row["status"] for row in rows} == {"ok"}, rows


def test_its_rows_know_what_they_cost(configure):
    places = dict.fromkeys(("table", "hashing", "lookup", "projection"), "host")
    plain, distinct = (
        next(task for task in tasks_of(places, kinds, distinct_rows=0.25) if task.load.stage.name == "lookup")
        for kinds in ({}, {"lookup": DistinctLookup})
    )
    stored = demo_geometry().stored_bytes(64 * 4096)
    assert plain.kind.bytes_moved(plain.load) - distinct.kind.bytes_moved(distinct.load) == stored * 3 // 4
    assert distinct.kind.keeps(distinct.load)["host"] > plain.kind.keeps(plain.load)["host"] + stored


@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu"])
@pytest.mark.parametrize("schedule", ["serial", "pipelined"])
def test_a_run_takes_it_like_any_other(run_inline, strategy, schedule):
    rows = run_inline(f"strategy={strategy}", "lookup=distinct", f"schedule={schedule}", "dtype=fp8")
    assert {row["status"] for row in rows} == {"ok", "skipped"}, rows


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("strategy", "lookup"),
    [("uva", "distinct"), ("device", "distinct"), ("kv_on_gpu", "distinct"), ("uva", "distinct_link")],
)
def test_a_gpu_takes_it_like_any_other(run_inline, strategy, lookup):
    rows = run_inline(f"strategy={strategy}", f"lookup={lookup}", "hardware=cuda", "batch_size=64")
    assert {row["status"] for row in rows} == {"ok"}, rows
