"""What a configuration's names and options mean in PyTorch and in the constructors of components."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from engram_exp.errors import ConfigError

CPU = torch.device("cpu")
GIVEN = (  # what a run passes to its components
    "plan", "table", "columns", "weights", "fusion_weights", "lead", "max_tokens", "placement", "rows", "row_format",
    "seed", "vocab_size", "history_len", "tokenizer", "open_tokenizer", "cache_dir", "read_times", "beside",
    "layer", "profile",
    "ranks", "shards", "weights_share", "reachable", "own_lookup", "rank_tokens", "own_batches",
)  # fmt: skip
OF_HASH = ("hash_seed", "pad_id", "vocab_size", "eos_id")  # keys of a model that its hash may be built from ...
COMPRESSION = "compression"  # ... beside that of its tokenizer
UNIONS = (typing.Union, types.UnionType)
YAML_TYPES = {float: (float, int), Path: (str,)}  # as which a value of some types may be written, besides their own


def resolve_device(name: str) -> torch.device:
    """The device that `hardware.device` names.

    Raises:
        ConfigError: there is none of that kind.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or CPU
    if name == "cpu":
        return CPU
    if accelerator is None or accelerator.type != name:
        found = f"only {accelerator.type}" if accelerator else "no accelerator"
        raise ConfigError("hardware.device", name, f"PyTorch finds {found}; auto and cpu would work")
    return accelerator


def check_options(group: str, node: DictConfig, choice: str | None = None, given: Sequence[str] = GIVEN) -> None:
    """Hold a component's options to the annotations of its constructor.

    Args:
        group: of the component.
        node: its class, as `_target_`, and its options.
        choice: what was chosen in the group, as it is typed; None: the name of the class's module.
        given: arguments that are no options.

    Raises:
        ConfigError: naming the option.
    """
    target, hints = _constructor(group, node, choice)
    parameters = inspect.signature(target).parameters
    options: Any = OmegaConf.to_container(node, resolve=True)
    del options["_target_"]
    for name, value in options.items():
        key = f"{group}.{name}"
        if name in given:
            raise ConfigError(key, value, "follows from the rest of the configuration; leave it out")
        if name not in parameters:
            raise ConfigError(key, value, f"{target.__name__} has no such option; leave it out: ~{key}")
        if name not in hints:
            raise ConfigError(key, value, f"{target.__name__} does not say of what type it is; annotate it")
        if not _takes(hints[name], value):
            typed = "null" if value is None else value
            raise ConfigError(key, typed, f"must be {_in_words(hints[name])}, not of type {type(value).__name__}")
    for name, parameter in parameters.items():
        is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_named and parameter.default is parameter.empty and name not in (*options, *given):
            raise ConfigError(f"{group}.{name}", "null", f"{target.__name__} needs it; set it, or give it a default")


def check_hash(model: DictConfig) -> None:
    """Hold a model's hash to its constructor: what that names must be set, and what it does not name, left out.

    Raises:
        ConfigError: naming the key.
    """
    check_options("model.hash", model.hash, given=(*OF_HASH, COMPRESSION))
    target, _ = _constructor("model.hash", model.hash, None)
    parameters = inspect.signature(target).parameters
    for key in OF_HASH:
        value, parameter = model[key], parameters.get(key)
        if parameter is None and value is not None:
            raise ConfigError(f"model.{key}", value, f"{target.__name__} makes no use of it; null it")
        if parameter is not None and parameter.default is parameter.empty and value is None:
            raise ConfigError(f"model.{key}", "null", f"{target.__name__} needs it; set it")
    if COMPRESSION in parameters and model.tokenizer is None:
        raise ConfigError("model.tokenizer", "null", f"{target.__name__} compresses its ids; name one")


def _constructor(group: str, node: DictConfig, choice: str | None) -> tuple[Any, dict[str, Any]]:
    """The class of a component and what its constructor's annotations mean."""
    try:
        target: Any = get_class(node._target_)
        return target, typing.get_type_hints(target.__init__)
    except Exception as error:  # Hydra raises whatever importing it raised
        if "No module named 'triton'" in str(error):
            remedy = "needs Triton, which is not installed; strategy=kv_on_gpu and kv_on_cpu do without"
            raise ConfigError(group, choice or node._target_.split(".")[-2:][0], remedy) from error
        raise ConfigError(f"{group}._target_", node._target_, f"cannot be imported ({error})") from error


def _takes(hint: Any, value: Any) -> bool:
    """Whether an annotation allows a value that came out of YAML. A component gets what is written there, unconverted:
    a number in quotes is none."""
    origin, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Any or (isinstance(value, dict) and "_target_" in value):  # of which Hydra makes an object
        return True
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in of)
    if origin in UNIONS:
        return any(_takes(choice, value) for choice in of)
    if isinstance(value, list) and origin is tuple and of and ... not in of:
        return len(value) == len(of) and all(map(_takes, of, value))
    if isinstance(value, list):
        return origin in (list, tuple, Sequence) and all(_takes(of[0], item) for item in value if of)
    if isinstance(value, dict):
        items = value.items() if of else ()
        return origin in (dict, Mapping) and all(_takes(of[0], key) and _takes(of[1], item) for key, item in items)
    return type(value) in YAML_TYPES.get(origin, (origin,))


def _in_words(hint: Any) -> str:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join('null' if choice is None else str(choice) for choice in of)}"
    if origin in UNIONS:
        return " or ".join(map(_in_words, of))
    if hint is type(None):
        return "null"
    return str(hint) if of else str(hint.__name__)
