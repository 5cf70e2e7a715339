"""What an option's YAML file says, read as it stands: Hydra composes whole configurations, which takes a third of a
second."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engram_exp.machine.environment import PROJECT

CONF = PROJECT / "conf"
OVERRIDE = "override /"
GLOBAL = re.compile(r"^#\s*@package\s+_global_", flags=re.MULTILINE)

Folders = tuple[Path, ...]


@cache
def given_by(folders: Folders, group: str, option: str | None) -> dict[str, Any]:
    """What an option of a group says, and those of the same group that it builds on; nothing if it is not found."""
    file = next((path for folder in folders if (path := folder / group / f"{option}.yaml").is_file()), None)
    if file is None:
        return {}
    node = {**load(file)}
    found: dict[str, Any] = {}
    for entry in node.pop("defaults", []):
        if isinstance(entry, str) and entry not in ("_self_", option):
            found |= given_by(folders, group, entry)
    return found | (node.get(group, {}) if GLOBAL.search(file.read_text(encoding="utf-8")) else node)


def chosen_by(file: Path) -> dict[str, str]:
    """Option by group, of a file's defaults."""
    entries = (entry for entry in load(file).get("defaults", []) if isinstance(entry, dict))
    return {str(group).removeprefix(OVERRIDE): str(option) for entry in entries for group, option in entry.items()}


@cache
def load(file: Path) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(file))
    return dict(plain)
