"""The program as a user calls it: processes, exit codes, files."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from common import ROOT, runs

from engram_exp import load_results, load_samples
from engram_exp.machine.environment import gpus
from engram_exp.results.write import SAMPLES_SO_FAR

pytestmark = pytest.mark.slow  # each starts the program


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


def test_a_sweep_survives_a_failing_run(call_here, tmp_path):
    np.save(tmp_path / "good.npy", np.arange(24).reshape(2, 12))
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(3, 8))
    done = call_here("-m", "tokens=ids", f"tokens.path={tmp_path}/bad.npy,{tmp_path}/good.npy", "cases=[hash]")
    assert done.returncode == 1
    assert "median ms of every run" in done.stdout
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["refused", "refused", "ok", "ok"]
    assert frame["error"][0].startswith("tokens.path=")
    (sweep,) = (tmp_path / "out").rglob("sweep.csv")
    assert len(sweep.read_text().splitlines()) == 1 + 4


def test_a_run_that_is_refused_by_the_machine_exits_with_2(call_here, tmp_path):
    if gpus():
        pytest.skip("needs a machine without CUDA")
    done = call_here("hardware=cuda", "worker=inline")
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
        (["campaign="], "refused: campaign=: must name a folder below output_dir"),
        (["retry=failed", "campaign=mistyped"], "/mistyped holds no runs; name an earlier campaign"),
        (["-m", "retry=failed", "batch_size=1,2"], " holds no runs; name an earlier campaign"),
        (["batch_size=many"], "batch_size"),
        (["hashing=fast"], "Could not find 'hashing/fast'"),
        (["tokens.sharp=1"], "tokens.sharp"),
        (["no_such_key=1"], "no_such_key"),
    ],
)
def test_refusals_name_the_key_and_start_nothing(call_here, tmp_path, arguments, says):
    done = call_here(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path).rglob("results.csv"))


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_an_output_folder_that_cannot_be_written_is_refused(call_here, tmp_path, mode):
    (tmp_path / "file").write_text("")
    done = call_here(*mode, f"output_dir={tmp_path / 'file'}")
    assert done.returncode == 2
    assert f"refused: output_dir={tmp_path / 'file'}" in done.stderr
    assert "cannot be written (Not a directory)" in done.stderr


def test_a_timeout_is_a_row(call_here, tmp_path):
    done = call_here("timeout_s=0.3")
    assert done.returncode == 1
    frame = load_results(tmp_path)
    assert set(frame["status"]) == {"timeout"}
    assert frame["error"][0] == "killed after timeout_s=0.3"
    assert frame["cpu_name"][0], "also a run that died is stamped"


def test_a_sweep_over_what_a_search_path_adds_is_checked_too(call_here, tmp_path):
    (tmp_path / "conf/hashing").mkdir(parents=True)
    shutil.copy(ROOT / "conf/hashing/numpy.yaml", tmp_path / "conf/hashing/mine.yaml")
    added = f"hydra.searchpath=[file://{tmp_path}/conf]"
    refused = call_here("-m", added, "hashing=mine,numba", "batch_size=0", "cases=[hashing]")
    assert refused.returncode == 2
    assert "refused: batch_size=0: must be at least 1" in refused.stderr
    done = call_here("-m", added, "hashing=mine,numba", "cases=[hashing]", "worker=inline")
    assert done.returncode == 0, done.stderr
    assert sorted(load_results(tmp_path)["hashing"]) == ["mine", "numba"]
    unknown = call_here("-m", "hashing=mine,numba", "cases=[hashing]")
    assert unknown.returncode == 2
    assert "Could not find 'hashing/mine'" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def has_kept_samples(tmp_path, number):
    return any(kept.stat().st_size for kept in (tmp_path / "out").rglob(f"{number}/{SAMPLES_SO_FAR}"))


def heeds_ctrl_c():
    """As in the foreground: what a shell starts in the background, and its children, ignore the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def long_sweep(command, tmp_path):
    """A sweep whose first run is short and done, and whose second one is being measured."""
    sweep = subprocess.Popen(
        command("-m", "iterations=3,1000000000,2000000000", "budget_s=600", "cases=[hashing]"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=heeds_ctrl_c,
    )  # fmt: skip
    wait_for(lambda: has_kept_samples(tmp_path, 1) or sweep.poll() is not None)
    (worker,) = psutil.Process(sweep.pid).children()
    yield sweep, worker
    for process in (sweep, worker):
        if psutil.pid_exists(process.pid):
            process.kill()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_a_sweep_under_its_name_and_loses_nothing(long_sweep, tmp_path, number, name):
    sweep, worker = long_sweep
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + number
    assert not worker.is_running()
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "crash"]
    assert frame["error"][1] == f"interrupted by {name}"
    assert list((tmp_path / "out").rglob("sweep.csv"))
    assert "median ms of every run" in output
    assert "Traceback" not in output


def test_a_killed_worker_is_a_row_and_the_sweep_goes_on(long_sweep, tmp_path):
    sweep, worker = long_sweep
    worker.kill()
    wait_for(lambda: has_kept_samples(tmp_path, 2) or sweep.poll() is not None)
    psutil.Process(sweep.pid).children()[0].send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "crash", "crash"]
    assert frame["error"][1].startswith("the worker was killed by SIGKILL, which the system sends when memory runs out")
    assert frame["error"][2] == "the worker was killed by SIGTERM"
    samples = load_samples(tmp_path)
    assert set(samples["run_id"]) == set(frame["run_id"]), "a worker that is killed keeps what it had taken"
    assert samples.groupby("run_id").size()[frame["run_id"][0]] == 3


def test_help_shows_groups_choices_and_examples_without_pytorch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "run.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for line in (
        "strategy: both, cached, cached_copy, device, disk, distinct, host_per_rank, host_shared, kv_on_cpu, "
        "kv_on_gpu, replicated, sharded, split, uva",
        "dtype: bfloat16, float16, float32, fp8, fp8_one_scale",
        "tokens: ids, random, text",
    ):
        assert line in done.stdout
    assert sum("python run.py" in line for line in done.stdout.splitlines()) >= 3
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"hydra", "omegaconf"} <= imported
    assert not {"torch", "numpy", "pandas", "numba", "transformers"} & imported


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
