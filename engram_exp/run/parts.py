"""From a plan to the components of a run, and to the data that they compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from engram_exp.config.options import CPU
from engram_exp.machine.environment import code_cache
from engram_exp.machine.placement import Placement
from engram_exp.run.batches import Batches
from engram_exp.run.component import asks_only_for, make
from engram_exp.run.kept_tables import KeptTables, table_made_of
from engram_exp.run.layer_hash import LayerHash
from engram_exp.run.layer_weights import LayerWeights
from engram_exp.run.model_state import ModelState
from engram_exp.run.plan import Plan
from engram_exp.run.rank_plan import group_of, lookup_of_stored, reads_peers, shards_of
from engram_exp.run.reference import LayerReference
from engram_exp.stage import BuiltStage, PlannedStage, Tensors, as_stage_function
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.widening import build_widening
from engram_exp.vocabulary import DEVICE, HOST, OWN

TABLE_BUILT_FROM = ("rows", "row_format", "seed", "placement")
# What `table_made_of` tells: a table of others that asks for more, another run's may differ from.
KEPT_TABLE_BUILT_FROM = {*TABLE_BUILT_FROM, "ranks", "shards", "reachable"}


class Parts:
    """What the components of a run are made of; each part is built once, and none that is not asked for.

    Args:
        plan: of the run.
        seed: of the table and the weights; None: the run's, of everything.
        tables: that this process keeps between runs; None: it makes no other.
    """

    def __init__(self, plan: Plan, seed: int | None = None, tables: KeptTables | None = None) -> None:
        self.plan, self.tables = plan, tables or KeptTables()
        self.seed = int(plan.config.seed) if seed is None else seed
        self.hash, self.weights, self.model_state = LayerHash(plan), LayerWeights(plan, self.seed), ModelState(plan)
        source = partial(make, plan.config.tokens, self._given(plan.tokens, Placement(CPU)))
        self.batches = Batches(plan, self.hash, source)
        self.reference = LayerReference(plan, self.seed, self.hash, self.weights, lambda: self.table)

    def stage(
        self,
        stage: PlannedStage,
        tokens: int | None = None,
        placement: Placement | None = None,
        brought: Tensors | None = None,
        lead: int = 0,
        beside: bool = False,
    ) -> BuiltStage:
        """Build one stage, for whole batches in buffers of its own unless told otherwise.

        Args:
            stage: what it is.
            tokens: it must hold, at most.
            placement: of its output.
            brought: what the model brings to it.
            lead: tokens at the front of each sequence that a fusion only reads.
            beside: a decoder, or the chunk before, runs on the device meanwhile.
        """
        config, task = self.plan.config, self.plan.task(stage)
        kind = task.kind
        given = self._given(tokens or self.plan.tokens, placement or self.plan.placement(stage), lead, beside)
        if stage.is_upload:
            return BuiltStage(stage, kind, make(config.upload, given, kind.built_from))
        group = group_of(self.plan, stage)
        if group in config:
            component = make(config[group], given, kind.built_from)
        else:
            component = build_widening(**{name: given[name]() for name in kind.built_from})
        brought = self.model_state.brought(task) if brought is None else brought
        return BuiltStage(stage, kind, as_stage_function(component, brought), component)

    def _own_lookup(self, placement: Placement, beside: bool) -> Callable[[Any, int, int], Any]:
        """Builds the lookup that is chosen for a rank's share of the table, so many tokens and columns: it leaves rows
        as they are stored, in memory of their own."""
        node = lookup_of_stored(self.plan.config)

        def build(table: Any, tokens: int, columns: int) -> Any:
            given = self._given(tokens, Placement(placement.device), beside=beside)
            return make(node, {**given, "table": lambda: table, "columns": lambda: columns}, Lookup.built_from)

        return build

    def _given(
        self, tokens: int, placement: Placement, lead: int = 0, beside: bool = False
    ) -> Mapping[str, Callable[[], Any]]:
        """Everything that a component may be built from, beside its own options, by the name of its argument."""
        weights = self.weights
        return {
            "plan": lambda: self.hash.plan,
            "table": lambda: self.table,
            "columns": lambda: self.plan.geometry.columns,
            "weights": lambda: weights.on(placement.device, weights.projection),
            "weights_share": lambda: weights.on(placement.device, weights.share),
            "fusion_weights": lambda: weights.on(placement.device, weights.fusion),
            "lead": lambda: lead,
            "beside": lambda: beside,
            "max_tokens": lambda: tokens,
            "placement": lambda: placement,
            "rows": lambda: self.plan.geometry.rows,
            "row_format": lambda: self.plan.row_format,
            "seed": lambda: self.seed,
            "layer": lambda: self.plan.geometry.layer,
            "vocab_size": lambda: self.hash.of_model.vocab_size,
            "history_len": lambda: self.plan.geometry.max_order - 1,
            "tokenizer": lambda: self.hash.tokenizer,
            "open_tokenizer": lambda: lambda: self.hash.tokenizer,  # of those who may do without
            "cache_dir": lambda: code_cache(self.plan.config.cache_dir),
            "read_times": lambda: self.plan.read_times,
            "profile": lambda: self.batches.profile,
            "ranks": lambda: self.plan.ranks,
            "shards": lambda: shards_of(self.plan),
            "reachable": lambda: reads_peers(self.plan),
            "own_lookup": lambda: self._own_lookup(placement, beside),
            "rank_tokens": lambda: [tokens] * self.plan.ranks.size,
            "own_batches": lambda: self.plan.config.rank_batches == OWN,
        }

    @cached_property
    def table(self) -> Any:
        """The layer's table, filled."""
        node, place = self.plan.config.table, self.plan.config.strategy.table
        on_host = Placement(CPU, pinned=self.plan.device.type == "cuda" and place == HOST)
        placement = self.plan.memory(place) if place == DEVICE else on_host
        kept = self.tables if asks_only_for(node, KEPT_TABLE_BUILT_FROM) else KeptTables()
        fill = partial(make, node, self._given(self.plan.tokens, placement), TABLE_BUILT_FROM)
        return kept.of(table_made_of(self.plan, self.seed), fill)


def parts_in_step(parts: Parts) -> list[Parts]:
    """The parts of the layers with tables of the model's step, in their order: a run's own, where a layer is its, else
    others with a seed of their own."""
    layers = parts.plan.step.layers.items() if parts.plan.step else ()
    return [
        parts if layer is parts.plan else Parts(layer, parts.seed + number, parts.tables) for number, layer in layers
    ]


def tables_of(parts: Parts) -> list[str]:
    """What the tables of a run are made of: its layer's, and those of the layers of its model's step."""
    own = [parts] if parts.plan.looks_up else []
    return [table_made_of(one.plan, one.seed) for one in (*own, *parts_in_step(parts))]
