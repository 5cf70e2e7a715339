"""Runs that cannot be are refused or skipped, before anything is built for them."""

import sys

import pytest
from common import TINY

from engram_exp.errors import ConfigError
from engram_exp.measure.rates import Limit
from engram_exp.run.experiment import run
from engram_exp.run.job import Job
from engram_exp.run.job_rows import failed_rows
from engram_exp.run.requirements import require_data_sheet
from engram_exp.run.rows import failed_columns
from engram_exp.run.terminal import Terminal


@pytest.mark.parametrize("strategy", ["uva", "device"])
def test_a_strategy_of_the_device_is_skipped_without_one(run_inline, monkeypatch, strategy):
    monkeypatch.setattr("engram_exp.run.requirements.triton_is_interpreted", lambda: False)
    rows = run_inline(f"strategy={strategy}")
    assert {row["status"] for row in rows} == {"skipped"}
    assert rows[0]["error"] == "no accelerator: this strategy runs hashing on one"


def test_without_triton_a_strategy_of_the_device_is_skipped_before_its_kernels_are_imported(run_inline, monkeypatch):
    monkeypatch.setattr("engram_exp.run.requirements.triton_is_interpreted", lambda: False)
    monkeypatch.setattr("engram_exp.run.experiment.find_spec", lambda name: None)
    monkeypatch.setattr("engram_exp.run.experiment.tables_of", pytest.fail)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "engram_exp.steps.hashing.triton", raising=False)
    rows = run_inline("strategy=uva")
    assert {row["error"] for row in rows} == {"no accelerator: this strategy runs hashing on one"}


@pytest.mark.accelerator
def test_a_kernel_skips_what_it_cannot_read(run_inline):
    rows = run_inline("strategy=uva", "table=pageable", "hardware=cuda")
    assert {row["status"] for row in rows} == {"skipped"}


@pytest.mark.accelerator
def test_the_data_sheet_of_another_gpu_is_refused(run_inline):
    rows = run_inline("hardware=h200", "hardware.data_sheet.gpu=Nonesuch")
    assert {row["status"] for row in rows} == {"refused"}
    assert rows[0]["error"].startswith("hardware.data_sheet.gpu=Nonesuch: the device is ")


def test_a_data_sheet_of_another_part_names_the_device():
    require_data_sheet("A100", 80, "NVIDIA A100-SXM4-80GB", 85 * 10**9)
    with pytest.raises(
        ConfigError, match=r"^hardware\.data_sheet\.gpu=A100: the device is NVIDIA H200 with 151 GB; use"
    ):
        require_data_sheet("A100", 80, "NVIDIA H200", 151 * 10**9)


def test_the_data_sheet_is_looked_up_by_the_name_of_the_device(run_inline, monkeypatch, capsys):
    """The processor stands in for the part that it is called here."""
    monkeypatch.setattr("engram_exp.run.requirements.device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("engram_exp.run.requirements.total_device_bytes", lambda device: 151 * 10**9)
    run_inline("cases=[hashing]")
    told = "H200: device memory 4800 GB/s (141 GB), device bfloat16 989 TFLOP/s, link 64 GB/s"
    assert told in " ".join(capsys.readouterr().out.split())
    run_inline("cases=[hashing]", "hardware=h200", "hardware.device=cpu", "hardware.data_sheet.link_gb_per_s=32")
    assert told.replace("link 64", "link 32") in " ".join(capsys.readouterr().out.split())
    run_inline("cases=[hashing]", "hardware=h100", "hardware.device=cpu")
    refusal = "refused: hardware.data_sheet.gpu=H100: the device is NVIDIA H200 with 151 GB"
    assert refusal in " ".join(capsys.readouterr().out.split())


def test_what_does_not_fit_is_refused_before_a_batch_is_drawn(run_inline, monkeypatch):
    monkeypatch.setattr("engram_exp.run.rank_plan.free_host_bytes", lambda: 10)
    monkeypatch.setattr("engram_exp.run.batches.distinct_batches", lambda *_: pytest.fail("batches were drawn"))
    rows = run_inline()
    assert {row["status"] for row in rows} == {"oom_host"}


def test_memory_of_other_nodes_is_not_free_to_a_run_that_is_bound(configure, monkeypatch, tmp_path):
    job = Job.create(configure(*TINY, "hardware.numa=1"), {}, tmp_path)
    monkeypatch.setattr("engram_exp.machine.numa.free_bytes", lambda *asked: {(1, 0, 1): 10}[asked])
    rows = run(job, Terminal(quiet=True))
    assert "hardware.numa=1 leaves the memory of one node" in rows[0]["error"]


def test_a_wrong_option_of_a_component_is_still_a_row_for_each_case(run_inline):
    rows = run_inline("strategy=uva", "lookup.sort_from_rows=many")
    assert [row["case"] for row in rows] == ["up_ids", "hashing", "lookup", "projection", "full"]
    assert {row["run_id"] for row in rows} != {None}


def test_what_does_not_fit_is_refused_before_it_is_allocated(run_inline, monkeypatch):
    monkeypatch.setattr(
        "engram_exp.steps.tables.host.HostMemory", lambda *_, **__: pytest.fail("a table was allocated")
    )
    rows = run_inline("model.vocab_per_order=[40000000000,40000000000]", "cases=lookup")
    assert {row["status"] for row in rows} == {"oom_host"}
    message = rows[0]["error"]
    assert "needs 2560.00 GB of host memory" in message
    assert "GB are free: model.table_scale=0.0" in message


def test_tensors_that_do_not_fit_are_refused_before_they_are_made(run_inline):
    rows = run_inline("batch_size=100000000", "seq_len=1000", "cases=[hashing]")
    assert rows[0]["status"] == "oom_host"
    assert rows[0]["error"].endswith("a smaller batch_size or seq_len would need less")


@pytest.mark.parametrize("component", ["embedding", "gather"])
def test_a_component_in_the_wrong_place_is_refused_by_the_name_that_was_typed(configure, tmp_path, component):
    config = configure(*TINY, f"lookup={component}")
    error = ConfigError("lookup", None, "runs on cpu, but this strategy places it on cuda")
    job = Job.create(config, {"lookup": component}, tmp_path)
    rows = failed_rows(job, **failed_columns(error, job.choices))
    assert rows[0]["error"] == f"lookup={component}: runs on cpu, but this strategy places it on cuda"
    assert {row["status"] for row in rows} == {"refused"}


def test_what_takes_longer_than_the_run_has_is_skipped(run_inline, monkeypatch):
    monkeypatch.setattr("engram_exp.run.experiment.Experiment.limit_of", lambda self, case: Limit(2e3, "host GEMM"))
    rows = run_inline("cases=[hashing,projection]", "timeout_s=7.9")
    assert {row["status"] for row in rows} == {"skipped"}
    assert rows[0]["error"] == (
        "hashing: a call takes 2 s on this machine at best, and 4 at least are made: more than timeout_s=7.9"
    )
    (row,) = run_inline("cases=[hashing]", "timeout_s=8", "budget_s=0.1")
    assert row["status"] == "suspect", "it was timed, and no call takes 2 s"
