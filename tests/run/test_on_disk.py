"""Runs whose table lies on a disk: the state of its file before calls, what they read, and what becomes of bad ones."""

import os
from types import SimpleNamespace

import pytest
import torch
from common import TINY, runs
from in_step import CASES, PROMPT, statuses
from places import bench_of, parts_of

from engram_exp import load_results
from engram_exp.config.checks import check
from engram_exp.errors import ConfigError
from engram_exp.machine import disk
from engram_exp.measure.loop import Case
from engram_exp.run.on_disk import Files, disk_tables, proven, reads_disk
from engram_exp.run.row_cache import require_kept
from engram_exp.steps.lookup.hot_rows import FINDING_BYTES
from engram_exp.steps.tables.row_file import RowFile
from engram_exp.strategy.costs import work

DISK = ("strategy=disk", "model.vocab_per_order=[5000,7000]", "schedule=serial")


@pytest.fixture
def asked(tmp_path):
    if disk.file_system(tmp_path)[0] in disk.IN_MEMORY:
        pytest.skip("files here lie in memory")
    return (*DISK, f"table.path={tmp_path / 'tables'}")


@pytest.mark.parametrize("lookup", ["mmap", "pread", "direct", "io_uring", "gather", "distinct"])
@pytest.mark.parametrize("state", ["cold", "warm", "as_is"])
def test_every_way_is_right_in_every_state_and_tells_what_it_read(run_inline, asked, lookup, state):
    rows = run_inline(*asked, f"lookup={lookup}", f"cache_state={state}", "cases=[hashing,lookup,full]")
    if {row["status"] for row in rows} & {"skipped", "refused"}:
        pytest.skip(rows[0]["error"])
    by_case = {row["case"]: row for row in rows}
    assert {row["status"] for row in rows} <= {"ok", "suspect"}, rows
    assert {row["page_cache"] for row in rows} == {state}
    assert {row["strategy"] for row in rows} == {"tiny" if state == "cold" else f"tiny cache_state={state}"}
    assert by_case["hashing"].get("asked_bytes") is None
    told = by_case["lookup"]
    assert told["asked_bytes"] == 2 * 12 * 4 * 16, "tokens, columns, bytes of a row"
    if told["read_bytes"] is not None:
        assert told["read_amplification"] == told["read_bytes"] / told["asked_bytes"]
    if state == "cold":
        assert told["resident_share"] in (None, 0)
        assert (told["warm_ms_median"] is None) == (lookup in ("direct", "io_uring"))
    elif state == "warm":
        assert told["resident_share"] in (None, 1)
        assert told["warm_ms_median"] is None
    if lookup == "pread":
        assert told["reads"] == 2 * 12 * 4


def test_a_pipeline_reads_a_file_chunk_by_chunk(run_inline, asked):
    rows = run_inline(*asked, "lookup=direct", "schedule=pipelined", "schedule.chunk_tokens=5", "cases=[lookup,full]")
    if rows[0]["status"] == "refused":
        pytest.skip(rows[0]["error"])
    assert statuses(rows) == {"lookup": "ok", "full": "ok"}
    assert rows[1]["chunk_tokens"] == 5
    assert rows[1]["asked_bytes"] == rows[0]["asked_bytes"]


@pytest.mark.parametrize("lead", ["this_step", "previous_step"])
def test_rows_of_a_file_are_fetched_in_a_models_step(run_inline, asked, lead):
    rows = run_inline(*asked, *PROMPT, "lookup=pread", f"prefetch.lead={lead}", CASES)
    by_case = {row["case"]: row for row in rows}
    assert set(statuses(rows)) == {"fetch", "decoder", "ready", "step"}
    assert {by_case[case]["status"] for case in ("decoder", "ready")} == {"ok"}
    assert {row["status"] for row in rows} <= {"ok", "suspect"}
    assert by_case["step"]["asked_bytes"] == by_case["fetch"]["asked_bytes"] == 2 * 2 * 12 * 4 * 16, "of both layers"
    assert by_case["decoder"].get("asked_bytes") is by_case["ready"].get("asked_bytes") is None


def test_a_layer_of_its_own_may_have_its_table_on_a_disk(run_inline, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its file lies where the option says, whatever the run's table is
    own = [each for each in asked if not each.startswith(("strategy", "table"))]
    rows = run_inline(*own, *PROMPT, "strategy=kv_on_gpu", "strategies.3=disk", "cases=[fetch]")
    assert statuses(rows) == {"fetch": "ok"}
    assert len(list((tmp_path / "outputs/tables").iterdir())) == 1
    assert (rows[0]["page_cache"], rows[0]["asked_bytes"]) == ("as_is", 2 * 12 * 4 * 16), "of one of two layers"


def test_a_split_tables_scales_stay_in_memory(run_inline, asked):
    options = ("dtype=fp8", "dtype.layout=split", "dtype.values_per_scale=4", "table.resident_scales=true")
    rows = run_inline(*asked, *options, "lookup=pread", "cases=[lookup]")
    assert rows[0]["asked_bytes"] == 2 * 12 * 4 * 8, "values alone"


@pytest.mark.parametrize("way", ["pread", "direct", "io_uring"])
def test_rows_in_memory_in_front_of_a_file_tell_how_many_they_were(run_inline, asked, way):
    options = ("tokens=zipf", "lookup.profile_tokens=500", "cases=[lookup,full]", "cache_state=cold")
    rates = []
    for rows in (0, 20, 20_000):
        hot_gb = rows * (16 + FINDING_BYTES) / 1e9
        rows = run_inline(*asked, *options, f"lookup={way}", f"lookup.hot_gb={hot_gb:.9f}")
        if {row["status"] for row in rows} & {"skipped", "refused"}:
            pytest.skip(rows[0]["error"])
        assert {row["status"] for row in rows} <= {"ok", "suspect"}, rows
        assert rows[0]["hot_gb"] == pytest.approx(hot_gb)
        rates.append(rows[0]["hot_hit_rate"])
    assert rates[0] is None
    assert 0 <= rates[1] <= rates[2] < 1
    assert rates[2] > 0.1, "of Zipf's ids, other tokens ask for the same"


@pytest.mark.parametrize("schedule", ["serial", "pipelined"])
@pytest.mark.parametrize(("state", "case"), [("warm", "full"), ("cold", "lookup"), ("steady", "full")])
def test_rows_that_were_asked_for_last_are_warm_or_cold_on_purpose(run_inline, asked, schedule, state, case):
    """Of few rows, so that batches ask for some of those that others have asked for."""
    options = ("lookup=pread", "lookup.policy=lru", "lookup.hot_gb=0.1", f"lookup.state={state}", "batches=8")
    chunks = ("schedule=pipelined", "schedule.chunk_tokens=5") if schedule == "pipelined" else ()
    (row,) = run_inline(*asked, *options, *chunks, f"cases=[{case}]", "cache_state=cold", "iterations=4")
    assert row["status"] in (("suspect",) if state == "warm" else ("ok", "suspect")), row
    told = row["cache_policy"], row["cache_state"], row["cache_gb"], row.get("cache_hit_rate"), row.get("link_bytes")
    assert told == ("lru", state, None, None, None)
    once = row["unique_row_fraction"]
    if state == "warm":
        assert row["hot_hit_rate"] == 1
        assert "no row was read from the file" in row["error"]
    elif state == "cold":
        assert row["hot_hit_rate"] == pytest.approx(1 - once, abs=0.1), "what a call itself repeats"
    else:
        assert 1 - once < row["hot_hit_rate"] < 1


def test_a_damaged_row_in_memory_is_a_mismatch(run_inline, asked, monkeypatch):
    def flip_a_bit_first(case, lookup, table):
        table.hot.rows[0, 0] ^= 1
        require_kept(case, lookup, table)

    monkeypatch.setattr("engram_exp.run.bench.require_kept", flip_a_bit_first)
    kept = "lookup=pread", "lookup.policy=lru", "lookup.hot_gb=0.1"
    (row,) = run_inline(*asked, *kept, "cases=[lookup]")
    assert (row["status"], row["error"].partition(" of ")[0]) == ("mismatch", "lookup: 1")


def test_rows_in_memory_count_as_memory_and_have_no_limit_of_the_disk(configure, asked):
    plan = parts_of(configure(*TINY, *asked, "lookup=direct", "lookup.hot_gb=0.5")).plan
    without = parts_of(configure(*TINY, *asked, "lookup=direct")).plan
    assert plan.footprint().host_bytes - without.footprint().host_bytes == 5 * 10**8
    assert {"disk rows", "host rows"} & set(work(plan.tasks_of("lookup"))) == {"host rows"}
    assert {"disk rows", "host rows"} & set(work(without.tasks_of("lookup"))) == {"disk rows"}
    empty = "lookup=direct", "lookup.hot_gb=0.5", "lookup.policy=lru", "lookup.state=cold"
    assert "disk rows" in work(parts_of(configure(*TINY, *asked, *empty)).plan.tasks_of("lookup"))


@pytest.mark.parametrize("lookup", ["mmap", "pread", "direct"])
def test_a_file_that_changes_is_a_row_and_no_crash(run_inline, asked, monkeypatch, lookup):
    """Rows are written over behind the check, as by a stranger."""
    ready = RowFile.ready

    def spoiled(self):
        ready(self)
        with self.path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(self.size_bytes - 4096))

    monkeypatch.setattr(RowFile, "ready", spoiled)
    rows = run_inline(*asked, f"lookup={lookup}", "cases=[lookup,full]")
    assert {row["status"] for row in rows} <= {"mismatch", "refused"}
    monkeypatch.setattr(RowFile, "ready", ready)
    rows = run_inline(*asked, f"lookup={lookup}", "cases=[lookup,full]")
    assert {row["status"] for row in rows} == {"refused"}
    assert "holds other rows than it should; delete it to have it made anew" in rows[0]["error"]


def test_a_file_that_is_cut_while_it_is_mapped_ends_its_run_alone(call, tmp_path, asked):
    """The kernel kills who touches a page that is no more: a row says so, and the run behind it goes on."""
    (tmp_path / "cutting.py").write_text(
        "import os\n"
        "from engram_exp.steps.lookup.mmap import MmapLookup\n"
        "class Cutting(MmapLookup):\n"
        "    def __call__(self, row_ids):\n"
        "        os.truncate(self.file, 4096)\n"
        "        return super().__call__(row_ids)\n"
        "    def __init__(self, table, max_tokens, columns, placement):\n"
        "        super().__init__(table, max_tokens, columns, placement, 'none')\n"
        "        self.file = table.files[0].path\n"
    )
    (tmp_path / "conf" / "lookup").mkdir(parents=True)
    (tmp_path / "conf" / "lookup" / "cutting.yaml").write_text("_target_: cutting.Cutting\n")
    searched = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    call("-m", *asked, "lookup=pread,cutting,gather", searched, "cases=[lookup]", PYTHONPATH=str(tmp_path))
    before, cut, behind = (load_results(folder).iloc[0] for folder in runs(tmp_path))
    assert before["status"] in ("ok", "suspect")
    assert (cut["status"], cut["error"].partition(";")[0]) == ("crash", "the worker was killed by SIGBUS")
    assert behind["status"] == "refused", "what is left of the file is no table"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["cache_state=cold"], r"^cache_state=cold: says nothing of a table in memory; strategy=disk has a file"),
        ([*DISK, "cache_state=hot"], r"^cache_state=hot: must be one of cold, warm, as_is"),
        ([*DISK, "lookup.queue_depth=0"], r"^lookup\.queue_depth=0: must be a whole number from 1 to"),
        ([*DISK, "strategy.lookup=device"], r"^strategy\.lookup=device: must be host, which alone reads files"),
        (["memory_limit_gb=0"], r"^memory_limit_gb=0\.0: must be above 0, or null for what the machine has"),
        (
            ["memory_limit_gb=1", "worker=inline"],
            r"^worker=inline: memory_limit_gb limits the one fresh process of a run",
        ),
        ([*DISK, "strategy.table=tape"], r"^strategy\.table=tape: must be host, device or disk"),
    ],
)
def test_what_cannot_be_is_refused_before_a_process_is_started(configure, overrides, told):
    with pytest.raises(ConfigError, match=told):
        check(configure(*TINY, *overrides))


def test_a_table_and_a_strategy_of_two_places_are_refused(run_inline):
    rows = run_inline("strategy=kv_on_gpu", "table=file")
    assert rows[0]["error"].startswith("table: ")
    assert "lives on the disk, but the strategy keeps its table on the host" in rows[0]["error"]


def test_only_cases_that_read_the_table_are_restored(configure, asked):
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, *asked, "lookup=pread"))
        bench.build()
        timed = {case: bench.timed(case) for case in bench.cases}
    assert {case for case, each in timed.items() if each.restore} == {"lookup", "full"}
    assert {case for case in timed if reads_disk(bench.plan.tasks_of(case))} == {"lookup", "full"}


def test_a_file_is_cold_before_every_call_and_warm_but_once(configure, asked):
    table, done = parts_of(configure(*TINY, *asked)).table, []
    noted = SimpleNamespace(make_cold=lambda: done.append("cold"), make_warm=lambda: done.append("warm"))
    for state, wanted in (("cold", ["before", "cold"] * 3), ("warm", ["before", "warm", "before", "before"])):
        restore = Files([noted], state).restore(behind=done.append)
        for _ in range(3):
            restore("before")
        assert done == wanted
        done.clear()
    assert Files([table], "as_is").restore() is None
    assert Files([table], "as_is").restore(behind=print) is print


def test_calls_that_are_looked_at_are_few(configure, asked):
    """Cold: each once, and once more with its rows in memory."""
    parts, called = parts_of(configure(*TINY, *asked, "lookup=pread")), []
    clock = SimpleNamespace(time=lambda call, uses_device: (call(), SimpleNamespace(wall_ms=900.0))[1])
    files = Files(disk_tables([parts]), "cold")
    calls = [lambda number=number: called.append(number) for number in range(5)]
    task = parts.plan.task(next(stage for stage in parts.plan.stages if stage.name == "lookup"))
    files.timed(Case("lookup", calls, False), [task])
    files.look("lookup", clock)
    files.look("hashing", clock)
    (found,) = files.found.values()
    assert called == [0, 0, 1, 1, 2, 2], "three have taken more than two seconds"
    assert found["warm_ms_median"] == 900
    assert found["reads"] is None


OWN = {"status": "ok", "wall_ms_median": 5.0, "wall_ms_lo": 4.0}
COLD = {"page_cache": "cold", "hot_hit_rate": None, "warm_ms_median": 1.0, "read_bytes": 1000.0, "asked_bytes": 1000}


@pytest.mark.parametrize(
    ("own", "found", "reason"),
    [
        ({}, {}, None),
        ({}, {"warm_ms_median": 3.9}, None),
        ({}, {"warm_ms_median": 4.0}, "5 ms are not more than the 4 ms with its rows in memory"),
        ({"wall_ms_lo": None}, {"warm_ms_median": 4.9}, None),
        ({"wall_ms_lo": None}, {"warm_ms_median": 5.0}, "it was not cold"),
        ({}, {"warm_ms_median": None}, None),
        ({}, {"read_bytes": 400.0}, "400 bytes were read from the disk, where rows of 450 had to be"),
        ({}, {"read_bytes": 460.0}, None),
        ({}, {"read_bytes": 280.0, "hot_hit_rate": 0.2}, None),
        ({}, {"read_bytes": 260.0, "hot_hit_rate": 0.2}, "260 bytes were read from the disk, where rows of 270 had to"),
        ({}, {"read_bytes": None}, None),
        ({}, {"read_bytes": 0.0}, None),
        ({}, {"page_cache": "warm", "warm_ms_median": 9.0}, None),
        ({"status": "mismatch"}, {"warm_ms_median": 9.0}, None),
    ],
)
def test_a_cold_time_that_nothing_proves_is_suspect(own, found, reason):
    own = {**OWN, **own}
    got = proven(own, {**COLD, **found}, 0.5)
    if reason is None:
        assert got == own
    else:
        assert got["status"] == "suspect"
        assert reason in got["error"]
    assert proven(own, {}, 0.5) == own
