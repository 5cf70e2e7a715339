"""Rows of which some lie in device memory: the same result, the right rows there, and what crosses the link counted."""

import contextlib

import numpy as np
import pytest
import torch
from asked import tasks_of
from common import demo_geometry
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from in_step import DECODE, statuses
from places import CPU, DEVICES, KERNEL_DEVICE

from engram_exp.errors import ConfigError, MismatchError
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.run.row_cache import require_kept
from engram_exp.steps.lookup.split import SplitLookup, near_rows
from engram_exp.steps.lookup.step import sort_bytes
from engram_exp.steps.tables.host import HostTable

PINNABLE = Placement(torch.device("cpu"), pinned=KERNEL_DEVICE.type == "cuda")
PLACEMENT = CPU if KERNEL_DEVICE.type == "cpu" else Placement(KERNEL_DEVICE)
FORMATS = (RowFormat(5, torch.bfloat16), RowFormat(24, torch.bfloat16, values_per_scale=8, split=True))


def split(column_rows, row_format, gb, policy, order="auto", sort_from_rows="auto"):
    moduli = np.array(column_rows)
    plan = HashPlan(
        None, 0, np.array([1]), moduli, np.concatenate([[0], np.cumsum(moduli)[:-1]]), np.array([0, len(moduli)]),
        torch.int32,
    )  # fmt: skip
    table = HostTable(sum(column_rows), row_format, 0, PINNABLE, huge_pages=False, pinned=True)
    return SplitLookup(table, 20, len(moduli), PLACEMENT, plan, gb, policy, order, sort_from_rows, 4, 4, 3), table


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), column_rows=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    row_format=st.sampled_from(FORMATS), policy=st.sampled_from(["heads", "columns"]),
    order=st.sampled_from(["as_asked", "sorted", "partitioned"]), share=st.floats(0, 0.99), tokens=st.integers(1, 20),
)  # fmt: skip
def test_rows_come_from_where_they_lie(data, column_rows, row_format, policy, order, share, tokens):
    row_bytes = row_format.width * row_format.storage_dtype.itemsize
    gb, near = share * sum(column_rows) * row_bytes / 1e9, None
    with contextlib.suppress(ConfigError):
        near = near_rows({"gb": gb, "policy": policy}, column_rows, row_bytes)
    assume(near is not None)  # else there is room for none
    assert sum(near) * row_bytes <= gb * 1e9 * (1 + 1e-12)
    lookup, table = split(column_rows, row_format, gb, policy, order)
    asked = [data.draw(st.integers(0, sum(column_rows) - 1)) for _ in range(tokens * len(column_rows))]
    row_ids = torch.tensor(asked, dtype=torch.int32).view(tokens, -1)
    got = lookup(row_ids.to(KERNEL_DEVICE).view(1, tokens, -1)).cpu()
    assert torch.equal(got, table.contents(row_ids).reshape(tokens, -1))
    spared = sum(first <= row_id < first + rows for row_id in asked for first, rows, _ in lookup.columns)
    assert [rows for _, rows, _ in lookup.columns] == near
    assert lookup.counts.tolist() == [spared, row_ids.numel()]
    assert sum(len(rows) for rows, _ in lookup.kept()) == sum(near)
    require_kept("lookup", lookup, table)


def test_heads_are_a_share_of_every_column_and_columns_are_whole():
    assert near_rows({"gb": 50e-9, "policy": "heads"}, [10, 20, 30], 1) == [8, 16, 25]
    assert near_rows({"gb": 50e-9, "policy": "columns"}, [10, 20, 30], 1) == [0, 20, 30]
    assert near_rows({"gb": 49e-9, "policy": "columns"}, [10, 20, 30], 1) == [0, 0, 30]


@pytest.mark.parametrize(
    ("gb", "policy", "says"),
    [
        (29e-9, "columns", "must be at least 3e-08, for what policy=columns takes first"),
        (1e-9, "heads", "must be at least 2e-09, for what policy=heads takes first"),
        (-1.0, "heads", "must be at least 2e-09"),
        (60e-9, "heads", "must be below 6e-08, the whole table: strategy=device"),
        (float("nan"), "columns", "must be below 6e-08"),
    ],
)
def test_what_is_no_split_is_refused(gb, policy, says):
    with pytest.raises(ConfigError, match=rf"^lookup.gb={gb}: {says}"):
        near_rows({"gb": gb, "policy": policy}, [10, 20, 30], 1)


def test_a_damaged_copy_is_found():
    lookup, table = split([10, 20], FORMATS[0], 100e-9, "heads")
    lookup.near.view(torch.uint8)[-1, -1] ^= 1
    with pytest.raises(MismatchError, match=r"^lookup: 1 of 9 rows in the cache differ from the table"):
        require_kept("lookup", lookup, table)


def test_it_knows_what_it_keeps_and_what_crosses():
    places = {"table": "host", "hashing": "device", "lookup": "device", "projection": "device"}
    geometry = demo_geometry()
    half = {"gb": geometry.table_bytes / 2e9, "policy": "heads"}
    tasks = tasks_of(places, {"lookup": SplitLookup}, options=half)
    plain = tasks_of(places, {})
    load, whole = (next(t.load for t in each if t.load.stage.name == "lookup") for each in (tasks, plain))
    kept = SplitLookup.keeps(load)["device"] - load.bytes_of(load.stage.makes) - sort_bytes(load)
    assert kept == pytest.approx(geometry.table_bytes / 2, rel=1e-4)
    crossing = SplitLookup.work(load)["link rows"] / SplitLookup.__mro__[1].work(whole)["link rows"]
    assert crossing == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(ConfigError, match=r"must be below 0.001: no more device memory is free"):
        SplitLookup.refuse(load, free_bytes=10**6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "overrides",
    [["lookup.policy=columns"], pytest.param([*DECODE, "cases=[fetch,ready,step]"], marks=pytest.mark.slow)],
)
def test_a_run_counts_what_its_device_memory_spares(run_inline, device, overrides):
    capture = "none" if device == "cpu" else "graph"
    rows = run_inline(
        "strategy=split", f"hardware={device}", f"capture={capture}", "lookup.gb=0.0000015", "cases=[lookup,full]",
        "dtype=fp8", *overrides,
    )  # fmt: skip
    assert set(statuses(rows).values()) == {"ok"}, rows
    for row in (row for row in rows if row["case"] != "ready"):
        assert 0.2 < row["cache_hit_rate"] < 0.9
        assert row["cache_policy"] == ("columns" if "lookup.policy=columns" in overrides else "heads")
        assert row["cache_gb"] == 1.5e-6
