"""What two runs share if there is no need for the second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.errors import ConfigError
from engram_exp.layer.tokenizer import tokenizer_file
from engram_exp.machine.environment import code_digest, gpus, machine
from engram_exp.machine.files import content_digest
from engram_exp.machine.sources import contributed_sources
from engram_exp.results.schema import CHOICE, of_kind

SAYS_NOTHING = (  # of what a run measures
    "output_dir", "cache_dir", "limits_dir", "campaign", "repeats", "resume", "retry", "worker", "timeout_s",
    "report", "rank_timeout_s", "rendezvous",
)  # fmt: skip
GROUP_COLUMNS = of_kind(CHOICE)


def measured(config: DictConfig) -> dict[str, Any]:
    """All that says something of what a run measures."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in plain.items() if key not in SAYS_NOTHING}


def fingerprint(config: DictConfig, choices: Mapping[str, str | None], repeat: int) -> str:
    """What two runs share if there is no need for the second, in four parts: settings, contents of the files that they
    name (components of others, too), code and machine."""
    told = measured(config)
    chosen = {group: choices.get(group) for group in GROUP_COLUMNS}
    files = [*_named_files(config), *contributed_sources(_targets(told))]
    alike = {**machine(), "host": None, "gpus": [gpu["name"] for gpu in gpus()]}  # nodes of a cluster may be
    parts = [told, chosen, repeat], [content_digest(file) for file in files], code_digest(), alike
    return "-".join(map(_short_digest, parts))


def _named_files(config: DictConfig) -> list[Path]:
    """The files, or folders of them, that a run's tokens, and rows of its own, come from."""
    names = [config.tokens.get("path"), config.model.tokenizer, config.table.get("checkpoint")]
    profile = config.lookup.get("profile_path")
    names += [profile.replace("{layer}", str(config.layer))] if profile else []
    if names[1]:
        with suppress(ConfigError):  # the run will say so
            names[1] = tokenizer_file(names[1]) or names[1]
    return [Path(name).expanduser() for name in names if name]


def _targets(plain: Any) -> Iterator[str]:
    """The classes of all components, as the configuration names them."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _targets(value)
        elif key == "_target_":
            yield str(value)


def _short_digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
