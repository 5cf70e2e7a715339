"""Loops on one thread and on several: the same results, kept apart, and chosen by size."""

import numba
import numpy as np
import pytest
import torch
from numba import prange
from places import CPU

from engram_exp.layer.row_format import RowFormat
from engram_exp.steps.hashing import numba as hashing
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.lookup import gather
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.loops import Loop, threads_for
from engram_exp.steps.tables.host import HostTable
from engram_exp.steps.widening import numba as widening
from engram_exp.steps.widening.numba import NumbaWidening

ALL = numba.config.NUMBA_NUM_THREADS
THREADS = ["auto", *sorted({1, min(2, ALL), ALL})]


def counting_loop():
    def count_up(numbers):
        for index in prange(len(numbers)):
            numbers[index] = index

    return Loop(count_up)


@pytest.mark.slow
def test_both_forms_of_a_loop_are_compiled_and_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled, loaded = counting_loop(), counting_loop()
    for loop in (compiled, loaded):
        for form in (loop.alone, loop.together):
            numbers = np.zeros(100, np.int64)
            form(numbers)
            assert np.array_equal(numbers, np.arange(100))
    assert len(list(tmp_path.rglob("*.nbi"))) == 2, "one would load what was compiled for the other"
    assert [sum(form.stats.cache_hits.values()) for form in (loaded.alone, loaded.together)] == [1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Cannot cache compiled function")
@pytest.mark.parametrize("threads", range(2, ALL + 1))
def test_a_team_is_as_large_as_asked_and_leaves_that_of_the_others_as_it_was(threads):
    def take_part(team):
        for index in prange(len(team)):
            team[index] = numba.get_num_threads()

    team = np.zeros(100, np.int64)
    Loop(take_part)(threads, team)
    assert set(team) == {threads}
    assert numba.get_num_threads() == ALL


def test_one_thread_and_all_of_them_take_no_look_at_the_team(monkeypatch):
    def refuse(*_):
        raise AssertionError("this takes microseconds")

    loop = counting_loop()
    monkeypatch.setattr(loop, "together", lambda: "together")
    monkeypatch.setattr(loop, "alone", lambda: "alone")
    monkeypatch.setattr(numba, "get_num_threads", refuse)
    assert (loop(1), loop(None)) == ("alone", "together")


@pytest.mark.parametrize(("threads", "rows", "given"), [("auto", 99, 1), ("auto", 100, None), (1, 100, 1), (4, 1, 4)])
def test_small_loops_wake_nobody_unless_told_to(threads, rows, given):
    assert threads_for(threads, rows, together_from_rows=100) == given


def sizes_around(rows, columns):
    """Tokens whose rows are just too few, and just enough."""
    first = -(-rows // columns)
    return [first - 1, first]


@pytest.mark.parametrize("threads", THREADS)
def test_row_ids_do_not_depend_on_threads(tiny_plan, threads, monkeypatch):
    monkeypatch.setattr(hashing, "TOGETHER_FROM_ROWS", 1000)
    for tokens in (1, *sizes_around(1000, tiny_plan.columns), 1000, 1):
        ids, history = torch.randint(0, 1000, (tokens, 2)), torch.randint(-1, 1000, (tokens, 2))
        got = NumbaHasher(tiny_plan, 2000, CPU, threads)(ids, history)
        assert torch.equal(got, tiny_plan.row_ids(ids, history))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("threads", THREADS)
def test_rows_do_not_depend_on_threads(threads, split, monkeypatch):
    monkeypatch.setattr(gather, "TOGETHER_FROM_ROWS", 1500)
    table = HostTable(3000, RowFormat(256, torch.bfloat16, 32, split), 5, CPU, huge_pages=False, pinned=False)
    lookup = GatherLookup(table, 1000, 3, CPU, threads)
    for tokens in (1, *sizes_around(1500, 3), 1000, 1):
        row_ids = torch.randint(0, 3000, (tokens, 1, 3), dtype=torch.int32)
        row_ids.view(-1)[[0, -1]] = torch.tensor([0, 2999], dtype=torch.int32)
        assert torch.equal(lookup(row_ids), table.contents(row_ids).reshape(tokens, -1))


@pytest.mark.parametrize("threads", THREADS)
def test_a_row_outside_of_the_table_is_an_error_on_any_thread(threads):
    table = HostTable(10, RowFormat(8, torch.float32), 5, CPU, huge_pages=False, pinned=False)
    lookup = GatherLookup(table, 600, 1, CPU, threads)
    row_ids = torch.zeros(600, 1, 1, dtype=torch.int32)
    row_ids[[0, 599]] = torch.tensor([-1, 10], dtype=torch.int32)[:, None, None]
    with pytest.raises(IndexError, match="2 row ids are outside of 0 to 9"):
        lookup(row_ids)


@pytest.mark.parametrize("values_per_scale", [32, None])
def test_embeddings_do_not_depend_on_threads(values_per_scale, monkeypatch):
    monkeypatch.setattr(widening, "TOGETHER_FROM_ROWS", 200)
    row_format = RowFormat(64, torch.bfloat16, values_per_scale, one_scale=None if values_per_scale else 0.5)
    widen = NumbaWidening(row_format, 300, 1, CPU)
    for rows in (1, 199, 200, 300):
        stored = row_format.contents(torch.arange(rows), seed=1)
        assert torch.equal(widen(stored), row_format.widen(stored).flatten(1))
