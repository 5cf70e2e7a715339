"""What is refused before a process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from engram_exp.config.derived import AUTO, cases_of, geometry_of
from engram_exp.errors import ConfigError
from engram_exp.strategy.plan import row_order
from engram_exp.vocabulary import HOST, STEPS

WORKERS = ("process", "inline")
LAYOUTS = ("packed", "split")
CAPTURES = ("none", "graph")
RETRIES = ("none", "failed")
SEEDS = 2**32
MOST_THREADS = 4096
LIMITS = ("cached", "refresh", "none")


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
    campaign = Path(config.campaign)
    if campaign.is_absolute() or ".." in campaign.parts or not campaign.parts:
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


def _check_hardware(hardware: Mapping[str, Any]) -> None:
    threads, affinity = hardware["threads"], hardware["affinity"]
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError("hardware.threads", threads, f"must be 1 to {MOST_THREADS}, or null for all")
    if affinity is not None:
        allowed = os.sched_getaffinity(0)
        if not affinity or not allowed.issuperset(affinity):
            raise ConfigError("hardware.affinity", list(affinity), f"must be some of the CPUs {sorted(allowed)}")
