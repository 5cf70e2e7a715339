"""What is refused before a process is started."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from engram_exp.config.derived import (
    GRAPH,
    NONE,
    cases_of,
    components_of,
    geometry_of,
    host_steps_of,
    ranks_per_node,
    threads_of,
    usable_cpus,
)
from engram_exp.config.rank_checks import check_gpus, check_nodes, check_ranks
from engram_exp.config.schema import ModelConfig
from engram_exp.config.step_checks import check_step
from engram_exp.errors import ConfigError
from engram_exp.machine.affinity import own_cpus
from engram_exp.machine.numa import NEAR, require
from engram_exp.steps.lookup.order import check_launch, check_order
from engram_exp.vocabulary import (
    AS_IS,
    AUTO,
    BESIDE,
    COLD,
    DEVICE,
    DISK,
    EACH,
    HIGH,
    HOST,
    INLINE,
    LOOKUP,
    LOW,
    ONE,
    OWN,
    PLACED,
    PREVIOUS_STEP,
    SAME,
    SHARED,
    THIS_STEP,
    WARM,
)

CHOICES = {
    "retry": ("none", "failed"),
    "worker": ("process", SHARED, INLINE),
    "limits": ("cached", "refresh", "none"),
    "capture": (NONE, GRAPH, AUTO),
    "cache_state": (COLD, WARM, AS_IS),
    "dtype.layout": ("packed", "split"),
    "ids": (AUTO, HOST, DEVICE),
    "prefetch.where": (BESIDE, INLINE),
    "prefetch.streams": (ONE, EACH),
    "prefetch.priority": (LOW, HIGH),
    "prefetch.lead": (THIS_STEP, PREVIOUS_STEP),
    "rank_batches": (SAME, OWN),
}
AT_LEAST_1 = (
    "steps_per_sample", "batch_size", "seq_len", "iterations", "repeats", "schedule.ring_depth",
    "link_load_block_kib", "ranks", "nodes",
)  # fmt: skip
AT_LEAST_0 = (  # or null
    "pause_ms", "graph_calls", "host_load", "link_load_gb_per_s",
    "model.hash_seed", "model.pad_id", "model.vocab_size", "model.eos_id",
)  # fmt: skip
ABOVE_0 = ("budget_s", "timeout_s", "rank_timeout_s")
TEAMS = ("hashing", "lookup")  # groups with an option `threads`
SEEDS = 2**32
MOST_THREADS = 4096


def check(config: DictConfig, *, here: bool = True) -> None:
    """Refuse whatever can be refused before a process is started.

    Args:
        config: composed by Hydra.
        here: whether it will run on this machine.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    try:
        _check(config)
    except MissingMandatoryValue as error:
        remedy = "has no value; set it, or choose an option of its group that does"
        raise ConfigError(str(error.full_key), MISSING, remedy) from error
    if here:
        check_cpus(config.hardware)
        check_teams(config)
        check_host_load(config.host_load, config.hardware.affinity)
        check_gpus(config)
        check_nodes(config)
        if (asked := config.hardware.numa) is not None:
            require(asked, ranks_per_node(config), config.hardware.affinity or own_cpus())


def check_cpus(hardware: Mapping[str, Any]) -> None:
    """Refuse CPUs that this machine does not give, and more threads than CPUs: where threads wait for each other's turn
    on a CPU, it is the turns that are measured.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    threads, affinity = hardware["threads"], hardware["affinity"]
    allowed = own_cpus()
    if affinity and not allowed.issuperset(affinity):
        raise ConfigError("hardware.affinity", list(affinity), f"must be some of the CPUs {sorted(allowed)}")
    usable = usable_cpus(affinity)
    if threads and threads > usable:
        remedy = (
            f"more threads than CPUs that a run may use here; {usable} would work, or null for as many as there are"
        )
        raise ConfigError("hardware.threads", threads, remedy)


def check_teams(config: DictConfig) -> None:
    """Refuse more threads for a component than the run has.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    for group in TEAMS:
        threads, most = config[group].get("threads", AUTO), threads_of(config)
        if threads != AUTO and threads > most:
            raise ConfigError(f"{group}.threads", threads, f"the run has {most} (hardware.threads); {AUTO} would work")


def check_host_load(processes: int, cpus: Collection[int] | None) -> None:
    """Refuse to keep more CPUs busy than there are.

    Args:
        processes: that never sleep.
        cpus: that the run may use; None: those of this process.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    usable = usable_cpus(cpus)
    if processes > usable:
        remedy = f"more busy processes than CPUs that a run may use here; {usable} would work, or 0 for none"
        raise ConfigError("host_load", processes, remedy)


def _check(config: DictConfig) -> None:
    _check_engine(config)
    _check_model(config.model)
    _check_components(config)
    _check_ranges(config)
    _check_hardware(config)
    geometry_of(config)
    cases_of(config)
    _check_schedule(config)
    _check_disk(config)
    check_step(config)
    check_ranks(config)
    if "sort_from_rows" in config.lookup:
        lookup = config.lookup
        check_order(lookup.order)
        launch = lookup.get("rows_per_program", AUTO), lookup.get("warps", 1), lookup.get("programs", AUTO)
        check_launch(*launch, lookup.get("stages", 1))


def _check_engine(config: DictConfig) -> None:
    """Refuse a bundle under a strategy that its engine has no path for."""
    engine = config.engine
    for key in ("table", *PLACED) if engine.name else ():
        if config.strategy[key] != engine[key]:
            remedy = f"has no path with strategy.{key}={config.strategy[key]}; it takes strategy={engine.strategy}"
            raise ConfigError("components", engine.name, remedy)


def _check_model(model: DictConfig) -> None:
    known = [each.name for each in fields(ModelConfig)]
    for key in map(str, model):
        if key not in known:
            raise ConfigError(f"model.{key}", model[key], f"no model has such a key; there are {', '.join(known)}")
    if not model.layers:
        raise ConfigError("model.layers", "[]", "must hold a layer at least")


def _check_components(config: DictConfig) -> None:
    for key, node in {
        **{group: config[group] for group in components_of(config)},
        "model.hash": config.model.hash,
    }.items():
        if not (OmegaConf.is_dict(node) and isinstance(node.get("_target_"), str)):
            remedy = f"must be the component's class, as in conf/{key.partition('.')[0]}/: `_target_: module.Class`"
            raise ConfigError(f"{key}._target_", "null", remedy)
        OmegaConf.to_container(node, throw_on_missing=True)


def _check_ranges(config: DictConfig) -> None:
    values = {key: OmegaConf.select(config, key) for key in (*AT_LEAST_1, *AT_LEAST_0, *ABOVE_0, *CHOICES)}
    for key in AT_LEAST_1:
        if values[key] < 1:
            raise ConfigError(key, values[key], "must be at least 1")
    for key in AT_LEAST_0:
        if values[key] is not None and not 0 <= values[key] < inf:
            raise ConfigError(key, values[key], "must be at least 0")
    for key in ABOVE_0:
        if not values[key] > 0:
            raise ConfigError(key, values[key], "must be above 0")
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(key, values[key], f"must be one of {', '.join(choices)}")
    for group in TEAMS:
        threads = config[group].get("threads", AUTO)
        if threads != AUTO and not _is_count(threads):
            raise ConfigError(f"{group}.threads", threads, f"must be a whole number of at least 1, or {AUTO}")
    if config.graph_calls and config.pause_ms:
        remedy = f"calls of a graph follow each other without the pause_ms={config.pause_ms:g}; one of them must be 0"
        raise ConfigError("graph_calls", config.graph_calls, remedy)
    if config.batches != AUTO and not _is_count(config.batches):
        raise ConfigError("batches", config.batches, f"must be a whole number of at least 1, or {AUTO}")
    if not 0 <= config.seed < SEEDS:
        raise ConfigError("seed", config.seed, f"must be at least 0 and below {SEEDS}")
    if not 0 < config.dtype.tolerance < 1:
        raise ConfigError("dtype.tolerance", config.dtype.tolerance, "must be above 0 and below 1")
    if config.dtype.layout == "split" and config.dtype.values_per_scale is None:
        raise ConfigError("dtype.layout", "split", "there are no scales to split off; use it with dtype=fp8")
    campaign = Path(config.campaign)
    if campaign.is_absolute() or ".." in campaign.parts or not campaign.parts:
        raise ConfigError("campaign", config.campaign, "must name a folder below output_dir")


def _check_hardware(config: DictConfig) -> None:
    hardware = config.hardware
    if hardware.threads is not None and not 1 <= hardware.threads <= MOST_THREADS:
        raise ConfigError("hardware.threads", hardware.threads, f"must be 1 to {MOST_THREADS}, or null for all")
    if hardware.affinity is not None and not hardware.affinity:
        raise ConfigError("hardware.affinity", "[]", "must be some of the machine's CPUs, or null for all")
    changed = [key for key in ("threads", "pin_threads", "affinity") if hardware[key]]
    numa = hardware.numa
    if numa is not None and numa != NEAR and (not isinstance(numa, int) or isinstance(numa, bool) or numa < 0):
        raise ConfigError("hardware.numa", numa, f"must be the number of a node, {NEAR}, or null")
    changed += ["numa"] if numa is not None else []
    if config.worker == "inline" and changed:
        raise ConfigError("worker", "inline", f"cannot change hardware.{changed[0]} of this process; use process")


def _check_schedule(config: DictConfig) -> None:
    chunk_tokens, ring_depth = config.schedule.chunk_tokens, config.schedule.ring_depth
    on_host = host_steps_of(config)
    if config.capture == GRAPH and on_host:
        raise ConfigError("capture", GRAPH, f"{on_host[0]} runs on the host here; strategy=uva or device would work")
    if chunk_tokens is None and ring_depth > 1:
        raise ConfigError("schedule.ring_depth", ring_depth, "whole batches need one buffer; use schedule=pipelined")
    if chunk_tokens is not None:
        if chunk_tokens != AUTO and not _is_count(chunk_tokens):
            remedy = f"must be a whole number of at least 1, {AUTO}, or null for whole batches"
            raise ConfigError("schedule.chunk_tokens", chunk_tokens, remedy)
        if on_host and LOOKUP.name not in on_host:
            remedy = f"{on_host[0]} runs on the host and the lookup does not; use schedule=serial, or strategy=uva"
            raise chunks_refused(chunk_tokens, remedy)


def _check_disk(config: DictConfig) -> None:
    """Refuse a state of the page cache where no table lies in a file, reads under way that are no number, and memory
    that cannot be limited."""
    limit_gb = config.memory_limit_gb
    if limit_gb is not None and not 0 < limit_gb < inf:
        raise ConfigError("memory_limit_gb", limit_gb, "must be above 0, or null for what the machine has")
    if limit_gb is not None and (config.worker == "inline" or config.ranks > 1):
        key, value = ("worker", "inline") if config.worker == "inline" else ("ranks", config.ranks)
        raise ConfigError(key, value, "memory_limit_gb limits the one fresh process of a run; leave it out")
    if config.cache_state != AS_IS and config.strategy.table != DISK:
        raise ConfigError(
            "cache_state", config.cache_state, "says nothing of a table in memory; strategy=disk has a file"
        )
    depth = config.lookup.get("queue_depth", 1)
    if not _is_count(depth) or depth > MOST_THREADS:
        raise ConfigError("lookup.queue_depth", depth, f"must be a whole number from 1 to {MOST_THREADS}")


def chunks_refused(chunk_tokens: object, remedy: str) -> ConfigError:
    """The refusal of a pipeline, naming what asked for it: the option, or a number of tokens."""
    if chunk_tokens == AUTO:
        return ConfigError("schedule", "pipelined", remedy)
    return ConfigError("schedule.chunk_tokens", chunk_tokens, remedy)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1  # not True, which is an int, too
