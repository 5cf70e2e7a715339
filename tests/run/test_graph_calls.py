"""Several calls of a stage as one CUDA graph: which they are, that they are seen, and what is timed without one."""

import pytest
import torch
from common import TINY
from hypothesis import example, given
from hypothesis import strategies as st
from places import bench_of

from engram_exp.run import built, graph_calls, rows
from engram_exp.run.graph_calls import CACHE_SIZES, MOST_GRAPHS, Graphs, graph_calls_of, in_groups
from engram_exp.run.job import Job
from engram_exp.run.job_rows import failed_rows
from engram_exp.run.plan import Plan
from engram_exp.steps.lookup.triton import TritonLookup


@given(st.integers(1, 300), st.integers(1, 80))
@example(number=255, size=256)
@example(number=256, size=1)
def test_groups_are_full_and_no_call_comes_again_before_its_turn(number, size):
    groups = in_groups(range(number), size)
    assert {len(group) for group in groups} == {size}
    assert len(groups) <= min(MOST_GRAPHS, max(number // size, size))
    in_turn = [call for group in groups for call in group]
    used = len(set(in_turn))
    if number < size:
        assert used == number or used >= MOST_GRAPHS
    else:
        assert used == min(number // size, MOST_GRAPHS) * size
    endless = in_turn * 2  # as samples rotate through them
    assert all(endless[at] == endless[at - used] for at in range(used, len(endless)))
    assert len(in_turn) % used == 0


@pytest.mark.parametrize(
    ("options", "case", "calls"),
    [
        (["strategy=uva"], "hashing", 8),
        (["strategy=uva"], "lookup", 8),
        (["strategy=uva", "lookup=distinct_link"], "lookup", 8),
        (["strategy=uva"], "full", 0),
        (["strategy=kv_on_gpu"], "lookup", 0),
        (["strategy=kv_on_gpu"], "projection", 8),
        (["strategy=both"], "lookup", 0),
        (["strategy=cached", "lookup.gb=0.001"], "lookup", 8),
        (["strategy=cached", "lookup.gb=0.001", "lookup.state=steady", "cases=[lookup]"], "lookup", 8),
        (["strategy=cached", "lookup.gb=0.001", "lookup.state=cold"], "lookup", 0),
        (["strategy=cached", "lookup.gb=0.001", "lookup.state=cold"], "hashing", 8),
        (["strategy=cached_copy", "lookup.gb=0.001"], "lookup", 0),
        (["strategy=split", "lookup.gb=0.001"], "lookup", 8),
    ],
)
def test_a_stage_that_the_device_does_alone_is_timed_in_graphs_unless_it_must_find_no_row_kept(
    configure, options, case, calls
):
    assert graph_calls_of(Plan(configure(*TINY, *options, "graph_calls=8")), case) == calls
    assert graph_calls_of(Plan(configure(*TINY, *options)), case) == 0


def test_without_a_cuda_device_graphs_are_refused(run_inline):
    (row,) = run_inline("graph_calls=8", "cases=[projection]")
    assert row["status"] == "refused"
    assert row["error"] == "graph_calls=8: needs a CUDA device, and this is cpu; use graph_calls=0"
    assert (row["graph_calls"], row["options"].count("graph_calls")) == (8, 0)


def test_a_group_looks_like_its_last_call(configure, launched, monkeypatch):
    asked, call = [], TritonLookup.__call__
    with torch.inference_mode():
        tiny = "strategy=uva", "capture=none", "batch_size=1", "seq_len=1", "cases=[lookup]"
        bench = bench_of(configure(*TINY, *tiny, "graph_calls=3"))
        bench.build()
        assert not bench.errors, bench.errors
        bench.capture()
        case = bench.timed("lookup")
        monkeypatch.setattr(TritonLookup, "__call__", lambda self, ids: (asked.append(ids), call(self, ids))[1])
        (group,) = case.calls
        (rows,) = group()
    assert case.times == 3
    assert list(map(id, asked)) == [id(ids) for (ids,) in bench.built.inputs["lookup"][:3]]
    assert group.args[0][0] is asked[-1]
    assert torch.equal(rows, bench.parts.table.parts[0][asked[-1].flatten().long()].view(rows.shape))


def test_rows_and_card_tell_which_cases_were_timed_in_graphs(run_inline, launched, capsys):
    rows = run_inline("graph_calls=3", "cases=[lookup,projection,full]")
    assert [(row["case"], row["status"], row["graph_calls"]) for row in rows] == [
        ("lookup", "ok", 0), ("projection", "ok", 3), ("full", "ok", 0),
    ]  # fmt: skip
    assert capsys.readouterr().out.count("3 calls in one graph") == 1


def test_a_graph_that_returns_other_than_its_calls_is_a_mismatch(run_inline, launched, monkeypatch):
    monkeypatch.setattr(
        graph_calls, "Replay", lambda run, pool: lambda tensors: tuple(tensor.mul_(2) for tensor in run(tensors))
    )
    (row,) = run_inline("graph_calls=3", "cases=[projection]")
    assert (row["status"], "wall_ms_median" in row) == ("mismatch", False)


def test_before_a_graph_as_much_is_written_as_fills_the_cache_some_times(configure, launched, monkeypatch):
    monkeypatch.setattr(graph_calls, "cache_bytes", lambda device: 1000)
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, "graph_calls=3", "cases=[projection,full]"))
        bench.build()
        bench.capture()
        scratch, case = bench.graphs.scratch.fill_(1), bench.timed("projection")
        case.restore(case.calls[0])
        assert bench.timed("full").restore is None
    assert (scratch.nbytes, scratch.any()) == (CACHE_SIZES * 1000, False)


def test_what_measuring_takes_is_no_memory_of_the_strategy(run_inline, launched, monkeypatch):
    captured = []
    monkeypatch.setattr(graph_calls, "Replay", lambda run, pool: captured.append(run) or run)
    for module in (built, graph_calls, rows):
        monkeypatch.setattr(module, "peak_bytes", lambda device: {"peak_device_bytes": 100 + len(captured)})
    found = run_inline("graph_calls=3", "cases=[lookup,projection,full]", "fusion=none")
    assert captured
    assert [(row["status"], row["peak_device_bytes"]) for row in found] == [("ok", 100)] * 3


def test_where_measuring_takes_too_much_memory_a_case_ends_and_not_the_run(run_inline, launched, monkeypatch):
    def none_left(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Graphs, "scratch", property(none_left))
    found = run_inline("graph_calls=3", "cases=[hashing,lookup,projection]")
    assert [row["status"] for row in found] == ["ok", "ok", "oom_device"]


@pytest.mark.parametrize(
    "options",
    [
        ["strategy=kv_on_gpu", "dtype=fp8", "fusion=gated_conv", "decoder=dense_8b"],
        ["strategy=both"],
        ["strategy=distinct"],
        ["strategy=cached", "lookup.gb=0.001"],
        ["strategy=cached", "lookup.gb=0.001", "lookup.state=cold"],
        ["strategy=cached_copy", "lookup.gb=0.001"],
    ],
)
def test_failed_rows_are_of_the_same_subjects_as_others(configure, tmp_path, options):
    config = configure(*TINY, *options, "graph_calls=8", "cases=all")
    plan, job = Plan(config), Job.create(config, {}, tmp_path)
    failed = {row["case"]: row["graph_calls"] for row in failed_rows(job, "timeout", "")}
    assert failed == {case: graph_calls_of(plan, case) for case in job.cases}
    assert set(failed.values()) == {0, 8}


def test_the_card_says_that_no_case_is_timed_in_graphs(run_inline, launched, capsys):
    for cases, told in ("[lookup,full]", 1), ("[lookup,projection]", 0):
        run_inline("graph_calls=3", f"cases={cases}")
        assert capsys.readouterr().out.count("3, but no case of this run is timed so") == told


@pytest.mark.accelerator
@pytest.mark.parametrize("strategy", ["uva", "device", "kv_on_gpu", "cached"])
def test_graphs_are_replayed_verified_and_timed(run_inline, configure, strategy):
    options = f"strategy={strategy}", "hardware=cuda", "dtype=fp8", "fusion=gated_conv", "graph_calls=8", "batches=20"
    options += ("lookup.gb=0.001",) if strategy == "cached" else ()
    rows = run_inline(*options, "iterations=20")
    assert {row["status"] for row in rows} == {"ok"}, rows
    timed_so = {row["case"] for row in rows if row["graph_calls"] == 8}
    assert timed_so == {row["case"] for row in rows if row["case"] in ("projection", "fusion", "widening")} | (
        set() if strategy == "kv_on_gpu" else {"hashing", "lookup"}
    )
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, *options))
        bench.build()
        bench.capture()
    graphs = [graph.func for graphs in bench.graphs.of_case.values() for graph in graphs]
    assert all(graph.graph for graph in graphs), "captured before samples"
    assert {graph.pool for graph in graphs} == {bench.graphs.pool} != {None}


@pytest.mark.accelerator
def test_a_cache_in_its_steady_state_hits_as_often_in_graphs_as_one_by_one(run_inline):
    """Streams of text; a set has so many lines that it forgets nothing within the run."""
    steady = "strategy=cached", "hardware=cuda", "lookup.gb=0.01", "lookup.state=steady", "cases=[lookup]"
    steps = (
        "seq_len=1",
        "batch_size=16",
        "batches=512",
        "tokens.concurrency=16",
        "tokens.history=true",
        "iterations=400",
    )
    (alone,), (in_graphs,) = (
        run_inline(*steady, *steps, "tokens=text", calls) for calls in ("graph_calls=0", "graph_calls=16")
    )
    assert (alone["status"], in_graphs["status"], in_graphs["graph_calls"]) == ("ok", "ok", 16)
    assert in_graphs["cache_hit_rate"] == pytest.approx(alone["cache_hit_rate"], abs=0.05)


@pytest.mark.accelerator
def test_a_row_that_is_wrong_in_a_graph_alone_is_a_mismatch(run_inline, monkeypatch):
    def wrong(self, row_ids, original=TritonLookup.__call__):
        rows = original(self, row_ids)
        if torch.cuda.is_current_stream_capturing():
            rows[-1].add_(1)
        return rows

    monkeypatch.setattr(TritonLookup, "__call__", wrong)
    options = "strategy=uva", "capture=none", "hardware=cuda", "cases=[hashing,lookup]"
    assert [row["status"] for row in run_inline(*options)] == ["ok", "ok"]
    hashed, looked_up = run_inline(*options, "graph_calls=8")
    assert (hashed["status"], looked_up["status"]) == ("ok", "mismatch")
