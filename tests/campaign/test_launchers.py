"""Sweeps that a launcher takes to other processes: submitit's local one, and what the preset asks of Slurm."""

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from itertools import pairwise

import pytest
from common import ROOT, TINY
from omegaconf import OmegaConf

from engram_exp import load_results
from engram_exp.campaign.campaign import Campaign, Planned, _overrides
from engram_exp.campaign.preflight import Preflight, _check_launcher
from engram_exp.errors import ConfigError
from engram_exp.results.write import write_run


@pytest.fixture
def sweep(tmp_path, cache_dir):
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        folders = [f"output_dir={tmp_path / 'out'}", f"cache_dir={cache_dir}", "campaign=mine", "hardware.threads=1"]
        return subprocess.run(
            [sys.executable, "run.py", "-m", *TINY, *folders, "cases=[hashing]", *arguments],
            cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=250,
        )  # fmt: skip

    return call


def test_runs_of_other_processes_are_gathered_and_do_not_overlap(sweep, tmp_path):
    done = sweep("hydra/launcher=local_queue", "batch_size=1,2", "repeats=2")
    assert done.returncode == 0, done.stderr
    assert "median ms of every run" in done.stdout
    frame = load_results(tmp_path)
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == frame["run_id"].nunique() == 4
    assert (tmp_path / "out/mine/sweep.csv").read_text().count("\n") == 5
    spans = []
    for results in (tmp_path / "out/mine").rglob("results.csv"):
        started = datetime.fromisoformat(load_results(results)["started_at"][0]).timestamp()
        spans.append((started, results.stat().st_mtime))
    spans.sort()
    assert all(ended <= started + 1 for (_, ended), (started, _) in pairwise(spans)), "started_at has no fraction"
    environment = json.loads(next((tmp_path / "out/mine").rglob("environment.json")).read_text())
    assert environment["variables"]["CUDA_VISIBLE_DEVICES"] == "0", "submitit hides no GPU"
    log = next((tmp_path / "out/mine/.submitit").rglob("*_log.out")).read_text()
    assert "hashing" in log
    again = sweep("hydra/launcher=local_queue", "batch_size=1,2", "repeats=2")
    assert again.returncode == 0
    assert set(load_results(tmp_path)["run_id"]) == set(frame["run_id"]), "nothing was run again"


def test_a_run_that_fails_elsewhere_fails_the_sweep(sweep, tmp_path):
    done = sweep("hydra/launcher=local_queue", "timeout_s=0.2")
    assert done.returncode == 1
    assert load_results(tmp_path)["status"].tolist() == ["timeout"]


@pytest.mark.slow
def test_the_end_of_a_jobs_time_leaves_a_row_and_no_worker(configure, tmp_path, monkeypatch):
    workers = []

    def end(worker, timeout_s, others):
        workers.append(worker)
        raise SystemExit(0)  # as submitit's handler of the signal does

    monkeypatch.setattr("engram_exp.campaign.process.wait", end)
    with pytest.raises(SystemExit):
        Campaign()._run([Planned(configure(*TINY, "cases=[hashing]"), {}, tmp_path / "0", 0, ())])
    assert workers[0].returncode == -signal.SIGKILL
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["crash"]
    assert frame["error"][0] == "interrupted: SystemExit(0)"


def test_what_failed_before_does_not_fail_what_is_launched_now(tmp_path, monkeypatch):
    for name, status in (("0", "crash"), ("1", "ok")):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, {}, [{"run_id": name, "status": status, "case": "full"}])
    os.utime(tmp_path / "0/results.csv", (1, 1))
    monkeypatch.setattr(Preflight, "sweep_dir", tmp_path)
    monkeypatch.setattr(Preflight, "began", 2.0)
    assert Campaign().finish() == 0
    os.utime(tmp_path / "0/results.csv")
    assert Campaign().finish() == 1


def test_a_launcher_that_left_nothing_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Preflight, "sweep_dir", tmp_path)
    assert Campaign().finish() == 1


@pytest.mark.slow
def test_what_cannot_be_started_is_a_row_and_the_sweep_goes_on(configure, tmp_path, monkeypatch):
    def cannot(*arguments, **options):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", cannot)
    campaign = Campaign()
    for number in ("0", "1"):
        campaign._run([Planned(configure(*TINY, "cases=[hashing]"), {}, tmp_path / number, 0, ())])
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["crash"] * 2
    assert frame["error"][0] == "OSError('no more processes')"


def test_the_command_of_a_run_knows_where_its_options_came_from():
    overrides = {"hydra": ["hydra.mode=MULTIRUN", "hydra.searchpath=[file:///mine]"], "task": ["strategy=mine"]}
    kept = _overrides(OmegaConf.create({"overrides": overrides}))
    assert kept == ("hydra.searchpath=[file:///mine]", "strategy=mine")


def test_what_is_refused_is_not_launched(sweep, tmp_path):
    done = sweep("hydra/launcher=local_queue", "batch_size=1,0")
    assert done.returncode == 2
    assert "batch_size=0" in done.stderr
    assert not list(tmp_path.rglob(".submitit"))


def test_a_launcher_gives_every_rank_a_gpu(sweep):
    done = sweep("hydra/launcher=local_queue", "ranks=1,2", "hardware=cuda")
    assert done.returncode == 2
    assert "ranks=2: each is a GPU of its own, and the launcher asks for 1 a node; hydra.launcher.gpus" in done.stderr


def test_a_launcher_gives_a_run_its_nodes(configure):
    config = configure(*TINY, "ranks=2", "nodes=2")
    _check_launcher(config, {"nodes": 2, "gpus_per_node": 1})
    with pytest.raises(ConfigError, match=r"nodes=2: the launcher asks for 1; hydra\.launcher\.nodes=2 would do"):
        _check_launcher(config, {"nodes": 1})


def test_slurm_gives_each_configuration_nodes_of_its_own(sweep, tmp_path):
    for name, script in {
        "sbatch": f'cp "$1" {tmp_path}/asked\necho no such partition >&2\nexit 1',
        "srun": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    asked = "hydra/launcher=slurm_node", "hydra.launcher.partition=gpu", "batch_size=1,2", "ranks=6", "nodes=3"
    done = sweep(*asked, PATH=path)
    assert done.returncode == 1
    assert "no such partition" in done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text()
    for line in (
        "--exclusive",
        "--nodes=3",
        "--ntasks-per-node=1",
        "--mem=0GB",
        "--partition=gpu",
        "--array=0-1%",
        "--gpus-per-node=2",
    ):
        assert f"#SBATCH {line}" in asked, line
