"""What follows from a configuration: geometry, stages, sizes, threads."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from engram_exp.config.schema import COMPONENTS, HASH_KEYS, MAY_BE_NONE
from engram_exp.decoder.shape import DecoderShape
from engram_exp.errors import ConfigError
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.layer.primes import PrimeSource, search_primes
from engram_exp.machine import cgroup
from engram_exp.machine.affinity import own_cpus
from engram_exp.steps.lookup.order import Reading, ReadTimes, reading
from engram_exp.strategy.plan import PlannedStage, plan_stages, select_cases
from engram_exp.vocabulary import AUTO, DECODER, DEVICE, EMBEDDINGS, FUSION, HOST, LOOKUP, PARTS, PLACED, ROWS

BATCHES, ROTATED_BYTES = (4, 256), 2**30
BATCHES_PAUSED = 4096  # at most: those of one V4.1 token hold 26 MB of rows, and none comes again for as many samples
CHUNKS = 4
CHUNK_BYTES = (4 * 2**20, 32 * 2**20)
NONE, GRAPH = "none", "graph"  # of `capture`
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def geometry_of(config: DictConfig, prime_source: PrimeSource = search_primes) -> EngramGeometry:
    """The geometry of the layer that a configuration names.

    Raises:
        ConfigError: a number out of range.
    """
    numbers: dict[str, Any] = {
        str(name): tuple(value) if OmegaConf.is_list(value) else value
        for name, value in config.model.items()
        if name not in HASH_KEYS
    }
    return EngramGeometry(
        **numbers,
        layer=config.layer,
        value_bytes=value_bytes_of(config.dtype.name),
        values_per_scale=config.dtype.values_per_scale,
        one_scale=config.dtype.one_scale,
        prime_source=prime_source,
    )


def stages_of(config: DictConfig) -> tuple[PlannedStage, ...]:
    """The stages of the strategy that a configuration names.

    Raises:
        ConfigError: as `plan_stages`, or scales that are not split off cannot be handed on apart.
    """
    places = {str(step): str(place) for step, place in config.strategy.items()}
    if not is_fp8(config.dtype):
        return plan_stages(places, fuses=fuses(config))
    looked_up = _looked_up(config, places[LOOKUP.name])
    return plan_stages(places, widens=True, looked_up=looked_up, fuses=fuses(config))


def _looked_up(config: DictConfig, place: str) -> str:
    """What a lookup makes of fp8 rows: its options say so. On the host it does not widen them: fp8 bytes cross."""
    if exchanges(config):  # which takes rows as they are stored
        return ROWS
    if config.lookup.get("widen") and place == DEVICE:
        return EMBEDDINGS
    if not config.lookup.get("apart"):
        return ROWS
    if config.dtype.one_scale is not None:
        raise ConfigError("lookup.apart", config.lookup.apart, "the whole table has one scale; use lookup.apart=false")
    if config.dtype.layout != "split":
        raise ConfigError("lookup.apart", config.lookup.apart, "scales lie behind their values; use dtype.layout=split")
    return PARTS


def is_fp8(dtype: DictConfig) -> bool:
    """Whether rows are stored in e4m3, and widened to the compute dtype."""
    return dtype.values_per_scale is not None or dtype.one_scale is not None


def reading_of(
    config: DictConfig,
    tokens: int,
    table_bytes: int,
    multiprocessors: int,
    times: ReadTimes | None,
    *,
    beside: bool = False,
) -> Reading | None:
    """How a kernel reads the rows of some tokens; None of a lookup that knows no orders.

    Args:
        config: of the run.
        tokens: of a batch or a chunk.
        table_bytes: of the table.
        multiprocessors: of the device.
        times: of this machine, if they are known.
        beside: a decoder, or the chunk before in a pipeline, runs meanwhile.
    """
    lookup, geometry = config.lookup, geometry_of(config)
    rows = tokens * geometry.columns
    if not reads_in_order(config):
        return None
    of_cpu = round(lookup.get("share", 0) * rows)  # gathered and copied while the others are read
    return reading(
        lookup.order,
        lookup.get("rows_per_program", AUTO),
        lookup.get("programs", AUTO),
        sort_from_rows=lookup.sort_from_rows,
        rows=rows - of_cpu,
        row_bytes=geometry.row_bytes,
        table=config.strategy.table,
        table_bytes=table_bytes,
        multiprocessors=multiprocessors,
        beside=beside or of_cpu > 0,
        times=times,
    )


def reads_in_order(config: DictConfig) -> bool:
    """Whether it is a kernel that reads rows, which knows orders: where the CPU stands in for a GPU, or ranks read each
    other's memory, it is none."""
    if "sort_from_rows" not in config.lookup:
        return False
    of_peers = exchanges(config) and getattr(get_class(config.exchange._target_), "reads_peers", False)
    on_cpu = config.hardware.device == "cpu" and getattr(get_class(config.lookup._target_), "anywhere", False)
    return not of_peers and not on_cpu


def order_of(config: DictConfig) -> str:
    """The order in which a kernel reads rows, as far as it is known before there is a machine; empty if it is not, or
    the lookup knows no orders."""
    is_auto = [config.lookup.get(key) == AUTO for key in ("order", "sort_from_rows")]
    if all(is_auto) and config.strategy.table == HOST and config.limits != NONE:
        return ""
    tokens, table_bytes = config.batch_size * config.seq_len, geometry_of(config).table_bytes
    found = reading_of(config, tokens, table_bytes, multiprocessors=1, times=None)
    return found.order if found else ""


def shares_out(config: DictConfig) -> bool:
    """Whether each rank of a run keeps a share of the table; of one rank, no class is imported for that."""
    return config.ranks > 1 and getattr(get_class(config.table._target_), "is_shared_out", False)


def exchanges(config: DictConfig) -> bool:
    """Whether rows come from several ranks, by the exchange that is chosen."""
    return shares_out(config) and "exchange" in components_of(config)


def settings_in_words(config: DictConfig, keys: Collection[str]) -> str:
    """Some settings of a configuration as JSON: one text where they are the same."""
    found = {key: config[key] for key in keys}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in found.items()
    }
    return json.dumps(plain, sort_keys=True)


def table_settings(config: DictConfig) -> str:
    """What a table is made of, beside a seed of its own in a model's step: one text where it is the same."""
    told = settings_in_words(config, ("table", "model", "dtype", "layer", "seed", "ranks"))
    return f"{config.strategy.table} {told}"


def fuses(config: DictConfig) -> bool:
    """Whether a fusion is chosen."""
    return FUSION.name in components_of(config)


def decodes(config: DictConfig) -> bool:
    """Whether a decoder is chosen, and the layer is timed inside its step."""
    return DECODER in components_of(config)


def components_of(config: DictConfig) -> tuple[str, ...]:
    """The groups whose options name a class: `fusion=none` and `decoder=none` do not."""
    return tuple(group for group in COMPONENTS if group not in MAY_BE_NONE or config[group].get("_target_"))


def decoder_of(config: DictConfig) -> DecoderShape:
    """The sizes of the decoder. A prompt longer than its context is its own context.

    Raises:
        ConfigError: a size out of range, or a layer with a table that is not built.
    """
    options: Any = OmegaConf.to_container(config.decoder)
    kind = get_class(options.pop("_target_"))
    try:
        if "context" in options:
            options["context"] = max(options["context"], config.seq_len)
        shape: DecoderShape = kind(**{**options, "engram_layers": engram_layers_of(config)})
    except TypeError as error:
        raise ConfigError("decoder", f"{options}", f"is no {kind.__name__} ({error})") from error
    return shape


def engram_layers_of(config: DictConfig) -> list[int]:
    """The decoder's layers that a layer with a table stands in front of: as configured, else the model's own."""
    layers: Any = config.decoder.get("engram_layers")
    return list(config.model.layers if layers is None else layers)


def ids_of(config: DictConfig) -> str:
    """Where the token ids of a step are made: as configured, else on the device, where one token of each sequence was
    sampled, and on the host for prompts."""
    if config.ids != AUTO:
        return str(config.ids)
    return DEVICE if config.seq_len == 1 else HOST


def batches_of(config: DictConfig) -> int:
    """Distinct token batches of a run. Unless a number is configured: as many as ask for 1 GiB of rows between them, so
    that rows are not still in a cache when their batch comes again, but 4 to 256; with a pause, behind which rows are
    to be in no cache, up to 4,096; as many as fill graphs of several calls."""
    if config.batches != AUTO:
        return int(config.batches)
    batch_bytes = geometry_of(config).stored_bytes(config.batch_size * config.seq_len)
    least, most = BATCHES
    most = BATCHES_PAUSED if config.pause_ms else most
    found = int(min(most, max(least, ROTATED_BYTES // batch_bytes)))
    return found - found % config.graph_calls if 0 < config.graph_calls < found else found


def chunk_tokens_of(config: DictConfig) -> int | None:
    """Tokens of a pipeline's chunk, None without a pipeline."""
    chunk_tokens = config.schedule.chunk_tokens
    if chunk_tokens != AUTO:
        return None if chunk_tokens is None else int(chunk_tokens)
    return chunk_of(config.batch_size * config.seq_len, geometry_of(config).stored_bytes(1))


def chunk_of(tokens: int, token_bytes: int) -> int:
    """Tokens of a chunk, unless a number is configured: a quarter of the batch, but at least 4 and at most 32 MiB of
    stored rows. On an H200 with 16 CPU threads smaller chunks lose more to opening parallel regions than they gain by
    overlapping.

    Args:
        tokens: of the batch.
        token_bytes: of a token's stored rows.
    """
    smallest, largest = (max(1, size_bytes // token_bytes) for size_bytes in CHUNK_BYTES)
    return int(min(largest, max(smallest, tokens // CHUNKS)))


def capture_of(config: DictConfig) -> str:
    """`graph` or `none`; unless one is configured, a batch or a pipeline is one graph if no step runs on the host, and
    the CPU does not stand in for the device."""
    if config.capture != AUTO:
        return str(config.capture)
    return NONE if host_steps_of(config) or config.hardware.device == "cpu" else GRAPH


def host_steps_of(config: DictConfig) -> list[str]:
    """The steps that the strategy places on the host."""
    return [step for step in PLACED if config.strategy[step] == HOST]


def cases_of(config: DictConfig) -> tuple[str, ...]:
    """The cases that a configuration asks for."""
    return select_cases(config.cases, stages_of(config), decodes=decodes(config))


def threads_of(config: DictConfig) -> int:
    """CPU threads of a run, or of each of its ranks: as configured, else one for each CPU that it may use."""
    return config.hardware.threads or max(1, usable_cpus(config.hardware.affinity) // ranks_per_node(config))


def ranks_per_node(config: DictConfig) -> int:
    """Ranks of a run on each of its hosts."""
    return int(config.ranks // config.nodes)


def usable_cpus(affinity: Collection[int] | None, processes: int = 1) -> int:
    """CPUs that a run may use here: those of its affinity, else of this process's, but no more than its part of what a
    control group allows.

    Args:
        affinity: of the run.
        processes: of the group, each with an affinity of its own.
    """
    usable, allowed = len(affinity or own_cpus()), cgroup.cpus()
    return usable if allowed is None else min(usable, max(1, allowed // processes))


def value_bytes_of(dtype: str) -> int:
    """Size of a value of a compute dtype.

    Raises:
        ConfigError: there is none of that name.
    """
    if dtype not in VALUE_BYTES:
        raise ConfigError("dtype", dtype, f"must be {', '.join(VALUE_BYTES)} or, for rows alone, fp8")
    return VALUE_BYTES[dtype]
