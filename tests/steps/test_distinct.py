"""Distinct rows are read once: the same result, and less to move."""

import pytest
import torch
from asked import tasks_of
from common import demo_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, KERNEL_DEVICE

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.distinct import DistinctLookup
from engram_exp.steps.tables.host import HostTable

LAUNCH = {"rows_per_program": 4, "warps": 4, "programs": 3}
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
    placement = CPU if KERNEL_DEVICE.type == "cpu" else Placement(KERNEL_DEVICE)
    lookup = DistinctLookup(table, 40, columns, placement, **LAUNCH)
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
@pytest.mark.parametrize("strategy", ["uva", "device", "kv_on_gpu"])
def test_a_gpu_takes_it_like_any_other(run_inline, strategy):
    rows = run_inline(f"strategy={strategy}", "lookup=distinct", "hardware=cuda", "batch_size=64")
    assert {row["status"] for row in rows} == {"ok"}, rows
