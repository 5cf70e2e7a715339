"""The typed configuration, and the checks that need nothing but the configuration.

The dataclasses are the schema that Hydra holds `conf/` and the command line to; the YAML files hold the values. Nothing
here imports PyTorch, so that `--help`, tab completion and refusals are quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from engram_exp.errors import ConfigError
from engram_exp.layer.geometry import EngramGeometry, PrimeSource, search_primes
from engram_exp.machine import cgroup
from engram_exp.strategy.plan import HOST, STEPS, PlannedStage, plan_stages, row_order, select_cases

WORKERS = ("process", "inline")
LAYOUTS = ("packed", "split")
CAPTURES = ("none", "graph")
RETRIES = ("none", "failed")
AUTO = "auto"
BATCHES, ROTATED_BYTES = (4, 256), 2**30
CHUNKS = 4
SEEDS = 2**32
MOST_THREADS = 4096
CHUNK_BYTES = (4 * 2**20, 32 * 2**20)
LIMITS = ("cached", "refresh", "none")
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# OmegaConf reads the annotations at run time and, on Python 3.10, knows optional types only as Optional[...].
# ruff: noqa: UP045


@dataclass
class StrategyConfig:
    """Where the table lives and where each step runs: `host` or `device`."""

    table: str = "host"
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
    """The compute dtype, how far from a float32 reference its keys and value may be, and how rows are stored: in the
    compute dtype, or in e4m3 with a ue8m0 scale for so many values, packed behind them or split off."""

    name: str = MISSING
    tolerance: float = MISSING
    values_per_scale: Optional[int] = None
    layout: str = "packed"


@dataclass
class ScheduleConfig:
    """How the stages of `full` follow each other: a whole batch at a time (null), or overlapping in chunks of so many
    tokens, or of as many as `chunk_tokens_of` finds."""

    chunk_tokens: Any = None
    ring_depth: int = MISSING


@dataclass
class DataSheetConfig:
    """What the vendor promises: shown beside what is measured. Dense TFLOP/s by dtype; the link in one direction."""

    gpu: str = MISSING
    memory_gb: float = MISSING
    memory_gb_per_s: float = MISSING
    link_gb_per_s: float = MISSING
    tflop_per_s: dict[str, float] = MISSING


@dataclass
class HardwareConfig:
    """Which device, and how the CPU's threads are laid out."""

    device: str = MISSING
    threads: Optional[int] = None
    pin_threads: bool = MISSING
    affinity: Optional[list[int]] = None
    data_sheet: Optional[DataSheetConfig] = None


@dataclass
class RunConfig:
    """Everything one run depends on."""

    batch_size: int = MISSING
    seq_len: int = MISSING
    layer: int = MISSING
    seed: int = MISSING
    batches: Any = MISSING
    cases: Any = MISSING
    iterations: int = MISSING
    budget_s: float = MISSING
    capture: str = MISSING
    save_tensors: bool = MISSING
    limits: str = MISSING
    campaign: str = MISSING
    repeats: int = MISSING
    resume: bool = MISSING
    retry: str = MISSING
    worker: str = MISSING
    timeout_s: float = MISSING
    output_dir: str = MISSING
    limits_dir: str = MISSING
    cache_dir: str = MISSING
    strategy: StrategyConfig = MISSING
    model: ModelConfig = MISSING
    dtype: DtypeConfig = MISSING
    schedule: ScheduleConfig = MISSING
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
        value_bytes=value_bytes_of(config.dtype.name),
        values_per_scale=config.dtype.values_per_scale,
        prime_source=prime_source,
    )


def stages_of(config: DictConfig) -> tuple[PlannedStage, ...]:
    """The stages of the strategy that a configuration names."""
    places = {str(step): str(place) for step, place in config.strategy.items()}
    return plan_stages(places, widens=config.dtype.values_per_scale is not None)


def batches_of(config: DictConfig) -> int:
    """Distinct token batches of a run. Unless a number is configured: as many as ask for 1 GiB of rows between them, so
    that rows are not still in a cache when their batch comes again, but 4 to 256."""
    if config.batches != AUTO:
        return int(config.batches)
    batch_bytes = geometry_of(config).stored_bytes(config.batch_size * config.seq_len)
    least, most = BATCHES
    return int(min(most, max(least, ROTATED_BYTES // batch_bytes)))


def chunk_tokens_of(config: DictConfig) -> int | None:
    """Tokens of a pipeline's chunk, None without a pipeline.

    Unless a number is configured: a quarter of the batch, but at least 4 and at most 32 MiB of stored rows. On an H200
    with 16 CPU threads smaller chunks lose more to opening parallel regions than they gain by overlapping.
    """
    chunk_tokens = config.schedule.chunk_tokens
    if chunk_tokens != AUTO:
        return None if chunk_tokens is None else int(chunk_tokens)
    token_bytes = geometry_of(config).stored_bytes(1)
    smallest, largest = (max(1, size_bytes // token_bytes) for size_bytes in CHUNK_BYTES)
    return int(min(largest, max(smallest, config.batch_size * config.seq_len // CHUNKS)))


def cases_of(config: DictConfig) -> tuple[str, ...]:
    """The cases that a configuration asks for."""
    return select_cases(config.cases, stages_of(config))


def threads_of(config: DictConfig) -> int:
    """CPU threads of a run: as configured, else as many as it may use."""
    usable = len(config.hardware.affinity or os.sched_getaffinity(0))
    return config.hardware.threads or min(usable, cgroup.cpus() or usable)


def check(config: DictConfig) -> None:
    """Refuse whatever can be refused before a process is started.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    for key in ("batch_size", "seq_len", "iterations", "repeats"):
        if config[key] < 1:
            raise ConfigError(key, config[key], "must be at least 1")
    if config.batches != AUTO and (type(config.batches) is not int or config.batches < 1):
        raise ConfigError("batches", config.batches, f"must be a whole number of at least 1, or {AUTO}")
    if not 0 <= config.seed < SEEDS:
        raise ConfigError("seed", config.seed, f"must be at least 0 and below {SEEDS}")
    for key in ("budget_s", "timeout_s"):
        if not config[key] > 0:
            raise ConfigError(key, config[key], "must be above 0")
    if config.retry not in RETRIES:
        raise ConfigError("retry", config.retry, f"must be one of {', '.join(RETRIES)}")
    if config.worker not in WORKERS:
        raise ConfigError("worker", config.worker, f"must be one of {', '.join(WORKERS)}")
    if not 0 < config.dtype.tolerance < 1:
        raise ConfigError("dtype.tolerance", config.dtype.tolerance, "must be above 0 and below 1")
    if config.limits not in LIMITS:
        raise ConfigError("limits", config.limits, f"must be one of {', '.join(LIMITS)}")
    if config.dtype.layout not in LAYOUTS:
        raise ConfigError("dtype.layout", config.dtype.layout, f"must be one of {', '.join(LAYOUTS)}")
    if config.dtype.layout == "split" and config.dtype.values_per_scale is None:
        raise ConfigError("dtype.layout", "split", "there are no scales to split off; use it with dtype=fp8")
    if Path(config.campaign).is_absolute() or ".." in Path(config.campaign).parts:
        raise ConfigError("campaign", config.campaign, "must name a folder below output_dir")
    _check_hardware(config.hardware)
    changed = [key for key in ("threads", "pin_threads", "affinity") if config.hardware[key]]
    if config.worker == "inline" and changed:
        raise ConfigError("worker", "inline", f"cannot change hardware.{changed[0]} of this process; use process")
    geometry_of(config)
    cases_of(config)
    _check_schedule(config)
    if "sort_from_rows" in config.lookup:
        row_order(config.lookup.order, 0, 0, HOST)


def _check_schedule(config: DictConfig) -> None:
    chunk_tokens, ring_depth = config.schedule.chunk_tokens, config.schedule.ring_depth
    on_host = [step for step in STEPS if config.strategy[step] == HOST]
    if config.capture not in CAPTURES:
        raise ConfigError("capture", config.capture, f"must be one of {', '.join(CAPTURES)}")
    if config.capture == "graph" and on_host:
        raise ConfigError("capture", "graph", f"{on_host[0]} runs on the host here; strategy=uva or device would work")
    if ring_depth < 1:
        raise ConfigError("schedule.ring_depth", ring_depth, "must be at least 1")
    if chunk_tokens is None and ring_depth > 1:
        raise ConfigError("schedule.ring_depth", ring_depth, "whole batches need one buffer; use schedule=pipelined")
    if chunk_tokens is not None:
        if chunk_tokens != AUTO and (type(chunk_tokens) is not int or chunk_tokens < 1):
            remedy = f"must be a whole number of at least 1, {AUTO}, or null for whole batches"
            raise ConfigError("schedule.chunk_tokens", chunk_tokens, remedy)
        if "lookup" not in on_host:
            raise ConfigError("schedule", "pipelined", "needs a lookup on the host to overlap; use schedule=serial")


def value_bytes_of(dtype: str) -> int:
    """Size of a value of a compute dtype.

    Raises:
        ConfigError: there is none of that name.
    """
    if dtype not in VALUE_BYTES:
        raise ConfigError("dtype", dtype, f"must be {', '.join(VALUE_BYTES)} or, for rows alone, fp8")
    return VALUE_BYTES[dtype]


def _check_hardware(hardware: Mapping[str, Any]) -> None:
    threads, affinity = hardware["threads"], hardware["affinity"]
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError("hardware.threads", threads, f"must be 1 to {MOST_THREADS}, or null for all")
    if affinity is not None:
        allowed = os.sched_getaffinity(0)
        if not affinity or not allowed.issuperset(affinity):
            raise ConfigError("hardware.affinity", list(affinity), f"must be some of the CPUs {sorted(allowed)}")
