"""What several tests share: the golden vectors, small geometries, composed configurations, runs in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are tested without a GPU; must be set before Triton is imported

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from engram_exp.compression import TokenCompression
from engram_exp.config import register_schema
from engram_exp.experiment import run
from engram_exp.geometry import EngramGeometry
from engram_exp.hashing.plan import HashPlan
from engram_exp.job import Job
from engram_exp.placement import Placement
from engram_exp.terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
CPU = Placement(torch.device("cpu"))

TINY = (  # a model whose runs take milliseconds
    "model.heads=2", "model.vocab_per_order=[50,70]", "model.row_values=8", "model.hidden_size=16", "model.hc_mult=2",
    "batch_size=2", "seq_len=12", "tokens=random", "iterations=3", "budget_s=1", "hardware=cpu", "limits=none",
    "batches=4",
)  # fmt: skip


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def demo_geometry(**changes: object) -> EngramGeometry:
    demo = EngramGeometry(
        layers=(1, 15), layer=1, orders=(2, 3), heads=8, vocab_per_order=(646400, 646400), row_values=64,
        hidden_size=1024, hc_mult=4, bias=True, norm_eps=float(np.finfo(np.float32).eps), hash_seed=0, pad_id=2,
    )  # fmt: skip
    return replace(demo, **changes)


@pytest.fixture(scope="session", autouse=True)
def own_turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests wait neither for what else measures on this machine nor for those of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("turn")))
        patch.setattr("tempfile.tempdir", None)
        yield


@pytest.fixture(scope="package")
def compression() -> TokenCompression:
    """The golden one, so that no test of the hash depends on the tokenizer."""
    return TokenCompression(golden("compression")["lookup_table"])


@pytest.fixture(scope="package")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="package")
def tiny_plan(compression: TokenCompression) -> HashPlan:
    return HashPlan.build(demo_geometry(heads=2, vocab_per_order=(50, 70)), compression)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("accelerator"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


KERNEL_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # Triton's interpreter where there is none
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.accelerator)]

Compose = Callable[..., DictConfig]


@pytest.fixture
def configure(tmp_path: Path, cache_dir: Path) -> Compose:
    """Compose a configuration as the command line would."""

    def with_overrides(*overrides: str) -> DictConfig:
        register_schema()
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            return compose("config", [f"output_dir={tmp_path}", f"cache_dir={cache_dir}", *overrides])

    return with_overrides


RunInline = Callable[..., list[dict]]


@pytest.fixture
def run_inline(configure: Compose, tmp_path: Path) -> RunInline:
    """Run a tiny configuration in this process; returns its rows. Files are left in `tmp_path`."""

    def with_overrides(*overrides: str) -> list[dict]:
        config = configure(*TINY, *overrides)
        return run(Job.create(config, {"strategy": "tiny"}, tmp_path), Terminal())

    return with_overrides


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
