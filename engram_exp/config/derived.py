"""What follows from a configuration: geometry, stages, sizes, threads."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.schema import COMPONENTS
from engram_exp.errors import ConfigError
from engram_exp.layer.geometry import EngramGeometry, PrimeSource, search_primes
from engram_exp.machine import cgroup
from engram_exp.strategy.plan import PlannedStage, plan_stages, select_cases
from engram_exp.vocabulary import FUSION

AUTO = "auto"
BATCHES, ROTATED_BYTES = (4, 256), 2**30
CHUNKS = 4
CHUNK_BYTES = (4 * 2**20, 32 * 2**20)
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def geometry_of(config: DictConfig, prime_source: PrimeSource = search_primes) -> EngramGeometry:
    """The geometry of the layer that a configuration names.

    Raises:
        ConfigError: a number out of range.
    """
    numbers: dict[str, Any] = {
        str(name): tuple(value) if OmegaConf.is_list(value) else value for name, value in config.model.items()
    }
    del numbers["tokenizer"]
    return EngramGeometry(
        **numbers,
        layer=config.layer,
        value_bytes=value_bytes_of(config.dtype.name),
        values_per_scale=config.dtype.values_per_scale,
        prime_source=prime_source,
    )


def stages_of(config: DictConfig) -> tuple[PlannedStage, ...]:
    """The stages of the strategy that a configuration names."""
    places = {str(step): str(place) for step, place in config.strategy.items()}
    return plan_stages(places, widens=config.dtype.values_per_scale is not None, fuses=fuses(config))


def fuses(config: DictConfig) -> bool:
    """Whether a fusion is chosen: the option `none` names no class."""
    return bool(config.fusion.get("_target_"))


def components_of(config: DictConfig) -> tuple[str, ...]:
    """The groups whose options name a class."""
    return tuple(group for group in COMPONENTS if group != FUSION.name or fuses(config))


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
    """CPU threads of a run: as configured, else one for each CPU that it may use."""
    return config.hardware.threads or usable_cpus(config.hardware.affinity)


def usable_cpus(affinity: Collection[int] | None) -> int:
    """CPUs that a run may use here: those of its affinity, else of this process's, but no more than a control group
    allows."""
    usable = len(affinity or os.sched_getaffinity(0))
    return min(usable, cgroup.cpus() or usable)


def value_bytes_of(dtype: str) -> int:
    """Size of a value of a compute dtype.

    Raises:
        ConfigError: there is none of that name.
    """
    if dtype not in VALUE_BYTES:
        raise ConfigError("dtype", dtype, f"must be {', '.join(VALUE_BYTES)} or, for rows alone, fp8")
    return VALUE_BYTES[dtype]
