"""Several nodes: whoever listens where they meet is the first, hands out jobs, and hears what becomes of them.

Nodes are processes of this machine here, with a host's name of their own where the kernel lets them have one.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from common import ROOT
from test_runs import ENDLESS, WAIT_S

from engram_exp import load_results
from engram_exp.campaign import attend, nodes
from engram_exp.campaign.nodes import OtherNodes, meet
from engram_exp.campaign.process import Ending
from engram_exp.errors import ConfigError
from engram_exp.machine.rendezvous import Node, endpoint_of, require_one_task_a_node
from engram_exp.run.job import Job

OWN_NAME = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname another; exec "$@"', "sh"]


def free_port():
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def job(configure, tmp_path):
    made = Job.create(configure("nodes=3", "ranks=3"), {}, tmp_path / "job")
    (tmp_path / "job").mkdir()
    made.save()
    return made


@pytest.fixture
def together(monkeypatch, job):
    """Three nodes, each a thread; what each makes of a job, in place of a worker: an ending, or None if it got through.
    Returns what the first one makes of two jobs, and which nodes had any."""

    def run(*of_nodes, patience_s=10, comers=2):
        told = SimpleNamespace(nodes=3, rendezvous=f"localhost:{free_port()}", rank_timeout_s=patience_s)
        heard = []

        def worker(jobs, turn, node, others):
            heard.append((node.number, jobs[0].run_id, turn))
            ending = of_nodes[node.number]
            if node.number:
                node.ending_file(job_folder).write_text("null")
            else:
                found = [other.hear(10) for other in others]
                ending = next(filter(None, found), ending)
            if ending and node.number:
                node.ending_file(job_folder).unlink()
            yield ending

        job_folder = Path(job.folder)
        for module in (nodes, attend):
            monkeypatch.setattr(module, "measure_in_worker", worker)
        monkeypatch.setattr(nodes, "NOTHING_S", 0.1)
        first = meet([told])
        assert isinstance(first, OtherNodes)
        with ThreadPoolExecutor(2) as threads:
            others = [threads.submit(meet, [told]) for _ in range(comers)]
            first.gather(patience_s)
            endings = [next(first.measure([job], "turn")) for _ in range(2)]
            first.part()
            assert [other.result(10) for other in others] == [None] * comers
        return endings, heard

    return run


GOOD = Ending("ok", "")


def test_every_node_gets_each_job_and_the_first_hears_how_it_ended(together, job):
    endings, heard = together(GOOD, None, None)
    assert endings == [GOOD] * 2
    assert sorted(heard) == sorted([(0, job.run_id, "turn"), (1, job.run_id, None), (2, job.run_id, None)] * 2)
    lost = Ending("crash", "rank 2 was killed by SIGKILL")
    assert together(GOOD, None, lost)[0] == [lost] * 2


def test_a_run_without_all_of_its_nodes_is_refused(together):
    endings, heard = together(GOOD, None, None, patience_s=0.5, comers=1)
    assert endings == [Ending("refused", "nodes=3: 2 came; start the same command on each")] * 2
    assert not heard


def test_whoever_is_no_node_is_turned_away(monkeypatch):
    told = SimpleNamespace(nodes=2, rendezvous=f"localhost:{free_port()}", rank_timeout_s=1)
    first = meet([told])
    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(nodes, "code_digest", lambda: "other code")
        other = threads.submit(meet, [told])
        first.gather(0.5)
        with pytest.raises(SystemExit):
            other.result(10)
    assert not first.nodes
    with pytest.raises(ConfigError, match="no node listens there"):
        attend.attend(told.rendezvous, "localhost", free_port(), 0.1)


@pytest.mark.parametrize(
    ("asked", "found"), [("gpu1", ("gpu1", 29500)), ("10.0.0.1:4000", ("10.0.0.1", 4000)), (None, ("n7", 22345))]
)
def test_where_nodes_meet(monkeypatch, tmp_path, asked, found):
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames n[7-8]" ] && echo n7 && echo n8\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[7-8]")
    assert endpoint_of(asked) == found


@pytest.mark.parametrize("asked", [None, "", ":1", "host:port"])
def test_a_place_that_nobody_names_is_refused(monkeypatch, asked):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match="must be HOST or HOST:PORT of one of the nodes"):
        endpoint_of(asked)


def test_a_step_of_slurm_starts_one_task_on_each_node(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    with pytest.raises(ConfigError, match="this step has 16: srun --nodes=2 --ntasks-per-node=1"):
        require_one_task_a_node(2, None)
    require_one_task_a_node(16, None)
    require_one_task_a_node(2, "host")


def test_a_worker_knows_its_node(monkeypatch):
    assert Node.of_worker() == Node()
    for name, value in Node(3, "host:1").variables().items():
        monkeypatch.setenv(name, value)
    assert Node.of_worker() == Node(3, "host:1")


@pytest.fixture
def start(command, tmp_path):
    """Start the same command on two nodes; they are ended with the test."""
    may_name = subprocess.run([*OWN_NAME, "true"], capture_output=True).returncode == 0
    meeting = "nodes=2", f"rendezvous=localhost:{free_port()}", "campaign=both", "cases=[full]"
    started = []

    def both(*arguments):
        for number, before in enumerate(([], OWN_NAME if may_name else [])):
            with (tmp_path / f"{number}.txt").open("w") as out:
                process = subprocess.Popen(
                    [*before, *command(*meeting, *arguments)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
                )
            started.append(process)
            while "waiting: 1 of 2 nodes are here" not in (tmp_path / "0.txt").read_text():
                assert process.poll() is None
                time.sleep(0.1)
        return *started, "another" if may_name else platform.node()

    yield both
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_nodes_leave_one_set_of_rows(start, tmp_path):
    first, other, name = start("ranks=4", "strategy=host_shared", "projection=column_parallel")
    assert first.wait(WAIT_S) == other.wait(WAIT_S) == 0, (tmp_path / "0.txt").read_text()
    (row,) = load_results(tmp_path / "out").to_dict("records")
    assert [row[name] for name in ("status", "ranks", "nodes")] == ["ok", 4, 2]
    said = (tmp_path / "0.txt").read_text()
    assert f"node 1 is {name}\n" in said
    assert "4 on 2 hosts" in said
    logs = sorted(file.name for file in (tmp_path / "out/both").glob("run*.log"))
    assert logs == ["run.1.log", "run.2.log", "run.3.log", "run.log"]
    assert "timed full" not in (tmp_path / "1.txt").read_text()


@pytest.mark.slow
def test_a_rank_that_dies_on_one_node_ends_all_and_is_named(start, tmp_path):
    *processes, _ = start("ranks=2", "strategy=sharded", "exchange=all_gather", *ENDLESS[:2])
    deadline, log = time.monotonic() + WAIT_S, tmp_path / "out/both/run.log"
    while not (log.exists() and "the first timed sample follows" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = [child for each in processes for child in psutil.Process(each.pid).children(recursive=True)]
    ranks = {int(each.environ()["RANK"]): each for each in below if "engram_exp.run.rank" in each.cmdline()}
    assert sorted(ranks) == [0, 1]
    ranks[1].kill()
    assert [each.wait(WAIT_S) for each in processes] == [1, 0]
    (row,) = load_results(tmp_path / "out").to_dict("records")
    assert (row["status"], row["error"]) == ("crash", "rank 1 was killed by SIGKILL")
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
