"""What ranks cannot be, or do, refused before a process is started."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from engram_exp.config.derived import decoder_of, decodes, exchanges, ranks_per_node, shares_out
from engram_exp.config.mixed import mixed_strategies
from engram_exp.errors import ConfigError
from engram_exp.layer.shards import BY_ROWS
from engram_exp.machine.environment import gpus
from engram_exp.machine.rendezvous import endpoint_of, require_one_task_a_node
from engram_exp.vocabulary import DISK, EACH, OWN, SAME


def check_ranks(config: DictConfig) -> None:
    """Refuse what ranks cannot do, and keys of ranks where there is one alone.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    kind: Any = get_class(config.projection._target_)
    if getattr(kind, "needs_same", False) and (config.ranks == 1 or config.rank_batches == OWN):
        remedy = "shares the columns out among ranks that ask for the same tokens: ranks=2 rank_batches=same"
        raise ConfigError("projection", None, f"{kind.__name__} {remedy}; projection=fused has all of them")
    if config.ranks % config.nodes:
        raise ConfigError("ranks", config.ranks, f"each of {config.nodes} nodes has as many; a multiple would work")
    if config.ranks == 1:
        if config.rank_batches != SAME:
            raise ConfigError("rank_batches", config.rank_batches, "says nothing of one rank; ranks=2 has others")
        return
    if config.worker == "inline":
        raise ConfigError("worker", "inline", "is one process, and each rank is one; use process")
    if decodes(config):
        _check_step(config)
    if config.strategy.table == DISK:
        raise ConfigError(
            "ranks", config.ranks, "a table on a disk is read by one rank; strategy=host_shared shares memory"
        )
    if config.link_load_gb_per_s:
        raise ConfigError("link_load_gb_per_s", config.link_load_gb_per_s, "loads the link of one GPU; use ranks=1")
    if config.graph_calls:
        remedy = "in graphs, ranks do not begin their calls together; use graph_calls=0, or ranks=1"
        raise ConfigError("graph_calls", config.graph_calls, remedy)
    if exchanges(config):
        _check_exchange(config)
    elif shares_out(config):
        remedy = f"the table is shared out among {config.ranks} ranks; exchange=all_gather or peer brings its rows"
        raise ConfigError("exchange", "none", remedy)


def _check_step(config: DictConfig) -> None:
    """Refuse a decoder that ranks cannot run together, and what would let two exchanges be under way at a time."""
    if config.rank_batches != OWN:
        decoder_of(config).among(config.ranks)
    for layer, option in mixed_strategies(config).items():
        raise ConfigError(f"strategies.{layer}", option, "layers of several ranks have one strategy, strategy=")
    if exchanges(config) and config.prefetch.streams == EACH:
        remedy = "exchanges of two layers would be under way at a time, through one group; use prefetch.streams=one"
        raise ConfigError("prefetch.streams", EACH, remedy)


def _check_exchange(config: DictConfig) -> None:
    kind: Any = get_class(config.exchange._target_)
    lookup: Any = get_class(config.lookup._target_)
    if getattr(lookup, "keeps_rows", False):
        remedy = (
            f"{lookup.__name__} keeps rows of earlier calls, and an exchange reads none; lookup=anywhere would work"
        )
        raise ConfigError("lookup", None, remedy)
    if getattr(kind, "reads_peers", False) and config.nodes > 1:
        remedy = f"{kind.__name__} reads memory of the same host alone; exchange=all_gather, or nodes=1, would work"
        raise ConfigError("nodes", config.nodes, remedy)
    split = config.table.get("split")
    if getattr(kind, "needs_own", False) and config.rank_batches != OWN:
        remedy = f"sends row ids that all ranks know; rank_batches={OWN}, or exchange=all_gather, would work"
        raise ConfigError("rank_batches", config.rank_batches, f"{kind.__name__} {remedy}")
    if split == BY_ROWS and not getattr(kind, "takes_rows", False):
        remedy = f"{kind.__name__} takes whole columns; exchange=peer or all_reduce, or table.split=strided, would work"
        raise ConfigError("table.split", split, remedy)


def check_nodes(config: DictConfig) -> None:
    """Refuse nodes that do not know where to meet.

    Raises:
        ConfigError: saying what is missing.
    """
    if config.nodes > 1:
        endpoint_of(config.rendezvous)
        require_one_task_a_node(config.nodes, config.rendezvous)


def check_gpus(config: DictConfig) -> None:
    """Refuse more ranks than this machine has GPUs.

    Raises:
        ConfigError: saying how many there are.
    """
    if config.ranks > 1 and config.hardware.device != "cpu" and ranks_per_node(config) > len(gpus()):
        remedy = f"each is a GPU of its own, and this machine has {len(gpus())}; hardware=cpu would stand in for them"
        raise ConfigError("ranks", config.ranks, remedy)
