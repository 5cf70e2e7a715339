"""What no step of a model can be, refused before a process is started."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import decoder_of, decodes, engram_layers_of, ids_of, stages_of
from engram_exp.config.mixed import config_of_layer, mixed_strategies
from engram_exp.errors import ConfigError
from engram_exp.vocabulary import AUTO, BESIDE, DEVICE, INLINE, LOW, ONE, PREVIOUS_STEP, THIS_STEP

OF_A_STEP = {  # keys, and what they are if nobody asks
    "ids": AUTO,
    "prefetch.where": BESIDE,
    "prefetch.streams": ONE,
    "prefetch.priority": LOW,
    "prefetch.lead": THIS_STEP,
}


def check_step(config: DictConfig) -> None:
    """Refuse what a model's step cannot be, and keys of a step where no decoder is chosen."""
    if decodes(config):
        decoder_of(config)
        _check_tables(config)
        if config.prefetch.lead == PREVIOUS_STEP and (ids_of(config) == DEVICE or config.seq_len == 1):
            remedy = "ids of a decode step are sampled by the one before; those of a prompt (seq_len=512) are known"
            raise ConfigError("prefetch.lead", PREVIOUS_STEP, remedy)
        for key in ("streams", "priority") if config.prefetch.where == INLINE else ():
            if (value := config.prefetch[key]) != OF_A_STEP[f"prefetch.{key}"]:
                raise ConfigError(f"prefetch.{key}", value, "rows that are fetched inline come on the decoder's stream")
        _check_mixed(config)
        if config.prefetch.lead == PREVIOUS_STEP and config.prefetch.where == INLINE:
            raise ConfigError("prefetch.lead", PREVIOUS_STEP, "rows come before their step; use prefetch.where=beside")
        return
    for layer, option in mixed_strategies(config).items():
        raise ConfigError(f"strategies.{layer}", option, "says nothing without a decoder; decoder=dense_8b has a step")
    for key, usual in OF_A_STEP.items():
        if (value := OmegaConf.select(config, key)) != usual:
            raise ConfigError(key, value, "says nothing without a decoder; decoder=dense_8b has a step")


def _check_tables(config: DictConfig) -> None:
    """Refuse two layers with one table: the second would find the rows of the first in a cache."""
    layers, own = engram_layers_of(config), config.model.layers
    elsewhere = [layer for layer in layers if layer not in own]
    if len(elsewhere) > 1 or (elsewhere and config.layer in layers):
        remedy = f"the model has tables at {sorted(own)}; one other layer may have that of layer={config.layer} instead"
        raise ConfigError("decoder.engram_layers", layers, remedy)


def _check_mixed(config: DictConfig) -> None:
    """Refuse strategies of layers that have no table, or beside an engine's bundle."""
    layers = engram_layers_of(config)
    for layer, option in mixed_strategies(config).items():
        key = f"strategies.{layer}"
        if layer not in layers:
            raise ConfigError(key, option, f"no table stands there; decoder.engram_layers are {sorted(layers)}")
        if config.engine.name:
            raise ConfigError(key, option, f"components={config.engine.name} has one way for all layers")
        stages_of(config_of_layer(config, layer))
