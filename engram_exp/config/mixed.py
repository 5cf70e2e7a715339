"""A strategy of its own for a layer of a model's step: their windows differ."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from engram_exp.config.given import CONF, chosen_by, given_by
from engram_exp.errors import ConfigError
from engram_exp.vocabulary import IN_STEP

FOLLOW = ("hashing", "lookup", "table")  # groups whose options follow from a strategy, unless it says nothing of them


def mixed_strategies(config: DictConfig) -> dict[int, str]:
    """The options of `strategy` that layers of a model's step have for themselves, by the layer.

    Raises:
        ConfigError: what should be a layer is no number, or there is no such strategy.
    """
    found = {}
    known = sorted(file.stem for file in (CONF / "strategy").glob("*.yaml"))
    for layer, option in config.strategies.items():
        if not str(layer).isdecimal():
            raise ConfigError(f"strategies.{layer}", option, "must be of a layer, as in strategies.14=uva")
        if option not in known:
            raise ConfigError(f"strategies.{layer}", option, f"must be one of {', '.join(known)}")
        found[int(layer)] = str(option)
    return found


def strategy_in_words(chosen: str, config: DictConfig) -> str:
    """What one types behind `strategy=`: the run's, and those that layers have for themselves where they differ."""
    layers = sorted(mixed_strategies(config).items())
    own = (f"strategies.{layer}={option}" for layer, option in layers if places_of(option) != config.strategy)
    return " ".join([chosen, *own])


def places_of(option: str) -> dict[str, Any]:
    """Where a strategy has its table and its steps, as its file says."""
    return given_by((CONF,), "strategy", option)


def config_of_layer(config: DictConfig, number: int) -> DictConfig:
    """The configuration of a layer of a model's step, by its number among the decoder's: that of the run, where it is
    of the same table and strategy. Where the model has no table, the run's layer stands. A layer with a strategy of its
    own has the components that this one chooses: as their files have them, unless the run has the same."""
    layer = number if number in config.model.layers else config.layer
    option = mixed_strategies(config).get(number)
    places = places_of(option) if option else dict(config.strategy)
    if layer == config.layer and places == config.strategy:
        return config
    found = config.copy()
    found.layer, found.cases = layer, [IN_STEP]
    if places == config.strategy:
        return found
    found.strategy.update(places)
    for group, choice in (chosen_by(CONF / "config.yaml") | chosen_by(CONF / "strategy" / f"{option}.yaml")).items():
        node = given_by((CONF,), group, choice)
        if group in FOLLOW and node["_target_"] != config[group].get("_target_"):
            found[group] = node
    return found
