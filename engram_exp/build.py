"""From a configuration to components: every `instantiate` call of the project stands here."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engram_exp.cache import cached_array
from engram_exp.compression import TokenCompression, load_compression
from engram_exp.config import geometry_of, stages_of
from engram_exp.errors import ConfigError
from engram_exp.geometry import EngramGeometry, search_primes
from engram_exp.hashing.plan import HashPlan
from engram_exp.placement import Placement
from engram_exp.plan import DEVICE, HOST, LINK, UPLOADS, PlannedStage
from engram_exp.projection.weights import ProjectionWeights
from engram_exp.strategy import Stage, as_stage_function
from engram_exp.tokenizer import TokenizerSource, open_tokenizer
from engram_exp.tokens import Batch, distinct_batches

CPU = torch.device("cpu")
COMPONENT_GROUPS = ("tokens", "hashing", "table", "lookup", "projection", "upload")


@dataclass(frozen=True)
class Builder:
    """Builds what a run needs, each part once and none that is not asked for.

    Args:
        config: checked by `config.check`.
    """

    config: DictConfig

    def check_components(self) -> None:
        """Refuse unknown or mistyped options of the components.

        Raises:
            ConfigError: naming the key.
        """
        for group in COMPONENT_GROUPS:
            _check_options(group, self.config[group])

    @property
    def cache_dir(self) -> Path:
        """Where what is slow to make is kept."""
        return Path(self.config.cache_dir)

    @cached_property
    def planned(self) -> tuple[PlannedStage, ...]:
        """All stages of the strategy."""
        return stages_of(self.config)

    @cached_property
    def geometry(self) -> EngramGeometry:
        """The layer's numbers."""
        return geometry_of(self.config, self._cached_primes)

    def _cached_primes(self, layers: int, vocab_per_order: tuple[int, ...], heads: int) -> list[list[int]]:
        key = f"primes-{layers}-{'-'.join(map(str, vocab_per_order))}-{heads}"
        return cached_array(
            self.cache_dir, key, lambda: np.array(search_primes(layers, vocab_per_order, heads), dtype=np.int64)
        ).tolist()

    @cached_property
    def device(self) -> torch.device:
        """The device that keys and value must end on."""
        return resolve_device(self.config.hardware.device)

    def wake_device(self) -> None:
        """Let the driver set the device up while the components are imported."""
        if self.device.type != "cpu":
            threading.Thread(target=torch.empty, args=(1,), kwargs={"device": self.device}, daemon=True).start()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return resolve_dtype(self.config.dtype.name)

    def check_dtype(self) -> None:
        """Refuse a dtype that the device cannot compute in.

        Raises:
            ConfigError: naming the dtype.
        """
        try:
            probe = torch.ones(16, 16, dtype=self.dtype, device=self.device)
            probe @ probe
        except (RuntimeError, TypeError) as error:
            remedy = f"{self.device} cannot multiply matrices in it; try float32"
            raise ConfigError("dtype", self.config.dtype.name, remedy) from error

    @cached_property
    def tokenizer(self) -> TokenizerSource:
        """The model's tokenizer."""
        return open_tokenizer(self.config.model.tokenizer)

    @cached_property
    def compression(self) -> TokenCompression:
        """The tokenizer's compression."""
        return load_compression(self.tokenizer, self.cache_dir)

    @cached_property
    def hash_plan(self) -> HashPlan:
        """The layer's hash constants."""
        return HashPlan.build(self.geometry, self.compression)

    @cached_property
    def batches(self) -> list[Batch]:
        """Distinct token batches; a source of few ids may give fewer than configured."""
        config = self.config
        available = {
            "vocab_size": self.compression.vocab_size,
            "history_len": self.geometry.max_order - 1,
            "tokenizer": self.tokenizer,
            "cache_dir": self.cache_dir,
        }
        wanted = inspect.signature(get_class(config.tokens._target_)).parameters
        source = _make(config.tokens, **{name: available[name] for name in wanted if name in available})
        seeds = range(config.seed * config.batches, (config.seed + 1) * config.batches)
        return distinct_batches(source, seeds, (config.batch_size, config.seq_len))

    @cached_property
    def table(self) -> Any:
        """The layer's table, filled."""
        return _make(
            self.config.table,
            rows=self.geometry.rows,
            row_values=self.geometry.row_values,
            dtype=self.dtype,
            seed=self.config.seed,
            placement=self._placement(self.place_of("lookup"), kept_for_upload=False),
        )

    @cached_property
    def weights(self) -> ProjectionWeights:
        """The layer's projection parameters, on the CPU."""
        return ProjectionWeights.draw(self.geometry, self.dtype, self.config.seed)

    @property
    def tokens(self) -> int:
        """T, tokens of a batch."""
        return self.config.batch_size * self.config.seq_len

    def stages(self, names: Sequence[str]) -> list[Stage]:
        """Build the named stages, in that order."""
        return [self._stage(name) for name in names]

    def _stage(self, name: str) -> Stage:
        build = self._upload if name in UPLOADS else getattr(self, f"_{name}")
        value_bytes = self.dtype.itemsize
        return Stage(
            name=name,
            place=self.place_of(name),
            run=build(),
            bytes_moved=self.geometry.bytes_moved(name, self.tokens, self.config.batch_size, value_bytes),
            flops=self.geometry.flops(name, self.tokens),
        )

    def _hashing(self) -> Callable[..., Any]:
        return self._step("hashing", plan=self.hash_plan)

    def _lookup(self) -> Callable[..., Any]:
        return self._step("lookup", table=self.table, columns=self.geometry.columns)

    def _projection(self) -> Callable[..., Any]:
        return self._step("projection", weights=self.weights)

    def _step(self, name: str, **parts: Any) -> Callable[..., Any]:
        placement = self.placement_of(name)
        return as_stage_function(_make(self.config[name], max_tokens=self.tokens, placement=placement, **parts))

    def _upload(self) -> Callable[..., Any]:
        return _make(self.config.upload, device=self.device)

    def place_of(self, stage: str) -> str:
        """The place that a stage keeps busy: host, link or device."""
        return LINK if stage in UPLOADS else str(self.config.strategy[stage])

    def placement_of(self, step: str) -> Placement:
        """Where a step runs; pinned if its output crosses the link next."""
        stages = [stage.name for stage in self.planned]
        following = stages[stages.index(step) + 1 :][:1]
        return self._placement(self.place_of(step), kept_for_upload=bool(following) and following[0] in UPLOADS)

    def _placement(self, place: str, *, kept_for_upload: bool) -> Placement:
        device = {HOST: CPU, DEVICE: self.device}[place]
        return Placement(device, pinned=kept_for_upload and device == CPU and self.pins)

    @property
    def kv_buffers(self) -> int:
        """Keys and values that the projection holds at a time."""
        projection: Any = get_class(self.config.projection._target_)
        return int(projection.kv_buffers)

    @property
    def pins(self) -> bool:
        """Whether host buffers that cross the link are pinned."""
        upload: Any = get_class(self.config.upload._target_)
        return self.device.type != "cpu" and bool(upload.pinned_source)


def _make(node: DictConfig, **parts: Any) -> Any:
    """Instantiate a component with parts that are no configuration: Hydra would turn dataclasses among its own keyword
    arguments into configurations."""
    return instantiate(node, _partial_=True)(**parts)


def resolve_device(name: str) -> torch.device:
    """The device that `hardware.device` names.

    Raises:
        ConfigError: there is none of that kind.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or CPU
    if name == "cpu":
        return CPU
    if accelerator is None or accelerator.type != name:
        found = f"only {accelerator.type}" if accelerator else "no accelerator"
        raise ConfigError("hardware.device", name, f"PyTorch finds {found}; auto and cpu would work")
    return accelerator


def resolve_dtype(name: str) -> torch.dtype:
    """The compute dtype of that name.

    Raises:
        ConfigError: there is none.
    """
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise ConfigError("dtype", name, "must be float32, float16 or bfloat16")
    return dtypes[name]


def _check_options(group: str, node: DictConfig) -> None:
    """Hold a component's options to the annotations of its constructor."""
    try:
        target: Any = get_class(node._target_)
    except Exception as error:  # Hydra raises whatever importing it raised
        raise ConfigError(f"{group}._target_", node._target_, f"cannot be imported ({error})") from error
    hints = typing.get_type_hints(target.__init__)
    known = inspect.signature(target).parameters
    fields = []
    options = {str(name): node[name] for name in node if name != "_target_"}
    for name in options:
        if name not in known:
            raise ConfigError(f"{group}.{name}", options[name], f"{target.__name__} has no such option")
        fields.append((name, hints[name]))
    try:
        OmegaConf.merge(OmegaConf.structured(dataclasses.make_dataclass(target.__name__, fields)), options)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{group}.{error.key}", options[str(error.key)], str(error).partition("\n")[0]) from error
