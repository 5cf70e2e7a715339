"""From a configuration to components: every `instantiate` call of the project stands here."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from engram_exp.config.derived import batches_of, chunk_tokens_of, geometry_of, stages_of, value_bytes_of
from engram_exp.config.options import CPU, check_options, resolve_device
from engram_exp.config.schema import COMPONENTS
from engram_exp.errors import ConfigError
from engram_exp.layer.cache import cached_array
from engram_exp.layer.compression import TokenCompression, load_compression
from engram_exp.layer.geometry import EngramGeometry, search_primes
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.tokenizer import TokenizerSource, open_tokenizer
from engram_exp.layer.tokens import Batch, distinct_batches
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.environment import code_cache
from engram_exp.machine.placement import Placement
from engram_exp.stage import Stage, as_stage_function
from engram_exp.steps.widening import build_widening
from engram_exp.strategy.plan import PlannedStage
from engram_exp.vocabulary import DEVICE, HOST, LINK, UPLOADS


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
        for group in COMPONENTS:
            check_options(group, self.config[group])
        table: Any = get_class(self.config.table._target_)
        if table.place != self.config.strategy.table:
            remedy = f"lives on the {table.place}, but the strategy keeps its table on the {self.config.strategy.table}"
            raise ConfigError("table", table.__name__, remedy)

    @property
    def cache_dir(self) -> Path:
        """Where what is slow to make is kept."""
        return code_cache(self.config.cache_dir)

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
        value_bytes_of(self.config.dtype.name)
        dtype = getattr(torch, self.config.dtype.name)
        assert isinstance(dtype, torch.dtype)
        return dtype

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
        if self.row_format.values_per_scale and self.place_of("widening") == DEVICE:
            try:
                build_widening(self.row_format, 1, 1, Placement(self.device))(
                    torch.zeros(1, self.row_format.width, dtype=torch.uint8, device=self.device)
                )
            except (RuntimeError, TypeError) as error:
                remedy = f"{self.device} cannot convert it; use dtype={self.config.dtype.name}, or strategy=kv_on_cpu"
                raise ConfigError("dtype", "fp8", remedy) from error

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
        number = batches_of(config)
        seeds = range(config.seed * number, (config.seed + 1) * number)
        batches = distinct_batches(source, seeds, (config.batch_size, config.seq_len))
        return self.pinned(batches) if self.planned[0].place == LINK else batches

    @cached_property
    def table(self) -> Any:
        """The layer's table, filled."""
        on_host = self.config.strategy.table == HOST
        return _make(
            self.config.table,
            rows=self.geometry.rows,
            row_format=self.row_format,
            seed=self.config.seed,
            placement=Placement(CPU, pinned=self.device.type == "cuda") if on_host else Placement(self.device),
        )

    @cached_property
    def row_format(self) -> RowFormat:
        """How rows are stored."""
        dtype = self.config.dtype
        return RowFormat(self.geometry.row_values, self.dtype, dtype.values_per_scale, dtype.layout == "split")

    @cached_property
    def weights(self) -> ProjectionWeights:
        """The layer's projection parameters, on the CPU."""
        return ProjectionWeights.draw(self.geometry, self.dtype, self.config.seed)

    @property
    def tokens(self) -> int:
        """T, tokens of a batch."""
        return self.config.batch_size * self.config.seq_len

    def stage(self, name: str, tokens: int | None = None, placement: Placement | None = None) -> Stage:
        """Build one stage, for whole batches in buffers of its own unless told otherwise.

        Args:
            name: of the stage.
            tokens: it must hold, at most.
            placement: of its output.
        """
        tokens, placement = tokens or self.tokens, placement or self.placement_of(name)
        if name in UPLOADS:
            return Stage(name, LINK, _make(self.config.upload, placement=placement))
        if name == "widening":
            component = build_widening(self.row_format, tokens, self.geometry.columns, placement)
        else:
            parts = getattr(self, f"_parts_of_{name}")(placement)
            component = _make(self.config[name], max_tokens=tokens, placement=placement, **parts)
        return Stage(name, self.place_of(name), as_stage_function(component))

    def _parts_of_hashing(self, placement: Placement) -> dict[str, Any]:
        return {"plan": self.hash_plan}

    def _parts_of_lookup(self, placement: Placement) -> dict[str, Any]:
        return {"table": self.table, "columns": self.geometry.columns}

    def _parts_of_projection(self, placement: Placement) -> dict[str, Any]:
        if placement.device not in self._weights_on:  # the chunks of a pipeline share them
            self._weights_on[placement.device] = self.weights.to(placement.device)
        return {"weights": self._weights_on[placement.device]}

    @cached_property
    def _weights_on(self) -> dict[torch.device, ProjectionWeights]:
        return {CPU: self.weights}

    @property
    def pipelined(self) -> bool:
        """Whether `full` runs in chunks."""
        return self.chunk_tokens is not None

    @cached_property
    def chunk_tokens(self) -> int | None:
        """Tokens of a chunk, at most; None where `full` takes whole batches."""
        return chunk_tokens_of(self.config)

    @property
    def active(self) -> tuple[PlannedStage, ...]:
        """The stages of the strategy that this machine has: without an accelerator there is no link."""
        return tuple(stage for stage in self.planned if self.device.type != "cpu" or stage.place != LINK)

    def pinned(self, batches: Sequence[Batch]) -> list[Batch]:
        """Copies of batches of one shape in pinned memory, ids and history of each side by side, from where one
        transfer takes them to the device."""
        numbers = [tensor.numel() for tensor in batches[0]]
        rows = Placement(CPU, pinned=self.pins).empty(len(batches), sum(numbers), dtype=torch.int64)
        return [
            Batch(*(part.view(of.shape).copy_(of) for part, of in zip(row.split(numbers), batch, strict=True)))
            for row, batch in zip(rows, batches, strict=True)
        ]

    def place_of(self, stage: str) -> str:
        """The place that a stage keeps busy: host, link or device."""
        return LINK if stage in UPLOADS else str(self.config.strategy["projection" if stage == "widening" else stage])

    def placement_of(self, stage: str) -> Placement:
        """Where a stage leaves its output; pinned if that crosses the link next."""
        if stage in UPLOADS:
            return Placement(self.device)
        names = [planned.name for planned in self.planned]
        following = names[names.index(stage) + 1 :][:1]
        return self._placement(self.place_of(stage), kept_for_upload=bool(following) and following[0] in UPLOADS)

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
