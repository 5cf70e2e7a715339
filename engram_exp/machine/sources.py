"""The source files of what others contribute: found, but not imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGE = __name__.partition(".")[0]


def contributed_sources(targets: Iterable[str]) -> list[Path]:
    """The source files of the modules that hold classes of other packages, in order of their names.

    Args:
        targets: dotted paths of classes or functions, as Hydra's `_target_`; what does not exist has no source.
    """
    found = {_source_of(target) for target in targets if target.partition(".")[0] != PACKAGE}
    return sorted(file for file in found if file is not None)


def _source_of(target: str) -> Path | None:
    """The innermost module of a dotted path: importing a package to ask it where its modules are might take seconds."""
    source, name, folders = None, "", None
    for part in target.split("."):
        name = f"{name}.{part}" if name else part
        spec = _spec_of(name, folders)
        if spec is None:
            break
        source, folders = spec.origin, spec.submodule_search_locations
        if folders is None:
            break
    return Path(source) if source and Path(source).is_file() else None


def _spec_of(name: str, folders: Iterable[str] | None) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, list(folders)) if folders else importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a name that is none, or a module without a file
        return None
