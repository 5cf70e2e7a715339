"""What the rows of a run say that is known before it, whatever becomes of it. Nothing here imports PyTorch."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from engram_exp.config.derived import (
    batches_of,
    capture_of,
    chunk_tokens_of,
    decodes,
    engram_layers_of,
    exchanges,
    geometry_of,
    ids_of,
    order_of,
    reads_in_order,
    stages_of,
    threads_of,
)
from engram_exp.config.mixed import strategy_in_words
from engram_exp.machine.environment import stamp
from engram_exp.results.schema import KEYS
from engram_exp.run.job import Job
from engram_exp.run.overridden import as_text
from engram_exp.vocabulary import AUTO, COLD, DEVICE, DISK, HALF_BESIDE, LOOKUP, MULTIPROCESSORS, OF_A_STEP


def job_columns(job: Job) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    config = job.config
    known = {
        "run_id": job.run_id,
        **{group: choice or "" for group, choice in job.choices.items()},
        "worker": config.worker,
        "layer": config.layer,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "history": config.tokens.get("history"),
        "threads": threads_of(config),
        "seed": config.seed,
        "repeat": job.repeat,
        "batches": batches_of(config),
        "pause_ms": config.pause_ms,
        "graph_calls": config.graph_calls,
        "page_cache": config.cache_state if config.strategy.table == DISK else "",
        "queue_depth": config.lookup.get("queue_depth"),
        "block_bytes": config.lookup.get("block_bytes"),
        "hot_gb": config.lookup.get("hot_gb"),
        "host_load": config.host_load,
        "link_load_gb_per_s": config.link_load_gb_per_s,
        "link_load_block_kib": config.link_load_block_kib if config.link_load_gb_per_s else 0,
        "table_scale": config.model.table_scale,
        "layers": len(config.model.layers),
        "chunk_tokens": chunk_tokens_of(config),
        "ring_depth": config.schedule.ring_depth,
        "capture": capture_of(config),
        **_step(job),
        **_ranks(job),
        **_reading(job),
        "row_bytes": geometry_of(config).row_bytes,
        "layout": config.dtype.layout if config.dtype.values_per_scale else "",
        "started_at": job.started_at,
    }
    return {**known, "options": as_text(job.overridden, known)}


def _step(job: Job) -> dict[str, Any]:
    """What is asked of a model's step, if there is one."""
    if not decodes(job.config):
        return {}
    told = [name for name, key in KEYS.items() if key.startswith("prefetch.")]
    return {
        "engram_layers": " ".join(map(str, sorted(engram_layers_of(job.config)))),
        "ids": ids_of(job.config),
        **{name: OmegaConf.select(job.config, KEYS[name]) for name in (*told, "steps_per_sample")},
    }


def _ranks(job: Job) -> dict[str, Any]:
    """Which ranks there are, and how rows that they share out come."""
    config = job.config
    if config.ranks == 1:
        return {"ranks": 1, "nodes": 1, "exchange": ""}
    chosen = {"exchange": job.choices["exchange"], "split": config.table.split} if exchanges(config) else {}
    asked = {name: config[name] for name in ("ranks", "nodes", "rank_batches")}
    return {**asked, "exchange": "", **chosen}


def _reading(job: Job) -> dict[str, Any]:
    """How the lookup reads rows, as far as it is known before there are a table and a device."""
    if "sort_from_rows" in job.config.lookup and not reads_in_order(job.config):  # its kernel is not used
        return {}
    keys = {name: key.removeprefix("lookup.") for name, key in KEYS.items() if key.startswith("lookup.")}
    options = {name: job.config.lookup.get(key) for name, key in keys.items()}
    if not job.config.lookup.get("hot_gb", 1):  # no rows are kept in front of a file
        options |= {"cache_policy": None, "cache_state": None}
    known = {name: None if value in (AUTO, MULTIPROCESSORS, HALF_BESIDE) else value for name, value in options.items()}
    by_auto = " ".join(name for name, value in options.items() if value == AUTO)
    return {**known, "row_order": order_of(job.config), "by_auto": by_auto}


def job_case_columns(job: Job, case: str) -> dict[str, Any]:
    """Of a step's cases: the strategies of its layers, if they differ; and of a file that is not cold, its state: rows
    from memory are no rows from a disk. Of those that are no stage on the device, are to find no row kept, or wait for
    the host: that they are in no graph of calls."""
    chosen, config = job.choices["strategy"] or "", job.config
    told = strategy_in_words(chosen, config) if case in OF_A_STEP else chosen
    is_usual = config.strategy.table != DISK or config.cache_state == COLD
    on_device = [stage.name for stage in stages_of(config) if stage.place == DEVICE and not stage.is_upload]
    # That the lookup waits for the host, its class says, which imports torch; here, that threads of the CPU gather.
    is_launched = case == LOOKUP.name and (config.lookup.get("state") == COLD or "threads" in config.lookup)
    return {
        "strategy": told if is_usual else f"{told} cache_state={config.cache_state}",
        "graph_calls": config.graph_calls if case in on_device and not is_launched else 0,
    }


def failed_rows(job: Job, status: str, error: str) -> list[dict[str, Any]]:
    """A row for every case of a run that gave none, as it is written."""
    of_case: dict[str, dict[str, Any]] = {}
    try:
        known, of_case = job_columns(job), {case: job_case_columns(job, case) for case in job.cases}
    except Exception:  # what is wrong with the configuration may be what a column is made of
        known = {"run_id": job.run_id, **job.choices, "started_at": job.started_at}
        known["options"] = as_text(job.overridden, known)
    ended = {"status": status, "error": error}
    return [{**stamp(), **known, **of_case.get(case, {}), **ended, "case": case} for case in job.cases]
