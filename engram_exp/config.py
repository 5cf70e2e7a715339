"""The typed configuration, and the checks that need nothing but the configuration.

The dataclasses are the schema that Hydra holds `conf/` and the command line to; the YAML files hold the values. Nothing
here imports PyTorch, so that `--help`, tab completion and refusals are quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from engram_exp.errors import ConfigError
from engram_exp.geometry import EngramGeometry, PrimeSource, search_primes
from engram_exp.plan import PlannedStage, plan_stages, select_cases

WORKERS = ("process", "inline")

# OmegaConf reads the annotations at run time and, on Python 3.10, knows optional types only as Optional[...].
# ruff: noqa: UP045


@dataclass
class StrategyConfig:
    """Where each step runs: `host` or `device`."""

    hashing: str = MISSING
    lookup: str = MISSING
    projection: str = MISSING


@dataclass
class ModelConfig:
    """See `EngramGeometry`; `tokenizer` is what token compression is built from."""

    tokenizer: str = MISSING
    layers: list[int] = MISSING
    orders: list[int] = MISSING
    heads: int = MISSING
    vocab_per_order: list[int] = MISSING
    row_values: int = MISSING
    hidden_size: int = MISSING
    hc_mult: int = MISSING
    bias: bool = MISSING
    norm_eps: float = MISSING
    hash_seed: int = MISSING
    pad_id: int = MISSING
    table_scale: float = MISSING


@dataclass
class DtypeConfig:
    """The compute dtype, and how far from a float32 reference its keys and value may be."""

    name: str = MISSING
    tolerance: float = MISSING


@dataclass
class HardwareConfig:
    """Which device, and how the CPU's threads are laid out."""

    device: str = MISSING
    threads: Optional[int] = None
    pin_threads: bool = MISSING
    affinity: Optional[list[int]] = None


@dataclass
class RunConfig:
    """Everything one run depends on."""

    batch_size: int = MISSING
    seq_len: int = MISSING
    layer: int = MISSING
    seed: int = MISSING
    batches: int = MISSING
    cases: Any = MISSING
    iterations: int = MISSING
    budget_s: float = MISSING
    save_tensors: bool = MISSING
    worker: str = MISSING
    timeout_s: float = MISSING
    output_dir: str = MISSING
    cache_dir: str = MISSING
    strategy: StrategyConfig = MISSING
    model: ModelConfig = MISSING
    dtype: DtypeConfig = MISSING
    hardware: HardwareConfig = MISSING
    tokens: Any = MISSING
    hashing: Any = MISSING
    table: Any = MISSING
    lookup: Any = MISSING
    projection: Any = MISSING
    upload: Any = MISSING


def register_schema() -> None:
    """Make the schema known to Hydra, under the name that `conf/config.yaml` begins with."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def geometry_of(config: DictConfig, prime_source: PrimeSource = search_primes) -> EngramGeometry:
    """The geometry of the layer that a configuration names.

    Raises:
        ConfigError: a number out of range.
    """
    model = config.model
    return EngramGeometry(
        layers=tuple(model.layers),
        layer=config.layer,
        orders=tuple(model.orders),
        heads=model.heads,
        vocab_per_order=tuple(model.vocab_per_order),
        row_values=model.row_values,
        hidden_size=model.hidden_size,
        hc_mult=model.hc_mult,
        bias=model.bias,
        norm_eps=model.norm_eps,
        hash_seed=model.hash_seed,
        pad_id=model.pad_id,
        table_scale=model.table_scale,
        prime_source=prime_source,
    )


def stages_of(config: DictConfig) -> tuple[PlannedStage, ...]:
    """The stages of the strategy that a configuration names."""
    return plan_stages({str(step): str(place) for step, place in config.strategy.items()})


def cases_of(config: DictConfig) -> tuple[str, ...]:
    """The cases that a configuration asks for."""
    return select_cases(config.cases, stages_of(config))


def threads_of(config: DictConfig) -> int:
    """CPU threads of a run: as configured, else as many as it may use."""
    return config.hardware.threads or len(config.hardware.affinity or os.sched_getaffinity(0))


def check(config: DictConfig) -> None:
    """Refuse whatever can be refused before a process is started.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    for key in ("batch_size", "seq_len", "iterations", "batches"):
        if config[key] < 1:
            raise ConfigError(key, config[key], "must be at least 1")
    if config.seed < 0:
        raise ConfigError("seed", config.seed, "must be at least 0")
    for key in ("budget_s", "timeout_s"):
        if not config[key] > 0:
            raise ConfigError(key, config[key], "must be above 0")
    if config.worker not in WORKERS:
        raise ConfigError("worker", config.worker, f"must be one of {', '.join(WORKERS)}")
    if not 0 < config.dtype.tolerance < 1:
        raise ConfigError("dtype.tolerance", config.dtype.tolerance, "must be above 0 and below 1")
    _check_hardware(config.hardware)
    changed = [key for key in ("threads", "pin_threads", "affinity") if config.hardware[key]]
    if config.worker == "inline" and changed:
        raise ConfigError("worker", "inline", f"cannot change hardware.{changed[0]} of this process; use process")
    geometry_of(config)
    cases_of(config)


def _check_hardware(hardware: Mapping[str, Any]) -> None:
    threads, affinity = hardware["threads"], hardware["affinity"]
    if threads is not None and threads < 1:
        raise ConfigError("hardware.threads", threads, "must be at least 1, or null for all")
    if affinity is not None:
        allowed = os.sched_getaffinity(0)
        if not affinity or not allowed.issuperset(affinity):
            raise ConfigError("hardware.affinity", list(affinity), f"must be some of the CPUs {sorted(allowed)}")
