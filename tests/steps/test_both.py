"""Rows that the CPU and the GPU fetch between them: each once, each in its place."""

import pytest
import torch
from asked import tasks_of
from common import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import get_num_threads
from places import KERNEL_DEVICE, built_stages, parts_of

from engram_exp.config.checks import check
from engram_exp.errors import ConfigError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_components
from engram_exp.stage import Strategy
from engram_exp.steps.lookup.both import BothLookup
from engram_exp.steps.lookup.gather import TOGETHER_FROM_ROWS, GatherLookup
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import LINK

ON_CUDA = KERNEL_DEVICE.type == "cuda"
PINNABLE = Placement(torch.device("cpu"), pinned=ON_CUDA)
LAUNCH = {"order": "auto", "sort_from_rows": 20, "rows_per_program": 8, "warps": 4, "programs": 2}
HERE = ("strategy=both", f"hardware={KERNEL_DEVICE.type}")


def slow_gather(self, row_ids, original=GatherLookup.__call__):
    torch.cuda._sleep(20_000_000)  # on the stream that copies: some 10 ms
    return original(self, row_ids)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 60), tokens=st.integers(1, 8), columns=st.integers(1, 3), share=st.floats(0.01, 0.99),
    chunks=st.integers(1, 5), split=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_of_both_stand_where_they_are_asked_for(rows, tokens, columns, share, chunks, split, seed):
    row_format = RowFormat(24, torch.bfloat16, values_per_scale=16 if split else None, split=split)
    table = HostTable(rows, row_format, 0, PINNABLE, huge_pages=False, pinned=True)
    lookup = BothLookup(table, 8, columns, Placement(KERNEL_DEVICE), share, chunks, **LAUNCH)
    row_ids = torch.randint(rows, (1, tokens, columns), generator=torch.Generator().manual_seed(seed))
    row_ids = row_ids.to(torch.int32)
    got = lookup(row_ids.pin_memory() if ON_CUDA else row_ids).cpu()
    assert torch.equal(got, table.contents(row_ids).reshape(tokens, -1))


def test_each_side_gets_its_share(monkeypatch):
    table = HostTable(50, RowFormat(8, torch.float32), 0, PINNABLE, huge_pages=False, pinned=True)
    lookup = BothLookup(table, 40, 1, Placement(KERNEL_DEVICE), 0.3, 4, **LAUNCH)
    by_gpu, by_cpu = [], []
    monkeypatch.setattr(lookup, "read", lambda row_ids: by_gpu.append(row_ids.numel()))
    for number, gather in enumerate(lookup.gathers):
        lookup.gathers[number] = lambda row_ids, own=gather: (by_cpu.append(row_ids.numel()), own(row_ids))[1]
    lookup(torch.zeros(1, 40, 1, dtype=torch.int32))
    assert (by_gpu, by_cpu) == ([28], [3, 3, 3, 3])


@pytest.mark.parametrize(("rows", "alone"), [(100, True), (TOGETHER_FROM_ROWS + 1, False)])
def test_threads_of_the_cpu_follow_from_all_of_its_rows(rows, alone):
    table = HostTable(50, RowFormat(2, torch.float32), 0, PINNABLE, huge_pages=False, pinned=True)
    lookup = BothLookup(table, 2 * rows, 1, Placement(KERNEL_DEVICE), 0.5, 4, **LAUNCH)
    assert {gather.threads for gather in lookup.gathers} == {1 if alone else get_num_threads()}


def test_rows_of_both_cross_the_link_once():
    places = {"table": "host", "hashing": "host", "lookup": LINK, "projection": "device"}
    (task,) = (each for each in tasks_of(places, {"lookup": BothLookup}) if each.load.stage.name == "lookup")
    load = task.load
    stored = load.geometry.stored_bytes(load.tokens)
    assert task.kind.work(load) == {"link rows": stored, "device memory": stored}
    assert (load.stage.read_from, load.stage.side) == ("host", "device")


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_run_has_its_rows(run_inline, dtype):
    rows = run_inline(*HERE, f"dtype={dtype}", "fusion=gated_conv")
    statuses = {row["case"]: row["status"] for row in rows}
    widening = ["widening"] if dtype == "fp8" else []
    assert list(statuses) == ["hashing", "lookup", *widening, "projection", "fusion", "full", "layer"]
    assert set(statuses.values()) == {"ok"}, rows


def refuse(config):
    check(config)
    plan = Plan(config)
    check_components(plan)
    parts = Parts(plan)
    for stage in plan.stages:
        parts.stage(stage)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["strategy=both", "lookup.share=0"], "lookup.share=0: must be above 0"),
        (["strategy=both", "lookup.share=1.0"], "lookup.share=1.0: must be above 0 and below 1; strategy=uva"),
        (["strategy=both", "lookup.chunks=0"], "lookup.chunks=0: must be at least 1"),
        (["strategy=both", "lookup=triton_link"], "lookup: takes rows in one place"),
        (["strategy=uva", "lookup=both"], "lookup: takes rows by the CPU and the GPU"),
        (
            ["strategy=both", "schedule=pipelined"],
            "schedule=pipelined: hashing runs on the host and the lookup does not",
        ),
        (["strategy=both", "schedule=graph"], "capture=graph: hashing runs on the host"),
        (["strategy=both", "strategy.hashing=device"], "strategy.lookup=link: must be device"),
        (["strategy=both", "strategy.table=device"], "strategy.lookup=link: must be device, since the table"),
        (["strategy=both", "strategy.projection=host"], "strategy.projection=host: must be device"),
        (["strategy=both", "strategy.hashing=link"], "strategy.hashing=link: must be one of host, device"),
    ],
)
def test_what_cannot_be_shared_is_refused(configure, overrides, says):
    config = configure(*overrides, "hardware=cpu", "model.table_scale=0.001")
    with pytest.raises(ConfigError, match=f"^{says}"):
        refuse(config)


@pytest.mark.accelerator
@pytest.mark.parametrize("waits", [True, False])
def test_the_device_waits_for_the_rows_of_the_cpu(configure, monkeypatch, waits):
    parts = parts_of(configure(*TINY, "strategy=both", "hardware=cuda", "seq_len=500", "lookup.share=0.9"))
    with torch.inference_mode():
        strategy = Strategy(list(built_stages(parts).values()))
        first, second = parts.batches[:2]
        want = strategy(second)[0].clone()
        torch.cuda.synchronize()
        strategy(first)
        torch.cuda.synchronize()
        monkeypatch.setattr(GatherLookup, "__call__", slow_gather)
        if not waits:
            monkeypatch.setattr(BothLookup, "device_waits", lambda self: None)
        keys = strategy(second)[0].clone()
        torch.cuda.synchronize()
    assert torch.equal(keys, want) == waits


@pytest.mark.accelerator
@pytest.mark.parametrize("waits", [True, False])
def test_rows_are_overwritten_when_they_have_been_read(monkeypatch, waits):
    if not waits:
        monkeypatch.setattr(BothLookup, "copying_waits", lambda self: None)
    table = HostTable(1000, RowFormat(32, torch.float32), 0, PINNABLE, huge_pages=False, pinned=True)
    lookup = BothLookup(table, 5000, 1, Placement(KERNEL_DEVICE), 0.9, 4, **LAUNCH)
    first, second = (torch.full((1, 5000, 1), row, dtype=torch.int32).pin_memory() for row in (1, 2))
    rows = lookup(first)
    torch.cuda.synchronize()
    want = rows.clone()
    torch.cuda._sleep(200_000_000)  # some 100 ms, in which the CPU has gathered and copied
    read = rows.clone()
    lookup(second)
    torch.cuda.synchronize()
    assert torch.equal(read, want) == waits
