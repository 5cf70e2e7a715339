"""What the files in `conf/` say of a decoder that a row of results names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import decoder_of, value_bytes_of
from engram_exp.decoder.shapes import DenseShape
from engram_exp.machine.environment import PROJECT

CONF = PROJECT / "conf"


def token_bytes(decoder: str, options: str, dtype: str) -> int | None:
    """Bytes that a dense decoder keeps of each token, keys and values of all layers; None of another, and of one that
    no file here describes.

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
    return value_bytes_of(values.name) * shape.layers * shape.cache_values // shape.context
