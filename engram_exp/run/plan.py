"""What a run comes to before anything is built: every fact that follows from its configuration and its machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from engram_exp.config.derived import (
    batches_of,
    cases_of,
    chunk_tokens_of,
    geometry_of,
    reading_of,
    stages_of,
    value_bytes_of,
)
from engram_exp.config.mixed import config_of_layer
from engram_exp.config.options import CPU, resolve_device
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.layer.primes import kept_primes
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.environment import code_cache, cpu_name
from engram_exp.machine.placement import Placement, cache_bytes, multiprocessors
from engram_exp.machine.ranks import ALONE, Ranks
from engram_exp.measure.limits import Limits
from engram_exp.measure.read_times import MeasuredReadTimes
from engram_exp.run.kinds import step_of
from engram_exp.run.rank_plan import among, group_of, read_here
from engram_exp.run.step_plan import StepPlan
from engram_exp.stage import Load, PlannedStage, Task, kind_of
from engram_exp.steps.lookup.order import Reading, ReadTimes
from engram_exp.steps.upload.step import Upload
from engram_exp.strategy.footprint import Footprint, Ring, footprint
from engram_exp.strategy.plan import made_up_inputs, needed_stages, stages_of_whole, works_alone
from engram_exp.strategy.schedule import Cut, cut
from engram_exp.vocabulary import HOST, IN_STEP, LINK, OF_A_STEP, UPLOADS, WHOLES

Choices = Mapping[str, str | None]


class Distinct(NamedTuple):
    """How many of the rows that batches ask for are distinct.

    in_first: share of the first batch's.
    in_all: share of those of all batches, among all of them.
    batches: that rotate.
    by_order: share of the first batch's, by n-gram order.
    """

    in_first: float
    in_all: float
    batches: int
    by_order: Mapping[int, float] = MappingProxyType({})


class Plan:
    """The plan of one run.

    Args:
        config: checked by `config.checks.check`.
        choices, ranks: the option chosen in each group, for those who name one; of the run, and which of them it is.

    limits, distinct: of this machine, and how many of the rows that batches ask for are distinct, once they are known;
        until then, all are.
    """

    limits: Limits | None = None
    distinct: Distinct | None = None

    def __init__(self, config: DictConfig, choices: Choices | None = None, ranks: Ranks = ALONE) -> None:
        self.config, self.choices, self.ranks = config, choices or {}, ranks
        self.tokens = config.batch_size * config.seq_len

    @cached_property
    def device(self) -> torch.device:
        """The device that keys and value must end on, and where the hidden state is."""
        return resolve_device(self.config.hardware.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        value_bytes_of(self.config.dtype.name)
        dtype = getattr(torch, self.config.dtype.name)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @cached_property
    def geometry(self) -> EngramGeometry:
        """The layer's numbers; its primes are kept on disk."""
        return geometry_of(self.config, kept_primes(code_cache(self.config.cache_dir)))

    @cached_property
    def row_format(self) -> RowFormat:
        """How rows are stored."""
        dtype = self.config.dtype
        layout = dtype.values_per_scale, dtype.layout == "split", dtype.one_scale
        return RowFormat(self.geometry.row_values, self.dtype, *layout)

    @cached_property
    def stages(self) -> tuple[PlannedStage, ...]:
        """The stages of the strategy that this machine has: without an accelerator there is no link."""
        return tuple(stage for stage in stages_of(self.config) if self.has_link or not stage.is_upload)

    @property
    def has_link(self) -> bool:
        """Whether host and device have memories of their own."""
        return self.device.type != "cpu"

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The cases that are timed; uploads are skipped where there is no link."""
        return tuple(case for case in cases_of(self.config) if self.has_link or case not in UPLOADS)

    @cached_property
    def wholes(self) -> tuple[str, ...]:
        """The cases of several stages among them, the shorter first."""
        return tuple(case for case in WHOLES if case in self.cases)

    @cached_property
    def step(self) -> StepPlan | None:
        """The plan of a model's step, if one of its cases is timed."""
        return StepPlan(self) if any(case in OF_A_STEP for case in self.cases) else None

    def of_layer(self, number: int) -> Plan:
        """The plan of a layer of the model's step, by its number among the decoder's: this one, where it is of the same
        table and strategy."""
        config = config_of_layer(self.config, number)
        if config is self.config:
            return self
        return Plan(config, self.choices, self.ranks)

    def whole(self, case: str) -> tuple[PlannedStage, ...]:
        """The stages of such a case."""
        return stages_of_whole(case, self.stages)

    @cached_property
    def cuts(self) -> Sequence[Cut] | None:
        """The chunks of a pipeline; None where wholes take whole batches."""
        chunk_tokens = chunk_tokens_of(self.config)
        return None if chunk_tokens is None else cut(self.config.batch_size, self.config.seq_len, chunk_tokens)

    @cached_property
    def built(self) -> tuple[PlannedStage, ...]:
        """The stages that are built for whole batches; a pipeline has others, of its own."""
        whole_batches = self.cuts is None or self.config.save_tensors
        return needed_stages([case for case in self.cases if case not in WHOLES or whole_batches], self.stages)

    @property
    def looks_up(self) -> bool:
        """Whether the run needs the table."""
        stages = {*self.built, *(stage for case in self.wholes for stage in self.whole(case))}
        in_step = self.step is not None and self.step.is_of(self)
        return in_step or any(self.task(stage).kind.reads_table for stage in stages)

    def know(self, limits: Limits | None, distinct: Distinct | None) -> None:
        """What this machine can do, and how many of the rows that batches ask for are distinct, is known now: all
        layers of the model's step are planned by it."""
        for plan in (self, *(self.step.layers.values() if self.step else ())):
            plan.limits, plan.distinct = limits, distinct

    def task(self, stage: PlannedStage, *, staged: bool = False) -> Task:
        """A stage's kind and what is asked of it.

        Args:
            stage: of the strategy, or an upload.
            staged: in chunks.
        """
        config, distinct = self.config, self.distinct or Distinct(1.0, 1.0, batches_of(self.config))
        step, node = step_of(stage), config.get(group_of(self, stage))
        load = Load(
            stage=stage,
            geometry=self.geometry,
            sequences=config.batch_size,
            tokens=self.tokens,
            dtype=config.dtype.name,
            table=config.strategy.table,
            batches=distinct.batches,
            distinct_rows=distinct.in_first,
            distinct_in_all=distinct.in_all,
            cache_bytes=cache_bytes(self.device),
            staged=staged,
            page_cache=config.cache_state,
            options={str(key): value for key, value in (node or {}).items() if key != "_target_"},
            among=among(self),
        )
        return Task(step if node is None else kind_of(get_class(node._target_), step), load)

    def tasks_of(self, case: str) -> list[Task]:
        """What a case comes to: one stage, or all of a whole, or of a model's step."""
        if self.step and case in OF_A_STEP:
            return self.step.costs_of(case)
        if case in WHOLES:
            return [self.task(stage, staged=self.cuts is not None) for stage in self.whole(case)]
        return [self.task(stage) for stage in self.built if stage.name == case]

    def reading(self, case: str) -> Reading | None:
        """How a kernel reads the rows of a case, as far as the lookup knows orders; chunk by chunk in a pipeline, where
        it reads beside the chunk before."""
        tokens, beside = self.tokens, self.step is not None and self.step.is_beside and case in OF_A_STEP
        if self.cuts and case in WHOLES:
            tokens, beside = max(piece.tokens for piece in self.cuts), works_alone(self.stages)
        known = multiprocessors(self.device), self.read_times
        return reading_of(self.config, *read_here(self, tokens), *known, beside=beside)

    @property
    def read_times(self) -> ReadTimes | None:
        """What reads through the link take on this machine, if it is known."""
        return MeasuredReadTimes.of(self.limits.peaks) if self.limits else None

    def placement(self, stage: PlannedStage) -> Placement:
        """Where a stage leaves its output; pinned if that crosses the link next."""
        crosses = any(other.place == LINK and other.needs == stage.makes for other in self.stages)
        return self.memory(stage.side, crosses=crosses and not stage.is_upload)

    def memory(self, side: str, *, crosses: bool = False) -> Placement:
        """Memory on one side of the link; what crosses it next is pinned where the upload wants that."""
        device = CPU if side == HOST else self.device
        return Placement(device, pinned=crosses and device == CPU and self.pins)

    @property
    def pins(self) -> bool:
        """Whether host buffers that cross the link are pinned."""
        upload: Any = kind_of(get_class(self.config.upload._target_), Upload)
        return self.has_link and bool(upload.pinned_source)

    def footprint(self) -> Footprint:
        """The memory that the run keeps."""
        tasks = {stage: self.task(stage) for stage in self.built}
        ring = None
        if self.cuts is not None and self.wholes:
            chunks = max(piece.tokens for piece in self.cuts), min(self.config.schedule.ring_depth, len(self.cuts))
            ring = Ring(self.tasks_of(self.wholes[-1]), *chunks)
        in_step = self.step.tasks_of(IN_STEP, self) if self.step and self.step.is_of(self) else []
        found = footprint(
            self.task(self.stages[0]).load,
            [*tasks.values(), *in_step],
            [tasks[stage] for stage in made_up_inputs(self.built, self.stages)],
            [task for task in tasks.values() if task.kind.rotates],
            ring,
        )
        return found.plus(self.step.footprint()) if self.step else found


def device_name(device: torch.device) -> str:
    """Of the accelerator, or of the CPU that stands in for it."""
    return torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
