"""What a model's step comes to before anything is built: its decoder, its layers with tables, and their costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from engram_exp.config.derived import decoder_of, engram_layers_of, stages_of, value_bytes_of
from engram_exp.decoder.shape import DecoderCost, DecoderShape
from engram_exp.run.rank_plan import among
from engram_exp.stage import Load, PlannedStage, Stage, Task
from engram_exp.strategy.footprint import Footprint
from engram_exp.strategy.plan import in_place
from engram_exp.vocabulary import (
    BESIDE,
    DECODER,
    DEVICE,
    FETCH,
    HOST,
    IN_STEP,
    OF_A_STEP,
    OWN,
    PEERS,
    PREVIOUS_STEP,
    READY,
    THIS_STEP,
    TOKEN_IDS,
)

if TYPE_CHECKING:
    from engram_exp.run.plan import Plan


# Copies of a layer's rows, beside those that are fetched: in place for `ready`, and for a step whose rows come ahead.
COPIES = {THIS_STEP: 1, PREVIOUS_STEP: 2}


class StepPlan:
    """The plan of a model's step.

    Args:
        plan: of the run, and of one of the model's layers with tables.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cases = tuple(case for case in OF_A_STEP if case in plan.cases)

    @cached_property
    def shape(self) -> DecoderShape:
        """The decoder's sizes; of a rank's share, where ranks run the same tokens together."""
        shape, size = decoder_of(self.plan.config), self.plan.ranks.size
        return shape.among(size) if self.is_shared else shape

    @property
    def is_shared(self) -> bool:
        """Whether ranks have shares of one decoder."""
        return self.plan.ranks.size > 1 and self.plan.config.rank_batches != OWN

    @cached_property
    def cost(self) -> DecoderCost:
        """What the decoder keeps, reads and computes."""
        config = self.plan.config
        return DecoderCost(self.shape, config.batch_size, value_bytes_of(config.dtype.name))

    @cached_property
    def layers(self) -> Mapping[int, Plan]:
        """The plan of each layer with a table, by its number among the decoder's, ascending; the run's, where it is of
        the same table and strategy."""
        return {number: self.plan.of_layer(number) for number in sorted(engram_layers_of(self.plan.config))}

    @property
    def is_beside(self) -> bool:
        """Whether rows are fetched beside the decoder."""
        return bool(self.plan.config.prefetch.where == BESIDE)

    def is_of(self, plan: Plan) -> bool:
        """Whether a layer's plan is this one."""
        return any(layer is plan for layer in self.layers.values())

    def parted(self, layer: Plan, case: str = IN_STEP) -> tuple[list[Task], list[Task]]:
        """What a layer's stages do: those that bring its rows to where it reads them, and those behind, up to the
        hidden state, or without a fusion up to keys and value. Ids are where the decoder reads them: none are uploaded.

        Args:
            layer: its plan.
            case: `step`: as the strategy has them; `ready`: embeddings are in place on the device, which projects them
                whatever the strategy, so that all strategies are held against the same.
        """
        config = layer.config
        if case == READY:
            config = config.copy()
            config.strategy.projection = DEVICE
        stages = [
            stage for stage in stages_of(config) if not stage.is_upload or (layer.has_link and stage.needs != TOKEN_IDS)
        ]
        fetched = in_place(stages)
        tasks = [layer.task(stage) for stage in stages]
        return tasks[:fetched], tasks[fetched:]

    @property
    def is_alike(self) -> bool:
        """Whether all layers make the same of their rows in a step as when they are in place."""
        of_case = ([self.parted(layer, case)[1] for layer in self.layers.values()] for case in (READY, IN_STEP))
        ready, in_step = ([task.load.stage for tasks in computing for task in tasks] for computing in of_case)
        return ready == in_step

    def tasks_of(self, case: str, layer: Plan) -> list[Task]:
        """What a layer's stages do in a case."""
        if case == DECODER:
            return []
        fetching, computing = self.parted(layer, case)
        return fetching if case == FETCH else computing if case == READY else [*fetching, *computing]

    def costs_of(self, case: str) -> list[Task]:
        """What a case comes to in all: the stages of all layers, and the decoder."""
        tasks = [task for layer in self.layers.values() for task in self.tasks_of(case, layer)]
        return tasks if case == FETCH else [*tasks, self.decoder_task]

    @cached_property
    def decoder_task(self) -> Task:
        """A step of the decoder alone, as a stage."""
        stage = PlannedStage(DECODER, DEVICE, TOKEN_IDS, DECODER)
        plan, config = self.plan, self.plan.config
        load = Load(stage, plan.geometry, config.batch_size, plan.tokens, config.dtype.name, among=among(plan))
        return Task(_kind(self.cost, config.seq_len), load)

    def check_fits(self, needed: Footprint, free_host: int, free_device: int | None) -> None:
        """Refuse a decoder that does not fit beside the rest of the run.

        Args:
            needed: memory of the run, the decoder's with it.
            free_host, free_device: bytes; None where the CPU stands in for the device.

        Raises:
            DoesNotFitError: saying how many of its layers would fit.
        """
        tokens = self.plan.config.seq_len
        free = free_host - needed.host_bytes if free_device is None else free_device
        self.cost.require_fit(free - needed.device_bytes + self.cost.needed_bytes(tokens), tokens)

    def footprint(self) -> Footprint:
        """The memory that it keeps beside the buffers and the table of the run's own layer: the decoder, what its
        graphs hand on, other layers, and rows that are in place."""
        config, cost = self.plan.config, self.cost
        parts = (len(self.layers) + 1) * len(self.cases)
        hidden = parts * self.plan.tokens * self.shape.hidden_size * cost.value_bytes
        # Twice what lives during a step: of its graphs, and of the same without graphs.
        kept = Counter({DEVICE: cost.needed_bytes(config.seq_len) + cost.scratch_bytes(config.seq_len) + hidden})
        tables = 0
        for layer in self.layers.values():
            (fetching, behind), (placing, computing) = self.parted(layer), self.parted(layer, READY)
            tasks = [*fetching, *behind]
            rows = placing[-1].load
            kept[DEVICE] += COPIES[config.prefetch.lead] * rows.bytes_of(rows.stage.makes)
            again = fetching if config.prefetch.lead == PREVIOUS_STEP else []
            for kind, load in again:
                kept.update(kind.keeps(load))
            others = [task for task in (*placing, *computing) if task not in tasks]
            for kind, load in [*(tasks if layer is not self.plan else ()), *others]:
                kept.update(kind.keeps(load))
                kept.update(kind.shares(load))
            share = among(layer).table_share
            tables += round(share * layer.geometry.table_bytes) if layer is not self.plan else 0
        place = self.plan.config.strategy.table
        alike = all(layer.config.strategy.table == place for layer in self.layers.values())
        return Footprint(kept[HOST], kept[DEVICE], tables, place if alike else "")


def _kind(cost: DecoderCost, tokens: int) -> type[Stage]:
    """The decoder as a kind of stage, with so many tokens of each sequence."""

    class DecoderPass(Stage):
        @classmethod
        def bytes_moved(cls, load: Load) -> int:
            return cost.step_bytes(tokens)

        @classmethod
        def flops(cls, load: Load) -> int:
            return cost.flops(tokens)

        @classmethod
        def work(cls, load: Load) -> dict[str, float]:
            own: dict[str, float] = {load.memory: cls.bytes_moved(load), "device GEMM": cls.flops(load)}
            return {**own, PEERS: cost.arriving_bytes(tokens)} if cost.shape.arriving_values else own

    return DecoderPass
