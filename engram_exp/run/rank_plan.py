"""What a run's plan comes to where it is one of several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import DictConfig

from engram_exp.config.derived import exchanges, shares_out
from engram_exp.layer.shards import CONTIGUOUS, Among, Shards
from engram_exp.machine import numa
from engram_exp.machine.memory import free_host_bytes
from engram_exp.stage import PlannedStage
from engram_exp.vocabulary import LOOKUP, OWN

if TYPE_CHECKING:
    from engram_exp.run.plan import Plan


def group_of(plan: Plan, stage: PlannedStage) -> str:
    """The group whose option does a stage: rows that are shared out are looked up by an exchange."""
    if stage.is_upload:
        return "upload"
    return "exchange" if stage.name == LOOKUP.name and exchanges(plan.config) else stage.name


def shards_of(plan: Plan) -> Shards:
    """Who holds which rows; one rank alone all of them."""
    split, size = (plan.config.table.split, plan.ranks.size) if shares_out(plan.config) else (CONTIGUOUS, 1)
    return Shards(plan.geometry.head_rows, plan.geometry.rows, size, split)


def lookup_of_stored(config: DictConfig) -> DictConfig:
    """The lookup that is chosen, leaving rows as they are stored."""
    node = config.lookup.copy()
    node.update({name: False for name in ("widen", "apart") if name in node})
    return node


def reads_peers(plan: Plan) -> bool:
    """Whether ranks read each other's memory themselves."""
    kind: Any = get_class(plan.config.exchange._target_) if exchanges(plan.config) else None
    return getattr(kind, "reads_peers", False)


def read_here(plan: Plan, tokens: int) -> tuple[int, int]:
    """Tokens of whole rows, and bytes of table, that come to what a rank reads for so many tokens of its batch: of a
    table that is shared out, its share for all who ask."""
    if not exchanges(plan.config):
        return tokens, plan.geometry.table_bytes
    own = among(plan)
    return max(1, round(own.asking * own.table_share * tokens)), round(own.table_share * plan.geometry.table_bytes)


def free_here(plan: Plan) -> int:
    """Host memory that is free for this rank, in bytes: its part of its host's, or of the node's that it is bound
    to."""
    ranks, asked = plan.ranks, plan.config.hardware.numa
    free = free_host_bytes() // ranks.local_size
    return free if asked is None else min(free, numa.free_bytes(asked, ranks.local_rank, ranks.local_size))


def among(plan: Plan) -> Among:
    """This rank among the others. Of a table that all ranks of a host read, each counts as keeping as much."""
    table: Any = get_class(plan.config.table._target_)
    share = 1 / plan.ranks.local_size if getattr(table, "is_one_for_all", False) else 1.0
    if shares_out(plan.config):
        shards = shards_of(plan)
        share = shards.rows_of(plan.ranks.rank) / shards.rows
    return Among(plan.ranks.size, plan.config.rank_batches == OWN, share)
