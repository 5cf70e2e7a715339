"""The schema that Hydra holds `conf/` and the command line to: the types of all keys. The YAML files hold the values.

Nothing here imports PyTorch, so that `--help`, tab completion and refusals are quick.
"""

from __future__ import annotations

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass
from typing import Any, Optional, get_type_hints

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from engram_exp.config.files import FileConfigSource
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.machine.data_sheets import DATA_SHEETS, DataSheet

# OmegaConf reads the annotations at run time and, on Python 3.10, knows optional types only as Optional[...].
# ruff: noqa: UP045


@dataclass
class StrategyConfig:
    """Where the table lives and where each step runs: `host` or `device`; a table also on `disk`; `link`: a lookup by
    host and device."""

    table: str = "host"
    hashing: str = MISSING
    lookup: str = MISSING
    projection: str = MISSING


@dataclass
class HashConfig:
    """A model's hash: its class, and what that is built from as far as its constructor names it; without a class,
    DeepSeek's. Text is tokenised with the tokenizer, by which some hashes also compress ids."""

    hash: Any = field(default_factory=lambda: {"_target_": "engram_exp.layer.deepseek_hash.DeepSeekHash"})
    tokenizer: Optional[str] = None
    hash_seed: Optional[int] = None
    pad_id: Optional[int] = None
    vocab_size: Optional[int] = None
    eos_id: Optional[int] = None


@dataclass
class EngineConfig:
    """What the engine that a bundle stands for has a path for: the bundle's name, its strategy and its places. Empty:
    the bundle goes with any strategy."""

    name: str = ""
    strategy: str = ""
    table: str = ""
    hashing: str = ""
    lookup: str = ""
    projection: str = ""


def _model_config() -> type:
    """The numbers of a model, as `EngramGeometry` has them but for what a run chooses, and its hash. OmegaConf knows
    lists, and no tuples."""
    types = get_type_hints(EngramGeometry)
    as_written: dict[Any, Any] = {tuple[int, ...]: list[int], int | None: Optional[int]}
    numbers = [each for each in fields(EngramGeometry) if each.name not in OF_A_RUN]
    known = [(each.name, as_written.get(types[each.name], types[each.name]), _default(each)) for each in numbers]
    return make_dataclass("ModelConfig", known, bases=(HashConfig,))


def _default(number: Field) -> Any:
    """Of a number that most models do without."""
    return field(default=MISSING if number.default is NO_DEFAULT else number.default)


HASH_KEYS = tuple(each.name for each in fields(HashConfig))
# Of a geometry, but of no model.
OF_A_RUN = ("layer", "value_bytes", "values_per_scale", "one_scale", "prime_source")
ModelConfig = _model_config()
ModelConfig.__module__ = __name__  # so that a launcher pickles its name: by value, fields without a default break


@dataclass
class DtypeConfig:
    """The compute dtype, how far from a float32 reference its keys and value may be, and how rows are stored: in the
    compute dtype, in e4m3 with a ue8m0 scale for so many values, packed behind them or split off, or in e4m3 with one
    float32 scale for the whole table."""

    name: str = MISSING
    tolerance: float = MISSING
    values_per_scale: Optional[int] = None
    layout: str = "packed"
    one_scale: Optional[float] = None


@dataclass
class ScheduleConfig:
    """How the stages of `full` follow each other: a whole batch at a time (null), or overlapping in chunks of so many
    tokens, or of as many as `chunk_tokens_of` finds; launched one by one, or captured in one graph."""

    chunk_tokens: Any = None
    ring_depth: int = MISSING
    capture: str = "none"


@dataclass
class PrefetchConfig:
    """Where rows are fetched in a model's step: beside the decoder from the step's begin, on one stream or on one of
    each layer, at a low or a high priority; or inline, on the decoder's stream where the layer stands. And when: during
    the step, or during the one before."""

    where: str = MISSING
    streams: str = MISSING
    priority: str = MISSING
    lead: str = MISSING


@dataclass
class HardwareConfig:
    """Which device, and how the CPU's threads are laid out. With a data sheet, only the part that it is of will do;
    without one, any will, and its sheet is looked up."""

    device: str = MISSING
    threads: Optional[int] = None
    pin_threads: bool = MISSING
    affinity: Optional[list[int]] = None
    numa: Any = None
    data_sheet: Optional[DataSheet] = None


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
    pause_ms: float = MISSING
    graph_calls: int = MISSING
    cache_state: str = MISSING
    memory_limit_gb: Optional[float] = None
    host_load: int = MISSING
    link_load_gb_per_s: float = MISSING
    link_load_block_kib: int = MISSING
    capture: str = MISSING
    ids: str = MISSING
    prefetch: PrefetchConfig = MISSING
    steps_per_sample: int = MISSING
    ranks: int = MISSING
    nodes: int = MISSING
    rendezvous: Optional[str] = None
    rank_batches: str = MISSING
    rank_timeout_s: float = MISSING
    mixed_gpus: bool = MISSING
    save_tensors: bool = MISSING
    report: bool = MISSING
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
    strategies: Any = field(default_factory=lambda: DictConfig({}, flags={"struct": False}))  # any layer may be named
    engine: EngineConfig = field(default_factory=EngineConfig)
    model: ModelConfig = MISSING  # type: ignore[valid-type]
    dtype: DtypeConfig = MISSING
    schedule: ScheduleConfig = MISSING
    hardware: HardwareConfig = MISSING
    tokens: Any = MISSING
    hashing: Any = MISSING
    table: Any = MISSING
    lookup: Any = MISSING
    projection: Any = MISSING
    fusion: Any = MISSING
    upload: Any = MISSING
    exchange: Any = MISSING
    decoder: Any = MISSING


# Groups whose options name a class; `none` of the last three names none.
COMPONENTS = ("tokens", "hashing", "table", "lookup", "projection", "upload", "exchange", "fusion", "decoder")
MAY_BE_NONE = COMPONENTS[-3:]


def register_schema() -> None:
    """Make known to Hydra what stands in no file: the schema, under the name that `conf/config.yaml` begins with, and
    an option of `hardware` for every part with a data sheet, which refuses any other; and how a launcher's preset
    divides ranks by nodes."""
    OmegaConf.register_new_resolver("per_node", lambda ranks, nodes: -(-ranks // nodes), replace=True)
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for option, sheet in DATA_SHEETS.items():
        store.store(group="hardware", name=option, node={"defaults": ["cuda"], "data_sheet": asdict(sheet)})
