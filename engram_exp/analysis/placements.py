"""Several GPUs: what the tables take of each of them and of their host, wherever they are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from engram_exp.analysis.curves import Curve, Time
from engram_exp.analysis.engines import Gpus
from engram_exp.analysis.exposed import Step
from engram_exp.layer.shards import BY_ROWS
from engram_exp.vocabulary import DEVICE

SHARD, HOST_SHARD, SHARED = "shard", "shard_host", "shared"  # options of `table`: what ranks keep between them


@dataclass(frozen=True)
class Sized:
    """The time of a step of one size.

    Args:
        size: tokens per step or, of a model's, sequences x tokens of each: of one rank, whatever the others ask for.
        time: of it.
    """

    size: str
    time: Time


@dataclass(frozen=True)
class Placement:
    """One way to keep the tables of all layers on several GPUs.

    Args:
        strategy: and the exchange, if rows cross between the GPUs.
        device_gb: of each GPU's memory, at full size.
        host_gb: of each host's, of all of its GPUs together.
        fits: within the memory that tables may take.
        times: of one layer or, where steps of a model were measured, what these take longer; by size, ascending.
    """

    strategy: str
    device_gb: float
    host_gb: float
    fits: bool
    times: list[Sized]


def ranks_in(rows: pd.DataFrame, column: str = "ranks") -> pd.Series[int]:
    """How many ranks, or nodes, each row is of; 1 where it does not tell."""
    return pd.to_numeric(rows[column], errors="coerce").fillna(1).astype(int)


def by_exchange(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the exchange in their strategy: what ranks share out is not one thing, however its rows come."""
    exchanged = (ranks_in(rows) > 1) & ~rows["exchange"].isin(["", "none"])
    return rows.assign(strategy=rows["strategy"].mask(exchanged, rows["strategy"] + " exchange=" + rows["exchange"]))


def gpus_of(rows: pd.DataFrame) -> Gpus:
    """Those of one subject."""
    return Gpus(int(ranks_in(rows).iloc[0]), str(rows["rank_batches"].iloc[0]), int(ranks_in(rows, "nodes").iloc[0]))


def share_on_device(rows: pd.DataFrame, columns: int | None = None) -> pd.Series[float]:
    """The share of the tables that a GPU keeps, at most.

    Args:
        rows: of one strategy.
        columns: of the hash, which ranks share out whole; None: as if evenly.
    """
    return (rows["table"] == DEVICE).astype(float).mask(rows["table"] == SHARD, _share_of(rows, 1, columns))


def tables_on_host(rows: pd.DataFrame, columns: int | None = None) -> pd.Series[float]:
    """How often the tables lie in a host's memory, at most: once for each of its ranks, unless these share them."""
    here = ranks_in(rows) // ranks_in(rows, "nodes")
    once = here.astype(float).mask(rows["table"] == SHARED, 1)
    shared_out = once.mask(rows["table"] == HOST_SHARD, _share_of(rows, here, columns))
    return shared_out.mask(rows["table"].isin([DEVICE, SHARD]), 0)


def _share_of(rows: pd.DataFrame, together: pd.Series[int] | int, columns: int | None) -> pd.Series[float]:
    """What so many ranks keep together of a table that all share out, at most."""
    ranks = ranks_in(rows)
    evenly = together / ranks
    if columns is None:
        return evenly
    more = (columns % ranks).clip(upper=together)  # of the ranks that have a column more than the others
    return ((together * (columns // ranks) + more) / columns).mask(rows["split"] == BY_ROWS, evenly)


def placements_of(
    needed: Mapping[str, tuple[float, float]],
    fitting: Collection[str],
    curves: Mapping[str, Curve],
    steps: Sequence[Step],
) -> list[Placement]:
    """What was measured of each strategy; the least of each GPU's memory first.

    Args:
        needed: by strategy, GB of each GPU's memory and of each host's for the tables.
        fitting: strategies within the memory that tables may take.
        curves: of the layer's time; none where steps of a model were measured.
        steps: of these.
    """
    found = []
    for strategy in sorted(needed, key=lambda name: (needed[name][0], name)):
        in_steps = [(f"{one.batch_size:,} x {one.seq_len:,}", one.of(strategy)) for one in steps]
        times = [Sized(size, one.time) for size, one in in_steps if one]
        times += [Sized(f"{tokens:,}", time) for tokens, time in sorted(curves.get(strategy, {}).items())]
        found.append(Placement(strategy, *needed[strategy], strategy in fitting, times))
    return found
