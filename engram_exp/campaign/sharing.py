"""Which runs of a campaign share a worker (`worker=shared`), and the order in which they are done."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from omegaconf import DictConfig

from engram_exp.campaign.attempt import Planned
from engram_exp.config.derived import settings_in_words, table_settings
from engram_exp.config.mixed import config_of_layer, mixed_strategies
from engram_exp.vocabulary import DISK, SHARED

OF_A_PROCESS = (
    "hardware",
    "ranks",
    "mixed_gpus",
    "rank_timeout_s",
    "timeout_s",
    "cache_dir",
)  # settings that it keeps for its life
MOST_RUNS = 200  # of one process: a command line has room for so many folders
DECIDE_WHICH_TABLES = "decoder", "strategies", "exchange"  # beside what each is made of


def in_order(todo: Sequence[Planned]) -> list[Planned]:
    """Runs in the order of the sweep, or shuffled where they repeat, so that drift favours nobody. Those that share a
    worker stand beside each other, repetition by repetition; among them those that read the same table."""
    ordered, config = list(todo), todo[0].config
    if config.repeats > 1:
        random.Random(config.seed).shuffle(ordered)
    if config.worker != SHARED:
        return ordered
    first: dict[tuple[int, str], int] = {}
    keys = [((run.repeat, _of_process(run.config)), (run.repeat, _of_table(run.config))) for run in ordered]
    for number, (process, table) in enumerate(keys):
        first.setdefault(process, number)
        first.setdefault(table, number)

    def place(number: int) -> tuple[int, int, int]:
        process, table = keys[number]
        return ordered[number].repeat, first[process], first[table]

    return [ordered[number] for number in sorted(range(len(ordered)), key=place)]


def batches(ordered: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Runs that one worker makes, in order: one, or all that share it."""
    alone = iter(range(len(ordered)))

    def key(run: Planned) -> Any:
        return (run.repeat, _of_process(run.config)) if _shares(run.config) else next(alone)

    for _, found in groupby(ordered, key):
        runs = list(found)
        yield from (runs[first : first + MOST_RUNS] for first in range(0, len(runs), MOST_RUNS))


def _shares(config: DictConfig) -> bool:
    """Whether a run may follow another in one process: what it does to its process, to the page cache or to what is
    known of the machine must not reach others, and several nodes are handed one job at a time."""
    if config.worker != SHARED or config.memory_limit_gb is not None or config.limits == "refresh" or config.nodes > 1:
        return False
    layers = [config, *(config_of_layer(config, number) for number in mixed_strategies(config))]
    return all(layer.strategy.table != DISK for layer in layers)


def _of_process(config: DictConfig) -> str:
    return settings_in_words(config, OF_A_PROCESS)


def _of_table(config: DictConfig) -> str:
    return table_settings(config) + settings_in_words(config, DECIDE_WHICH_TABLES)
