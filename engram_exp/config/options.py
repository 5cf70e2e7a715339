"""What a configuration's names and options mean in PyTorch and in the constructors of components."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engram_exp.errors import ConfigError

CPU = torch.device("cpu")
GIVEN = (  # what a run passes to its components
    "plan", "table", "columns", "weights", "max_tokens", "placement", "rows", "row_format", "seed", "vocab_size",
    "history_len", "tokenizer", "cache_dir",
)  # fmt: skip


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


def check_options(group: str, node: DictConfig) -> None:
    """Hold a component's options to the annotations of its constructor."""
    try:
        target: Any = get_class(node._target_)
    except Exception as error:  # Hydra raises whatever importing it raised
        if "No module named 'triton'" in str(error):
            remedy = "needs Triton, which is not installed; strategy=kv_on_gpu and kv_on_cpu do without"
            raise ConfigError(group, "triton", remedy) from error
        raise ConfigError(f"{group}._target_", node._target_, f"cannot be imported ({error})") from error
    hints = typing.get_type_hints(target.__init__)
    known = inspect.signature(target).parameters
    fields = []
    options = {str(name): node[name] for name in node if name != "_target_"}
    for name in options:
        if name in GIVEN:
            raise ConfigError(
                f"{group}.{name}", options[name], "follows from the rest of the configuration; leave it out"
            )
        if name not in known:
            raise ConfigError(f"{group}.{name}", options[name], f"{target.__name__} has no such option")
        fields.append((name, hints[name]))
    try:
        OmegaConf.merge(OmegaConf.structured(dataclasses.make_dataclass(target.__name__, fields)), options)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{group}.{error.key}", options[str(error.key)], str(error).partition("\n")[0]) from error
