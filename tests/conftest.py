"""Fixtures of every folder. Nothing here imports PyTorch before a test needs it."""

from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from common import ONE_THREAD, ROOT, TINY, composed, demo_geometry, golden
from hypothesis import HealthCheck, settings
from omegaconf import DictConfig

from engram_exp.campaign.preflight import Preflight
from engram_exp.layer.compression import TokenCompression
from engram_exp.machine.environment import gpus

# Compiled modules are kept, whatever a container says: each worker and each process that tests start would else compile
# all files again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if not gpus():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are tested without a GPU; must be set before Triton is imported
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's, in small operations, would take turns with those of other tests

# No test fails because a machine is busy, or because Hypothesis first makes its tables of characters.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

Compose = Callable[..., DictConfig]
RunInline = Callable[..., list[dict]]


NO_ACCELERATOR = "needs a CUDA device"


WHOLE_RUNS = {"call", "call_here", "sweep", "run_inline"}  # fixtures that start the program or a run


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WHOLE_RUNS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("accelerator") and not gpus():
            item.add_marker(pytest.mark.skip(reason=NO_ACCELERATOR))


def pytest_collection_finish() -> None:
    """Leave what imports made out of later collections of garbage: every run asks for one, which else takes a third of
    a second. Give PyTorch its one thread back: numba's start gives OpenMP as many as there are CPUs, and two that share
    out a tiny matrix take ten times as long as one."""
    if {"numba", "torch"} <= set(sys.modules):
        sys.modules["numba"].get_num_threads()
        sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests no machine without an accelerator can answer for."""
    skipped = [report for report in terminalreporter.getreports("skipped") if NO_ACCELERATOR in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need an accelerator, which is not here: they did not run")


@pytest.fixture(scope="session", autouse=True)
def own_turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests wait neither for what else measures on this machine nor for those of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("turn")))
        patch.setattr("tempfile.tempdir", None)
        yield


@pytest.fixture(scope="session")
def compression() -> TokenCompression:
    """The golden one, so that no test of the hash depends on the tokenizer."""
    return TokenCompression(golden("compression")["lookup_table"])


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of pytest's processes: what is made or compiled once need not be again."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"


@pytest.fixture(scope="session")
def tiny_plan(compression: TokenCompression):
    from engram_exp.layer.deepseek_hash import DeepSeekHash

    return DeepSeekHash(compression, hash_seed=0, pad_id=2)(demo_geometry(heads=2, vocab_per_order=(50, 70)))


@pytest.fixture
def configure(tmp_path: Path, cache_dir: Path) -> Compose:
    """Compose a configuration as the command line would."""
    return lambda *overrides: composed(f"output_dir={tmp_path}", f"cache_dir={cache_dir}", *overrides)[0]


@pytest.fixture
def run_inline(configure: Compose, tmp_path: Path) -> Iterator[RunInline]:
    """Run a tiny configuration in this process and on one thread; returns its rows. Files are left in `tmp_path`."""
    import numba
    import torch

    from engram_exp.run.experiment import run
    from engram_exp.run.job import Job
    from engram_exp.run.terminal import Terminal

    def with_overrides(*overrides: str) -> list[dict]:
        config = configure(*TINY, *overrides)
        return run(Job.create(config, {"strategy": "tiny"}, tmp_path), Terminal())

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield with_overrides
    numba.set_num_threads(threads)


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look behind the samples at as many calls as usual of quick cases, and at few of interpreted ones."""
    monkeypatch.setattr("engram_exp.run.glance.BURST_S", 0.05)


@pytest.fixture
def command(tmp_path: Path, cache_dir: Path) -> Callable[..., list[str]]:
    """The program with a tiny model; files go below `tmp_path/out`."""

    def build(*arguments: str) -> list[str]:
        folders = [f"output_dir={tmp_path / 'out'}", f"cache_dir={cache_dir}"]
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        alone = "worker=inline" in overrides  # takes the threads of its process
        threads = [] if alone or "hardware.affinity" in str(overrides) else ["hardware.threads=1"]
        return [sys.executable, "run.py", *flags, *TINY, *folders, *threads, *overrides]

    return build


@pytest.fixture
def call(command: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess]:
    """Run `command` and wait for it."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **ONE_THREAD, **variables}
        return subprocess.run(
            command(*arguments), cwd=ROOT, capture_output=True, text=True, env=environment, timeout=250
        )

    return run


@pytest.fixture
def call_here(command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run `command` in this process, without the time of a start."""
    monkeypatch.setattr("engram_exp.campaign.process.stop_on", lambda *signals: None)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        asked = command(*arguments)
        for name, value in {"sweep_dir": None, "began": 0.0, "reports": False}.items():  # of no earlier call
            monkeypatch.setattr(Preflight, name, value)
        monkeypatch.setattr(sys, "argv", asked[1:])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return subprocess.CompletedProcess(asked, ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of calls (`graph_calls`) are launched one by one here, where there are no graphs."""
    monkeypatch.setattr("engram_exp.run.graph_calls.Replay", lambda run, pool: run)
    monkeypatch.setattr("engram_exp.run.requirements._check_graph_calls", lambda plan: None)
