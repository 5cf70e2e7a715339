"""Which runs share a worker, in which order, and the tables that they leave each other."""

import json
from types import SimpleNamespace

import pytest
import torch
from common import TINY

from engram_exp import load_results
from engram_exp.campaign.attempt import Planned
from engram_exp.campaign.sharing import batches, in_order
from engram_exp.run.kept_tables import KeptTables
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan
from engram_exp.steps.tables.host import HostTable

SETTINGS = [
    (f"batch_size={batch_size}", f"table={table}", f"hardware.threads={threads}")
    for batch_size in (1, 2)
    for table in ("huge", "pageable")
    for threads in (1, 2)
]


@pytest.fixture
def planned(configure, tmp_path):
    """Runs of some settings, so often each."""

    def plan(*overrides, settings=SETTINGS, repeats=2):
        asked = (*TINY, *overrides, f"repeats={repeats}")
        configs = [configure(*asked, *each) for each in settings]
        return [Planned(config, {}, tmp_path, repeat, ()) for config in configs for repeat in range(repeats)]

    return plan


def told(run):
    config = run.config
    return run.repeat, config.hardware.threads, config.table._target_, config.batch_size


def test_runs_that_share_a_worker_stand_beside_each_other(planned):
    todo = planned("worker=shared")
    ordered = in_order(todo)
    assert sorted(map(told, ordered)) == sorted(map(told, todo))
    shared = list(batches(ordered))
    assert [len(runs) for runs in shared] == [4] * 4
    for runs in shared:
        assert len({told(run)[:2] for run in runs}) == 1, "one repetition, in one kind of process"
        tables = [told(run)[2] for run in runs]
        assert tables in ([*[tables[0]] * 2, *[tables[-1]] * 2],), "each table is filled once"
    orders = {tuple(told(run)[1:] for run in ordered if run.repeat == repeat) for repeat in range(2)}
    assert len(orders) == 2, "each repetition has an order of its own"


def test_others_have_one_each(planned):
    ordered = in_order(planned("worker=process"))
    assert [len(runs) for runs in batches(ordered)] == [1] * len(ordered)
    assert [run.repeat for run in ordered] != sorted(run.repeat for run in ordered), "shuffled over all repetitions"


@pytest.mark.parametrize(
    "alone", [("strategy=disk", "table.path=/tmp/none"), ("memory_limit_gb=1",), ("nodes=2", "ranks=2")]
)
def test_what_changes_its_process_or_the_page_cache_or_is_on_several_nodes_is_alone(planned, alone):
    ordered = in_order(planned("worker=shared", *alone, settings=[("batch_size=1",), ("batch_size=2",)]))
    assert [len(runs) for runs in batches(ordered)] == [1] * 4


def test_a_table_is_filled_once_and_forgotten_when_nobody_needs_it():
    filled, tables = [], KeptTables()

    def fill(name, place="host", **more):
        def now():
            filled.append(name)
            return SimpleNamespace(place=place, parts=(torch.zeros(4, 2), torch.zeros(4)), **more)

        return tables.of(name, now)

    first = fill("a")
    assert fill("a") is first
    fill("b", "device")
    fill("c", is_one_for_all=True)
    assert tables.bytes_by_place(local_size=2) == {"host": 48 + 24, "device": 48}
    tables.keep_only(["b"])
    assert tables.bytes_by_place(local_size=2) == {"device": 48}
    fill("a")
    assert filled == ["a", "b", "c", "a"]


def test_runs_behind_the_first_find_the_process_as_it_was_told_to_be(call, tmp_path):
    """A library has tied its thread to one CPU by then."""
    done = call("-m", "worker=shared", "hardware.pin_threads=true", "cases=[hashing]", "batch_size=1,2,3", "repeats=2")
    assert done.returncode == 0, done.stderr
    frame = load_results(tmp_path)
    for _, runs_of in frame.groupby("repeat"):
        assert sorted(runs_of["runs_before"]) == [0, 1, 2]
        assert runs_of.sort_values("runs_before")["started_at"].is_monotonic_increasing
    assert frame["threads"].nunique() == 1
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("environment.json")]
    assert len({len(record["load_before"]["busy_share"]) for record in records}) == 1


def test_a_sweep_has_one_kind_of_worker(call_here):
    done = call_here("-m", "worker=process,shared")
    assert done.returncode == 2
    assert "worker=shared: is one for all of a sweep; two campaigns compare them" in done.stderr


class AsksForMore(HostTable):
    """A table whose contents follow from what no text of the settings tells."""

    def __init__(self, rows, row_format, seed, placement, huge_pages, pinned, max_tokens):
        super().__init__(rows, row_format, seed, placement, huge_pages, pinned)


@pytest.mark.parametrize(("kind", "kept"), [(HostTable, True), (AsksForMore, False)])
def test_a_table_of_others_that_asks_for_more_is_of_one_run(configure, kind, kept):
    config = configure(*TINY, f"table._target_={kind.__module__}.{kind.__name__}")
    tables = KeptTables()
    first, second = (Parts(Plan(config), tables=tables).table for _ in range(2))
    assert (first is second) == kept
    assert bool(tables.bytes_by_place(local_size=1)) == kept
