"""What the files in `conf/` say of a decoder, a strategy, a model or a bundle that a row of results names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import GRAPH, NONE, chunk_of, decoder_of, value_bytes_of
from engram_exp.config.given import CONF, chosen_by, given_by, load
from engram_exp.decoder.shapes import DenseShape
from engram_exp.results.schema import CHOICE, KEYS, TABLE, WAY
from engram_exp.vocabulary import AUTO, HALF_BESIDE, HOST, MULTIPROCESSORS

UNLESS_SAID = {"capture": NONE}  # by a schedule
KEYS_OF_WAYS = {column: KEYS[column.name] for column in TABLE if column.role == WAY}


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


def brought_by(row: Mapping[str, str]) -> dict[str, str]:
    """What a row would tell of how it was done, had nothing of that been typed but its bundle, its strategy if the
    bundle brings none, and its components that are not the bundle's; nothing of a bundle that no file here describes.

    What is no option of a component cannot be typed, and what follows from the device is not known here: both are as
    the row has them.

    Args:
        row: columns as one types them: the bundle, the strategy, how it was done, and what chunks are cut by.
    """
    bundle = CONF / "components" / f"{row['components']}.yaml"
    strategy = CONF / "strategy" / f"{row['strategy'].split(' ')[0]}.yaml"
    if not bundle.is_file() or not strategy.is_file():
        return {}
    said = [load(file) for file in (CONF / "config.yaml", strategy, bundle)]
    own = chosen_by(bundle)
    chosen = chosen_by(CONF / "config.yaml") | chosen_by(strategy) | own
    found = {"strategy": own["strategy"]} if "strategy" in own else {}
    for column, key in KEYS_OF_WAYS.items():
        group, _, option = ("schedule.capture" if key == "capture" else key).rpartition(".")
        usual, by_strategy, by_bundle = (each.get(group, {}) for each in said)
        of_choice = given_by((CONF,), group, row.get(group) or chosen.get(group))
        values = UNLESS_SAID | usual | of_choice | by_strategy | by_bundle
        asked = chosen[key] if column.kind == CHOICE else values.get(option, row[column.name])
        found[column.name] = _come_to(column.name, asked, row, said[1]["strategy"])
    return found


def _come_to(name: str, asked: Any, row: Mapping[str, str], places: Mapping[str, str]) -> str:
    """What a column tells where so much is asked for."""
    if asked in (MULTIPROCESSORS, HALF_BESIDE):
        return row[name]
    if name == "capture" and asked == AUTO:
        return NONE if HOST in (places["hashing"], places["lookup"], places["projection"]) else GRAPH
    if name == "chunk_tokens" and asked == AUTO and (columns := columns_of(row["model"], row["options"])):
        return str(chunk_of(int(row["batch_size"]) * int(row["seq_len"]), columns * int(row["row_bytes"])))
    return "null" if asked is None else str(asked)
