"""Runs again: repetitions, campaigns that go on, and what an earlier run leaves behind."""

import subprocess
import sys

import numpy as np
from common import ROOT, runs

from engram_exp import load_results, load_samples


def test_an_earlier_run_in_the_same_folder_does_not_count(call_here, tmp_path):
    same = f"hydra.run.dir={tmp_path / 'out/same'}"
    assert call_here("cases=[hashing]", same).returncode == 0
    assert len(load_samples(tmp_path)) == 3
    assert call_here("cases=[hashing]", same, "timeout_s=0.3", "resume=false").returncode == 1
    assert load_results(tmp_path)["status"].tolist() == ["timeout"]
    assert load_samples(tmp_path).empty


def test_repeats_are_shuffled_and_each_has_its_folder(call_here, tmp_path):
    done = call_here("-m", "batch_size=1,2,3", "repeats=3", "cases=[hashing]", "worker=inline", "campaign=mine")
    assert done.returncode == 0, done.stderr
    assert "9 runs (3 of each configuration, shuffled): about" in done.stdout
    assert "run 9 of 9, about" in done.stdout
    names = {str(folder.relative_to(tmp_path / "out/mine")) for folder in runs(tmp_path)}
    assert names == {f"{number}/{repeat}" for number in range(3) for repeat in range(3)}
    frame = load_results(tmp_path)
    assert frame.groupby("batch_size")["repeat"].apply(list).tolist() == [[0, 1, 2]] * 3
    in_order = frame.sort_values("run_id")[["batch_size", "repeat"]].to_numpy().tolist()
    assert in_order != sorted(in_order)
    again = call_here("-m", "batch_size=1,2,3", "repeats=3", "cases=[hashing]", "worker=inline", "campaign=other")
    assert again.returncode == 0
    other = load_results(tmp_path / "out/other").sort_values("run_id")[["batch_size", "repeat"]]
    assert other.to_numpy().tolist() == in_order, "the order is seeded"


def test_a_campaign_goes_on_where_it_stopped(call_here, tmp_path):
    def sweep(*arguments):
        done = call_here("-m", *arguments, "cases=[hashing]", "worker=inline", "campaign=mine")
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


def test_single_runs_of_a_campaign_go_on_beside_each_other(call_here, tmp_path):
    ids = []
    for hashing in ("numba", "numpy", "numpy", "numba"):
        done = call_here("cases=[hashing]", "worker=inline", "campaign=mine", f"hashing={hashing}")
        assert done.returncode == 0, done.stderr
        ids.append(frozenset(load_results(tmp_path)["run_id"]))
    assert [len(known) for known in ids] == [1, 2, 2, 2]
    assert ids[1] == ids[2] == ids[3]


def test_only_what_failed_is_tried_again(call_here, tmp_path):
    np.save(tmp_path / "good.npy", np.arange(24).reshape(2, 12))
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(3, 8))
    paths = f"tokens.path={tmp_path}/bad.npy,{tmp_path}/good.npy"
    sweep = ("-m", "tokens=ids", paths, "cases=[hashing]", "worker=inline", "campaign=mine")
    assert call_here(*sweep).returncode == 1
    good = load_results(tmp_path).set_index("status")["run_id"]["ok"]
    np.save(tmp_path / "bad.npy", np.arange(24).reshape(2, 12))
    done = call_here(*sweep, "retry=failed")
    assert done.returncode == 0, done.stdout
    assert "2 runs, 1 of them to be done" in done.stdout
    frame = load_results(tmp_path)
    assert frame["status"].tolist() == ["ok", "ok"]
    assert good in set(frame["run_id"])


def test_a_folder_of_a_run_can_be_run_again_by_hand(call, tmp_path):
    assert call("cases=[hashing]").returncode == 0
    (folder,) = runs(tmp_path)
    before = (folder / "results.csv").read_text()
    subprocess.run(
        [sys.executable, "-m", "engram_exp.run.worker", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    assert (folder / "results.csv").read_text() != before


def test_what_never_ran_is_not_tried_again(call_here, tmp_path):
    same = ("cases=[hashing]", "worker=inline", "campaign=mine")
    assert call_here(*same).returncode == 0
    done = call_here(*same, "batch_size=3", "retry=failed")
    assert done.returncode == 0, done.stderr
    assert "1 runs, 0 of them to be done: the others did not fail" in done.stdout
    assert "/mine also holds runs of other settings (1)" in done.stdout
    assert len(runs(tmp_path)) == 1
