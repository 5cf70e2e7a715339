"""What the files in `conf/` say of a decoder, a strategy or a model that a row of results names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import decoder_of, value_bytes_of
from engram_exp.config.given import CONF, chosen_by, given_by
from engram_exp.decoder.shapes import DenseShape


def kept_of(decoder: str, options: str, dtype: str) -> tuple[int, int] | None:
    """What a dense decoder keeps of each sequence: bytes of a token, keys and values of all layers, and tokens of its
    context; None of another, and of one that no file here describes.

    Args:
        decoder, options, dtype: as the columns of these names have them; of the options, those of the decoder count.
    """
    files = [CONF / "decoder" / f"{decoder}.yaml", CONF / "dtype" / f"{dtype}.yaml"]
    if not all(map(Path.is_file, files)):
        return None
    sizes, values = map(OmegaConf.load, files)
    changed = [one.removeprefix("decoder.") for one in options.split() if one.startswith("decoder.")]
    whole: Any = OmegaConf.merge(sizes, OmegaConf.from_dotlist(changed))
    if not whole.get("_target_"):
        return None
    whole.engram_layers = [0]  # says nothing of what it keeps, and needs no model
    shape = decoder_of(DictConfig({"decoder": whole, "seq_len": 1}))
    if not isinstance(shape, DenseShape):
        return None
    return value_bytes_of(values.name) * shape.layers * shape.cache_values // shape.context, shape.context


def columns_of(model: str, options: str) -> int | None:
    """Hash columns of a model's layers; None of one that no file here describes.

    Args:
        model, options: as the columns of these names have them; of the options, those of the model count.
    """
    sizes = given_by((CONF,), "model", model)
    if not sizes:
        return None
    changed = [one.removeprefix("model.") for one in options.split() if one.startswith("model.")]
    whole: Any = OmegaConf.merge(OmegaConf.create(sizes), OmegaConf.from_dotlist(changed))
    return int(whole.heads) * len(whole.orders)


def tables_of(strategy: str) -> tuple[str, str, float] | None:
    """Where a strategy keeps a layer's table, the option of `table`, and 10^9 bytes of device memory for some of its
    rows, unless it is told otherwise; None of one that no file here describes."""
    places = given_by((CONF,), "strategy", strategy)
    if not places:
        return None
    chosen = chosen_by(CONF / "config.yaml") | chosen_by(CONF / "strategy" / f"{strategy}.yaml")
    lookup = given_by((CONF,), "lookup", chosen["lookup"])
    return places["table"], chosen["table"], float(lookup.get("gb", 0.0))
