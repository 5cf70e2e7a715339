"""The program as a user calls it: processes, exit codes, files."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, TINY

from engram_exp import load_results, load_samples


@pytest.fixture
def command(tmp_path, cache_dir):
    """The program with a tiny model; files go below `tmp_path/out`."""

    def build(*arguments: str) -> list[str]:
        folders = [f"output_dir={tmp_path / 'out'}", f"cache_dir={cache_dir}"]
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        return [sys.executable, "run.py", *flags, *TINY, *folders, *overrides]

    return build


@pytest.fixture
def call(command):
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **variables}
        return subprocess.run(
            command(*arguments), cwd=ROOT, capture_output=True, text=True, env=environment, timeout=250
        )

    return run


def runs(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "out").rglob("job.yaml"))


def test_one_run_leaves_its_files_and_plain_lines(call, tmp_path):
    done = call()
    assert done.returncode == 0, done.stderr
    (folder,) = runs(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {".hydra", "results.csv", "samples.csv", "environment.json", "run.log", "job.yaml"}
    assert "\x1b" not in done.stdout
    assert "timed full: 3 iterations" in done.stdout
    lines = done.stdout.splitlines()
    card, first_result = (
        next(i for i, line in enumerate(lines) if text in line) for text in ("GB needed", "median ms")
    )
    assert card < first_result, "the card comes first"
    assert set(load_results(tmp_path)["case"]) == {"hashing", "lookup", "up_embed", "projection", "full"}


def test_a_terminal_gets_a_bar_and_a_table(call):
    done = call("worker=inline", "cases=[hashing]", "iterations=10000000", FORCE_COLOR="1", TERM="xterm-256color")
    assert done.returncode == 0, done.stderr
    assert "\x1b[" in done.stdout
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    assert "┃ case" in plain
    assert "hashing    ━" in plain, "the bar names the case"
    assert "s left" in plain


def test_a_sweep_survives_a_failing_run(call, tmp_path):
    np.save(tmp_path / "good.npy", np.arange(24).reshape(2, 12))
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(3, 8))
    done = call("-m", "tokens=ids", f"tokens.path={tmp_path}/bad.npy,{tmp_path}/good.npy", "cases=[hash]")
    assert done.returncode == 1
    assert "median ms of every run" in done.stdout
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["refused", "refused", "ok", "ok"]
    assert frame["error"][0].startswith("tokens.path=")
    (sweep,) = (tmp_path / "out").rglob("sweep.csv")
    assert len(sweep.read_text().splitlines()) == 1 + 4


def test_a_run_that_is_refused_by_the_machine_exits_with_2(call, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    done = call("hardware=cuda")
    assert done.returncode == 2
    assert "refused: hardware.device=cuda: PyTorch finds no accelerator; auto and cpu would work" in done.stdout
    assert set(load_results(tmp_path)["status"]) == {"refused"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["batch_size=0"], "refused: batch_size=0: must be at least 1"),
        (["-m", "batch_size=1,0"], "refused: batch_size=0: must be at least 1"),
        (
            ["-m", "strategy=kv_on_cpu,kv_on_gpu", "layer=1,7"],
            "refused: layer=7: this model has tables on the layers 1, 15",
        ),
        (["retry=failed", "campaign=mistyped"], "/mistyped holds no runs; name an earlier campaign"),
        (["-m", "retry=failed", "batch_size=1,2"], " holds no runs; name an earlier campaign"),
        (["batch_size=many"], "batch_size"),
        (["hashing=fast"], "Could not find 'hashing/fast'"),
        (["tokens.sharp=1"], "tokens.sharp"),
        (["no_such_key=1"], "no_such_key"),
    ],
)
def test_refusals_name_the_key_and_start_nothing(call, tmp_path, arguments, says):
    done = call(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path).rglob("results.csv"))


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_an_output_folder_that_cannot_be_written_is_refused(call, tmp_path, mode):
    (tmp_path / "file").write_text("")
    done = call(*mode, f"output_dir={tmp_path / 'file'}")
    assert done.returncode == 2
    assert f"refused: output_dir={tmp_path / 'file'}" in done.stderr
    assert "cannot be written (Not a directory)" in done.stderr


def test_a_timeout_is_a_row(call, tmp_path):
    done = call("timeout_s=0.3")
    assert done.returncode == 1
    frame = load_results(tmp_path)
    assert set(frame["status"]) == {"timeout"}
    assert frame["error"][0] == "killed after timeout_s=0.3"
    assert frame["cpu_name"][0], "also a run that died is stamped"


def test_an_earlier_run_in_the_same_folder_does_not_count(call, tmp_path):
    same = f"hydra.run.dir={tmp_path / 'out/same'}"
    assert call("cases=[hashing]", same).returncode == 0
    assert call("cases=[hashing]", same, "timeout_s=0.3", "resume=false").returncode == 1
    assert load_results(tmp_path)["status"].tolist() == ["timeout"]


def test_repeats_are_shuffled_and_each_has_its_folder(call, tmp_path):
    done = call("-m", "batch_size=1,2,3", "repeats=3", "cases=[hashing]", "worker=inline", "campaign=mine")
    assert done.returncode == 0, done.stderr
    assert "9 runs (3 of each configuration, shuffled): at most about" in done.stdout
    assert "run 9 of 9, about" in done.stdout
    names = {str(folder.relative_to(tmp_path / "out/mine")) for folder in runs(tmp_path)}
    assert names == {f"{number}/{repeat}" for number in range(3) for repeat in range(3)}
    frame = load_results(tmp_path)
    assert frame.groupby("batch_size")["repeat"].apply(list).tolist() == [[0, 1, 2]] * 3
    in_order = frame.sort_values("run_id")[["batch_size", "repeat"]].to_numpy().tolist()
    assert in_order != sorted(in_order)
    again = call("-m", "batch_size=1,2,3", "repeats=3", "cases=[hashing]", "worker=inline", "campaign=other")
    assert again.returncode == 0
    other = load_results(tmp_path / "out/other").sort_values("run_id")[["batch_size", "repeat"]]
    assert other.to_numpy().tolist() == in_order, "the order is seeded"


def test_a_campaign_goes_on_where_it_stopped(call, tmp_path):
    def sweep(*arguments):
        done = call("-m", *arguments, "cases=[hashing]", "worker=inline", "campaign=mine")
        assert done.returncode == 0, done.stderr
        return done.stdout, load_results(tmp_path)

    _, first = sweep("batch_size=1,2")
    out, second = sweep("batch_size=1,2")
    assert "2 runs, 0 of them to be done" in out
    assert second["run_id"].tolist() == first["run_id"].tolist()
    out, third = sweep("batch_size=3,1,2")
    assert "3 runs, 1 of them to be done" in out
    assert set(first["run_id"]) < set(third["run_id"])
    assert sorted(third["batch_size"]) == [1, 2, 3]
    assert (tmp_path / "out/mine/0-2/results.csv").exists(), "nothing is overwritten by another configuration"
    _, fourth = sweep("batch_size=1,2", "resume=false")
    assert len(fourth) == 3
    assert not set(first["run_id"]) & set(fourth["run_id"])


def test_single_runs_of_a_campaign_go_on_beside_each_other(call, tmp_path):
    ids = []
    for hashing in ("numba", "numpy", "numpy", "numba"):
        done = call("cases=[hashing]", "worker=inline", "campaign=mine", f"hashing={hashing}")
        assert done.returncode == 0, done.stderr
        ids.append(frozenset(load_results(tmp_path)["run_id"]))
    assert [len(known) for known in ids] == [1, 2, 2, 2]
    assert ids[1] == ids[2] == ids[3]


def test_a_sweep_over_what_a_search_path_adds_is_checked_too(call, tmp_path):
    (tmp_path / "conf/hashing").mkdir(parents=True)
    shutil.copy(ROOT / "conf/hashing/numpy.yaml", tmp_path / "conf/hashing/mine.yaml")
    added = f"hydra.searchpath=[file://{tmp_path}/conf]"
    refused = call("-m", added, "hashing=mine,numba", "batch_size=0", "cases=[hashing]")
    assert refused.returncode == 2
    assert "refused: batch_size=0: must be at least 1" in refused.stderr
    done = call("-m", added, "hashing=mine,numba", "cases=[hashing]", "worker=inline")
    assert done.returncode == 0, done.stderr
    assert sorted(load_results(tmp_path)["hashing"]) == ["mine", "numba"]
    unknown = call("-m", "hashing=mine,numba", "cases=[hashing]")
    assert unknown.returncode == 2
    assert "Could not find 'hashing/mine'" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_only_what_failed_is_tried_again(call, tmp_path):
    np.save(tmp_path / "good.npy", np.arange(24).reshape(2, 12))
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(3, 8))
    paths = f"tokens.path={tmp_path}/bad.npy,{tmp_path}/good.npy"
    sweep = ("-m", "tokens=ids", paths, "cases=[hashing]", "worker=inline", "campaign=mine")
    assert call(*sweep).returncode == 1
    good = load_results(tmp_path).set_index("status")["run_id"]["ok"]
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(2, 12))
    done = call(*sweep, "retry=failed")
    assert done.returncode == 0, done.stdout
    assert "2 runs, 1 of them to be done" in done.stdout
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "ok"]
    assert good in set(frame["run_id"])


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_measuring(tmp_path, number):
    return any("warmed up" in log.read_text() for log in (tmp_path / "out").rglob(f"{number}/run.log"))


@pytest.fixture
def long_sweep(command, tmp_path):
    """A sweep whose first run is short and done, and whose second one is being measured."""
    sweep = subprocess.Popen(
        command("-m", "iterations=3,1000000000", "budget_s=600", "seed=0,1", "cases=[hashing]"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    # Hydra varies the last key fastest: (3, 0), (3, 1), (1e9, 0), (1e9, 1)
    wait_for(lambda: is_measuring(tmp_path, 2) or sweep.poll() is not None)
    (worker,) = psutil.Process(sweep.pid).children()
    yield sweep, worker
    for process in (sweep, worker):
        if psutil.pid_exists(process.pid):
            process.kill()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_sweep_and_loses_nothing(long_sweep, tmp_path, name):
    sweep, worker = long_sweep
    sweep.send_signal(name)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert not worker.is_running()
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "ok", "crash"]
    assert frame["error"][2] == "interrupted by Ctrl-C"
    assert list((tmp_path / "out").rglob("sweep.csv"))
    assert "median ms of every run" in output
    assert "Traceback" not in output


def test_a_killed_worker_is_a_row_and_the_sweep_goes_on(long_sweep, tmp_path):
    sweep, worker = long_sweep
    worker.kill()
    wait_for(lambda: is_measuring(tmp_path, 3) or sweep.poll() is not None)
    psutil.Process(sweep.pid).children()[0].send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "ok", "crash", "crash"]
    assert frame["error"][2].startswith("the worker was killed by SIGKILL, which the system sends when memory runs out")
    assert frame["error"][3] == "the worker was killed by SIGTERM"


def test_help_shows_groups_choices_and_examples_without_pytorch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "run.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for line in (
        "strategy: device, kv_on_cpu, kv_on_gpu, uva",
        "dtype: bfloat16, float16, float32, fp8",
        "tokens: ids, random, text",
    ):
        assert line in done.stdout
    assert sum("python run.py" in line for line in done.stdout.splitlines()) >= 3
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"hydra", "omegaconf"} <= imported
    assert not {"torch", "pandas", "numba", "transformers"} & imported


def test_threads_and_affinity_reach_the_worker(call, tmp_path):
    done = call("hardware.affinity=[0]", "hardware.pin_threads=true", "cases=[hashing]")
    assert done.returncode == 0, done.stdout
    (folder,) = runs(tmp_path)
    environment = (folder / "environment.json").read_text()
    for text in ('"OMP_NUM_THREADS": "1"', '"OMP_PROC_BIND": "close"', '"NUMBA_NUM_THREADS": "1"'):
        assert text in environment
    asked = shlex.split(json.loads(environment)["command"])
    assert asked[:2] == ["python", "run.py"]
    assert asked[-3:] == ["hardware.affinity=[0]", "hardware.pin_threads=true", "cases=[hashing]"]
    assert not any(text.startswith(("output_dir", "limits_dir")) for text in asked), "what says nothing of a run"
    assert load_results(tmp_path)["threads"][0] == 1


def test_a_folder_of_a_run_can_be_run_again_by_hand(call, tmp_path):
    assert call("cases=[hashing]").returncode == 0
    (folder,) = runs(tmp_path)
    before = (folder / "results.csv").read_text()
    subprocess.run([sys.executable, "-m", "engram_exp.worker", str(folder)], cwd=ROOT, check=True, capture_output=True)
    assert (folder / "results.csv").read_text() != before


def test_what_never_ran_is_not_tried_again(call, tmp_path):
    same = ("cases=[hashing]", "worker=inline", "campaign=mine")
    assert call(*same).returncode == 0
    done = call(*same, "batch_size=3", "retry=failed")
    assert done.returncode == 0, done.stderr
    assert "1 runs, 0 of them to be done: the others did not fail" in done.stdout
    assert "/mine also holds runs of other settings, code or machines: 1" in done.stdout
    assert len(runs(tmp_path)) == 1


def test_an_earlier_run_in_the_same_folder_leaves_no_samples(call, tmp_path):
    same = f"hydra.run.dir={tmp_path / 'out/same'}"
    assert call("cases=[hashing]", same, "worker=inline").returncode == 0
    assert len(load_samples(tmp_path)) == 3
    assert call("cases=[hashing]", same, "timeout_s=0.3", "resume=false").returncode == 1
    assert load_samples(tmp_path).empty
