"""Whole runs of several ranks, in processes of their own: what they leave, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import gettempdir

import psutil
import pytest
from common import ROOT, TINY

from engram_exp import advise, load_results, load_samples
from engram_exp.analysis.engines import Gpus
from engram_exp.machine.environment import gpus
from engram_exp.run.job import Job

pytestmark = pytest.mark.slow
WAIT_S = 120
ENDLESS = "iterations=10000000", "budget_s=1000", "cases=[lookup]"
WRONG = """
import os

from engram_exp.steps.lookup.anywhere import AnywhereLookup


class WrongLookup(AnywhereLookup):
    def __call__(self, row_ids):
        rows = super().__call__(row_ids)
        return rows.add_(1) if os.environ["RANK"] == "1" else rows
"""


@pytest.fixture
def start(configure, tmp_path):
    """Start the worker of a run of two ranks; it is ended with the test."""
    started = []

    def worker(*overrides, **variables):
        choices = {"strategy": "sharded", "exchange": "all_gather", "dtype": "bfloat16"}
        config = configure("strategy=sharded", *TINY, "ranks=2", *overrides)
        Job.create(config, choices, tmp_path).save()
        path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "engram_exp.run.worker", str(tmp_path)]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **variables}, start_new_session=True
        )
        started.append(process)
        return process

    yield worker
    for process in started:
        process.kill()
        process.wait()


def rows_of(folder, process):
    assert process.wait(WAIT_S) in (0, 1)
    frame = load_results(folder)
    return {row["case"]: row for row in frame.to_dict("records")}


def ranks_of(process, folder):
    """The processes of the ranks, by rank, once they take samples."""
    deadline = time.monotonic() + WAIT_S
    log = folder / "run.log"
    while not (log.exists() and "the first timed sample follows" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = psutil.Process(process.pid).children()
    return {int(each.environ()["RANK"]): each for each in found if "engram_exp.run.rank" in each.cmdline()}


def of_ranks():
    """Folders and shared memory of ranks."""
    names = [*Path(gettempdir()).glob("engram_exp-ranks-*"), *Path("/dev/shm").glob("*engram*")]
    return set(map(str, names))


@pytest.fixture
def left_behind():
    """What a test's ranks have left: not what a launcher did that another test had killed."""
    before = of_ranks()
    return lambda: of_ranks() - before


def test_ranks_that_ask_for_their_own_leave_one_set_of_rows(start, tmp_path):
    own = "exchange=all_to_all", "rank_batches=own", "save_tensors=true", "dtype=fp8"
    rows = rows_of(tmp_path, start(*own, "decoder=tiny", "decoder.layers=2", "decoder.engram_layers=[1]"))
    assert {row["status"] for row in rows.values()} == {"ok", "skipped"}
    lookup = rows["lookup"]
    told = ("ranks", "rank_batches", "exchange", "split", "iterations")
    assert [lookup[name] for name in told] == [2, "own", "all_gather", "strided", 3]  # the choice as it was named
    for row in (lookup, rows["step"]):
        assert row["tokens_per_s"] * row["wall_ms_median"] / 1e3 == pytest.approx(2 * 2 * 12)
    samples = load_samples(tmp_path).pivot(index="iteration", columns="case", values="wall_ms")
    assert rows["step"]["exposed_ms_median"] == pytest.approx((samples["step"] - samples["ready"]).median())
    assert (tmp_path / "tensors.safetensors").exists()
    assert (tmp_path / "run.1.log").exists()


@pytest.mark.parametrize(
    "ways",
    [
        ("strategy=host_shared", "projection=column_parallel"),
        ("strategy=replicated", "exchange=peer"),
        ("exchange=peer",),
    ],
)
def test_every_rank_is_right_wherever_the_table_is(start, tmp_path, ways, left_behind):
    rows = rows_of(tmp_path, start(*ways, "ranks=3", "batch_size=1"))
    assert {row["status"] for row in rows.values()} == {"ok", "skipped"}
    shares_out = ways == ("exchange=peer",)
    assert rows["full"]["exchange"] == ("all_gather" if shares_out else "")
    assert rows["full"]["split"] == ("strided" if shares_out else "")
    assert not left_behind()


def test_the_program_runs_ranks_as_it_runs_one(call, tmp_path):
    done = call("ranks=2", "strategy=sharded", "exchange=peer", "cases=[full]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 on this host, memory and work below of each" in done.stdout
    assert done.stdout.count("timed full") == 1
    found = load_results(tmp_path / "out").assign(device="cuda")  # advice takes no CPU that stands in for GPUs
    (row,) = found.to_dict("records")
    assert (row["status"], row["ranks"], row["exchange"], row["split"]) == ("ok", 2, "peer", "strided")
    advice = advise(found, "demo", decode=row["batch_size"] * row["seq_len"], prefill=1, device_memory_gb=1)
    assert (advice.gpus, advice.choices[0].strategy) == (Gpus(2, "same"), "sharded exchange=peer")
    assert advice.placements[0].device_gb == pytest.approx(advice.table_gb / 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_which_names_it_and_leaves_nothing(start, tmp_path, rank, left_behind):
    process = start(*ENDLESS, "exchange=peer")
    ranks = ranks_of(process, tmp_path)
    ranks[rank].kill()
    rows = rows_of(tmp_path, process)
    assert (rows["lookup"]["status"], rows["lookup"]["error"]) == ("crash", f"rank {rank} was killed by SIGKILL")
    assert not any(each.is_running() for each in ranks.values())
    assert not left_behind()


def test_a_rank_that_hangs_ends_the_run_which_names_it(start, tmp_path):
    process = start(*ENDLESS, "rank_timeout_s=2")
    ranks = ranks_of(process, tmp_path)
    ranks[1].suspend()
    rows = rows_of(tmp_path, process)
    assert rows["lookup"]["status"] == "timeout"
    assert rows["lookup"]["error"] == "rank 1 kept the others waiting for 2 s (rank_timeout_s)"
    assert not any(each.is_running() for each in ranks.values())


@pytest.mark.parametrize("ways", [("ranks=1", "strategy=kv_on_cpu", "exchange=none"), ()], ids=["one", "two"])
def test_a_node_that_only_another_machine_has_is_refused(start, tmp_path, ways):
    rows = rows_of(tmp_path, start(*ways, "hardware.numa=1000"))
    assert {row["status"] for row in rows.values()} == {"refused"}
    assert all("hardware.numa=1000: " in row["error"] for row in rows.values())


def test_ranks_end_with_their_launcher(start, tmp_path):
    process = start(*ENDLESS)
    ranks = ranks_of(process, tmp_path)
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks.values(), timeout=10)
    assert not alive


def test_one_wrong_rank_is_a_mismatch_of_the_run(start, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    rows = rows_of(tmp_path, start("lookup._target_=wrong.WrongLookup"))
    assert rows["hashing"]["status"] == rows["projection"]["status"] == "ok"
    for case in ("lookup", "full"):
        assert rows[case]["status"] == "mismatch"
        assert "compared values differ from the reference" in rows[case]["error"]


def test_what_ends_one_rank_is_told_of_it(start, tmp_path):
    broken = WRONG.replace("        rows = super", "        raise MemoryError('no room')\n        rows = super")
    (tmp_path / "wrong.py").write_text(broken)
    rows = rows_of(tmp_path, start("lookup._target_=wrong.WrongLookup"))
    assert (rows["lookup"]["status"], rows["hashing"]["status"]) == ("oom_host", "ok")


SHARED_DECODER = (
    "decoder=matmuls", "decoder.layers=4", "decoder.hidden_size=64", "decoder.vocab_size=512",
    "decoder.products=[[96,64],[64,64],[256,64],[64,128]]", "model.layers=[1,3]",
)  # fmt: skip
ON_GPUS = [
    *(("strategy=sharded", f"exchange={exchange}") for exchange in ("all_gather", "all_reduce", "peer")),
    ("strategy=sharded", "exchange=all_to_all", "rank_batches=own"),
    ("strategy=sharded", "exchange=peer", "table.split=rows", "dtype.layout=split"),
    ("strategy=host_per_rank", "exchange=all_gather"),
    ("strategy=host_per_rank", "exchange=peer"),
    ("strategy=host_shared",),
    ("strategy=replicated",),
    ("strategy=device",),
    *(("strategy=sharded", f"exchange={exchange}", *SHARED_DECODER) for exchange in ("all_gather", "peer")),
    ("strategy=host_shared", "prefetch.lead=previous_step", "projection=column_parallel", *SHARED_DECODER),
    ("strategy=sharded", "projection=column_parallel"),
    ("strategy=sharded", "exchange=all_to_all", "rank_batches=own", "decoder=tiny", "model.layers=[1,3]"),
]


@pytest.mark.accelerator
@pytest.mark.skipif(len(gpus()) < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("capture", ["graph", "none"])
@pytest.mark.parametrize("ways", ON_GPUS, ids=" ".join)
def test_gpus_are_right_with_a_graph_and_without(start, tmp_path, ways, capture):
    rows = rows_of(tmp_path, start("dtype=fp8", *ways, "hardware=cuda", f"capture={capture}", "rank_timeout_s=60"))
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.accelerator
@pytest.mark.skipif(len(gpus()) < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_its_gpu_free(start, tmp_path, rank):
    process = start(*ENDLESS, "exchange=peer", "hardware=cuda")
    ranks = ranks_of(process, tmp_path)
    ranks[rank].kill()
    rows = rows_of(tmp_path, process)
    assert rows["lookup"]["error"] == f"rank {rank} was killed by SIGKILL"
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(2))
    holders = {each.pid for gpu in handles for each in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
    assert holders.isdisjoint(each.pid for each in ranks.values())
