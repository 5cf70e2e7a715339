"""What of a configuration the options chosen in its groups do not say: the values that the command line, a sweep or a
preset set.

A choice is held against its own YAML file and what that builds on, which takes milliseconds; to let Hydra compose it
once more would take a third of a second of every start. Whatever such a file is found to say, two configurations of the
same choices that differ in a value are told apart, since both are held against the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, OmegaConf

from engram_exp.config.given import CONF, given_by, load
from engram_exp.config.schema import RunConfig
from engram_exp.results.schema import CHOICE, KEYS, LABEL, TABLE

SEARCHED = "hydra.searchpath"
# Of the others (hardware) no grouping knows the choice: what it sets is told, too.
KNOWN_GROUPS = {column.name for column in TABLE if column.kind == CHOICE and column.role != LABEL}
UNTOLD = (
    # How long it is timed, and what: no other measurement, and the rows tell (iterations, stop_reason, case).
    "iterations", "budget_s", "cases",
    # What stands beside the measurement.
    "limits", "save_tensors", "hardware.data_sheet",
    # What the column `strategy` tells.
    "strategies",
    # What would be refused.
    "engine",
)  # fmt: skip
COLUMN_OF = {key: name for name, key in KEYS.items()}
PLAIN = re.compile(
    r"(?!(true|false|null|NaN|Infinity)$)[A-Za-z_/.][\w./:@%+-]*"
)  # texts that JSON reads as nothing else


def overridden(plain: Mapping[str, Any], choices: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, Any]:
    """The values that the chosen options do not give by themselves.

    Args:
        plain: the resolved configuration.
        choices: the option chosen in each group; where it is unknown, every value of the group counts as set.
        overrides: as they were typed: among them where else, beside `conf/`, options are found.

    Returns:
        Key (`model.hc_mult`) -> value, and `~key` -> None for what an option gives and the configuration has not.
    """
    folders = (CONF, *_searched(overrides))
    given = {**load(CONF / "config.yaml")}
    defaults = {
        group: option for entry in given["defaults"] if isinstance(entry, dict) for group, option in entry.items()
    }
    for group in (name for name, value in plain.items() if isinstance(value, dict)):
        option = (choices if group in KNOWN_GROUPS else defaults).get(group)
        given[group] = {**_typed(group), **given.get(group, {}), **given_by(folders, group, option)}
    has, had = dict(_leaves(plain)), dict(_leaves({name: given[name] for name in plain if name in given}))
    found = {key: value for key, value in has.items() if key not in had or had[key] != value}
    gone = {f"~{key}": None for key, value in had.items() if key not in has and value != MISSING}
    return {key: value for key, value in {**found, **gone}.items() if not _says_nothing(key.lstrip("~"))}


def as_text(found: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """These values as `key=value key=value`, sorted by key, without those that a column tells.

    Args:
        found: as `overridden` returns them.
        columns: of the row, as far as they are known.
    """
    return " ".join(
        key if key.startswith("~") else f"{key}={_spelled(value)}"
        for key, value in sorted(found.items())
        if not _is_told(key, value, columns)
    )


def _is_told(key: str, value: Any, columns: Mapping[str, Any]) -> bool:
    """Whether a column tells a value, or what became of it (the order of reads that `auto` came to); one that stays
    empty although there is a value does not."""
    return key in COLUMN_OF and (value is None or columns.get(COLUMN_OF[key], value) not in (None, ""))


def _says_nothing(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in UNTOLD)


def _spelled(value: Any) -> str:
    """On one line and without a space, so that no two values, nor lists of them, look alike."""
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return json.dumps(value, separators=(",", ":")).replace(" ", "\\u0020")


def _leaves(node: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _searched(overrides: Sequence[str]) -> Iterator[Path]:
    """Folders of options that were named on the command line."""
    texts = [text for text in overrides if text.startswith(f"{SEARCHED}=")]
    entries: Any = OmegaConf.select(OmegaConf.from_dotlist(texts), SEARCHED) or []
    for entry in entries:
        yield Path(entry.removeprefix("file://"))


@cache
def _typed(group: str) -> dict[str, Any]:
    """The defaults of a group's schema."""
    kind: Any = get_type_hints(RunConfig).get(group)
    plain: Any = OmegaConf.to_container(OmegaConf.structured(kind)) if is_dataclass(kind) else {}
    return dict(plain)
