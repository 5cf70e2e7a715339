"""Whatever happens to a run, its files or the disk below them: it is a row, and the rest of the campaign goes on."""

import csv
import errno
import os
import shutil
import subprocess

import pytest
from common import TINY

from engram_exp import load_results, load_samples
from engram_exp.campaign.attempt import Planned
from engram_exp.campaign.campaign import Campaign
from engram_exp.campaign.earlier import earlier_runs, folder_for, others_in_words
from engram_exp.results.load import statuses_of
from engram_exp.results.write import write_run


@pytest.fixture
def sweep(configure, tmp_path):
    """Run a sweep over batch sizes in this process; returns its exit code. `worker=process` takes runs elsewhere."""

    def run(*overrides, batch_sizes=(1, 2)):
        campaign = Campaign()
        campaign.root, campaign.is_sweep = tmp_path / "mine", True
        for number, batch_size in enumerate(batch_sizes):
            asked = (*TINY, "cases=[hashing]", "worker=inline", f"batch_size={batch_size}", *overrides)
            campaign.planned.append(Planned(configure(*asked), {}, tmp_path / f"mine/{number}", 0, ()))
        campaign.run()
        return campaign.finish()

    return run


def ids(tmp_path):
    return load_results(tmp_path).set_index("batch_size")["run_id"].to_dict()


def in_sweep_csv(tmp_path):
    with (tmp_path / "mine/sweep.csv").open(newline="") as file:
        return [(row["status"], row["error"]) for row in csv.DictReader(file)]


def no_temporary_files(tmp_path):
    return not [path for path in tmp_path.rglob(".*") if path.name.startswith((".results", ".samples", ".env", ".job"))]


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "edited": lambda file: file.write_bytes(file.read_bytes().replace(b"hashing", b"lookup")),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("name", ["results.csv", "samples.csv"])
def test_what_the_loader_rejects_is_run_again(sweep, tmp_path, name, capsys):
    sizes = range(1, len(DAMAGES) + 2)
    assert sweep(batch_sizes=sizes) == 0
    before = ids(tmp_path)
    for number, damage in enumerate(DAMAGES.values()):
        damage(tmp_path / f"mine/{number}" / name)
        assert statuses_of(tmp_path / f"mine/{number}") == set()
    assert sweep(batch_sizes=sizes) == 0
    assert f"{len(sizes)} runs, {len(DAMAGES)} of them to be done" in capsys.readouterr().out
    after = ids(tmp_path)
    assert [after[size] == before[size] for size in sizes] == [False] * len(DAMAGES) + [True]
    assert len(load_samples(tmp_path)) == 3 * len(sizes)


@pytest.mark.filterwarnings("ignore:.*unchecked run")
def test_without_a_record_resume_takes_what_the_loader_takes(sweep, tmp_path, capsys):
    assert sweep() == 0
    before = ids(tmp_path)
    (tmp_path / "mine/0/environment.json").unlink()
    assert sweep() == 0
    assert "2 runs, 0 of them to be done" in capsys.readouterr().out
    assert ids(tmp_path) == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{broken: [", b"", None])
def test_a_job_that_cannot_be_read_stops_no_campaign_and_is_not_overwritten(sweep, tmp_path, content):
    assert sweep() == 0
    before = ids(tmp_path)
    job = tmp_path / "mine/0/job.yaml"
    job.unlink()
    job.mkdir() if content is None else job.write_bytes(content)
    assert sweep() == 0
    assert (tmp_path / "mine/0-2/results.csv").exists()
    assert set(before.values()) < set(load_results(tmp_path)["run_id"])


def test_of_two_equal_runs_a_damaged_one_hides_no_whole_one(sweep, tmp_path):
    assert sweep(batch_sizes=[1]) == 0
    shutil.copytree(tmp_path / "mine/0", tmp_path / "mine/7")
    (tmp_path / "mine/7/results.csv").write_text("")
    os.utime(tmp_path / "mine/7/job.yaml")
    assert list(earlier_runs(tmp_path).values()) == [{"ok"}]


@pytest.mark.filterwarnings("ignore:.*left out")
def test_what_stands_in_the_way_of_a_run_fails_that_run(sweep, tmp_path):
    (tmp_path / "mine/0/results.csv").mkdir(parents=True)
    (tmp_path / "mine/0/job.yaml").mkdir()
    assert sweep() == 0
    assert (tmp_path / "mine/0-2").is_dir()
    (tmp_path / "mine/3").write_text("a file where a folder should be")
    assert sweep(batch_sizes=(1, 2, 3, 4, 5)) == 1
    assert sorted(status for status, _ in in_sweep_csv(tmp_path)) == ["crash", "ok", "ok", "ok", "ok"]


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("name", ["job.yaml", "environment.json", "samples.csv", "results.csv"])
def test_a_full_disk_fails_one_run_and_no_other(sweep, tmp_path, monkeypatch, capsys, name):
    replace = os.replace

    def replace_if_there_is_room(source, target):
        full(target) if str(target).endswith(("mine/0/" + name, "mine/0/results.csv")) else replace(source, target)

    monkeypatch.setattr("os.replace", replace_if_there_is_room)
    assert sweep() == 1
    (ok, failed) = sorted(in_sweep_csv(tmp_path), reverse=True)
    assert ok == ("ok", "")
    assert failed[0] == "crash"
    assert "No space left on device" in failed[1]
    out = capsys.readouterr().out
    assert "crash: OSError(28, 'No space left on device')" in out
    assert f"the rows of {tmp_path}/mine/0 cannot be written" in out
    assert no_temporary_files(tmp_path)
    monkeypatch.undo()
    assert sweep() == 0
    assert [status for status, _ in in_sweep_csv(tmp_path)] == ["ok", "ok"]


def test_a_disk_that_is_really_full(sweep, tmp_path):
    folder = tmp_path / "mine/0"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        assert sweep("worker=process") == 1
        assert not (folder / "results.csv").exists()
        (ok, failed) = sorted(in_sweep_csv(tmp_path), reverse=True)
        assert (ok[0], failed[0]) == ("ok", "crash")
        assert failed[1].endswith("No space left on device")
        assert no_temporary_files(tmp_path)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_sweep_csv_that_cannot_be_written_fails_the_sweep_but_not_its_runs(sweep, tmp_path, capsys):
    (tmp_path / "mine/sweep.csv").mkdir(parents=True)
    assert sweep() == 1
    assert len(ids(tmp_path)) == 2
    out = capsys.readouterr().out
    assert "median ms of every run" in out
    assert "sweep.csv cannot be written: " in out


DELETES_ITS_FOLDER = """
import os, shutil, sys
from engram_exp.steps.hashing.numba import NumbaHasher


class Hasher(NumbaHasher):
    def __call__(self, *arguments):
        if os.environ["DELETED"] in sys.argv:
            shutil.rmtree(os.environ["DELETED"], ignore_errors=True)
        return super().__call__(*arguments)
"""


def test_a_folder_that_is_deleted_in_the_middle_fails_one_run_and_no_other(sweep, tmp_path, monkeypatch):
    (tmp_path / "deleting.py").write_text(DELETES_ITS_FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DELETED", str(tmp_path / "mine/0"))
    assert sweep("worker=process", "hashing._target_=deleting.Hasher") == 1
    frame = load_results(tmp_path).set_index("batch_size")
    assert frame["status"].to_dict() == {1: "crash", 2: "ok"}
    assert frame["error"][1].endswith("its folder was deleted meanwhile")
    assert sorted(status for status, _ in in_sweep_csv(tmp_path)) == ["crash", "ok"]


FAILS_THE_SECOND = """
import os, signal
from engram_exp.steps.hashing.numba import NumbaHasher


class Hasher(NumbaHasher):
    def __call__(self, ids, *rest):
        if len(ids) == 2 and os.environ["FAILS_BY"] == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(ids, *rest) * (len(ids) != 2)
"""


@pytest.mark.parametrize(("by", "status"), [("death", "crash"), ("being wrong", "mismatch")])
def test_a_run_that_fails_ends_the_worker_that_it_shares_and_costs_no_other(sweep, tmp_path, monkeypatch, by, status):
    (tmp_path / "failing.py").write_text(FAILS_THE_SECOND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAILS_BY", by)
    monkeypatch.syspath_prepend(tmp_path)
    asked = "worker=shared", "hashing._target_=failing.Hasher", "cases=[lookup]"
    assert sweep(*asked, batch_sizes=(1, 2, 3, 4)) == 1
    frame = load_results(tmp_path).set_index("batch_size")
    assert frame["status"].to_dict() == {1: "ok", 2: status, 3: "ok", 4: "ok"}
    assert set(frame["worker"]) == {"shared"}
    logs = [(tmp_path / f"mine/{number}/run.log").read_text() for number in range(4)]
    assert ["filled a table" in log for log in logs] == [True, False, True, False], "once by each process"


def test_a_sweep_of_which_nothing_could_be_measured_exits_with_3(sweep, tmp_path):
    everything_is_skipped = ("cases=[up_embed]",)
    assert sweep(*everything_is_skipped) == 3
    assert {status for status, _ in in_sweep_csv(tmp_path)} == {"skipped"}
    assert sweep(*everything_is_skipped) == 3, "nor could it before"
    assert sweep(*everything_is_skipped, "retry=failed") == 0, "nothing was asked for"
    assert sweep() == 0


def mark(settings="s", files="f", code="c", machine="m"):
    return "-".join((settings, files, code, machine))


def test_what_is_different_about_other_runs_is_said():
    ours = [mark(), mark("s2")]
    assert others_in_words(ours, ours) == ""
    assert others_in_words([*ours, mark("s3"), mark("s4", code="c2")], ours) == "settings (2), code (1)"
    assert others_in_words([mark(files="f2"), mark(machine="m2"), "0123456789abcdef"], ours) == (
        "files (1), code (1), machines (1)"
    )


def test_what_failed_makes_room_for_what_is_mended(tmp_path):
    for number, (status, there) in enumerate([("ok", mark()), ("crash", mark()), ("ok", mark("s2"))]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "job.yaml").write_text(f"fingerprint: {there}\n")
        write_run(folder, {}, [{"run_id": str(number), "status": status, "case": "full"}])
    assert folder_for(tmp_path / "0", mark()) == tmp_path / "0"
    assert folder_for(tmp_path / "0", mark(files="f2")) == tmp_path / "0-2", "a good run stays"
    assert folder_for(tmp_path / "1", mark(files="f2")) == tmp_path / "1"
    assert folder_for(tmp_path / "1", mark(code="c2")) == tmp_path / "1-2"
    subprocess.run(["gzip", "0/results.csv"], cwd=tmp_path, check=True)
    assert folder_for(tmp_path / "0", mark(files="f2")) == tmp_path / "0-2", "nor does packing give its place away"
