"""Files of limits: one for each thing that was measured, named by all that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engram_exp.machine.files import write_text

log = logging.getLogger(__name__)


def file_of(folder: Path, kind: str, identity: Mapping[str, Any]) -> Path:
    """Where limits are kept.

    Args:
        folder: of the files.
        kind: the name begins with it.
        identity: all that they depend on.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{kind}-{digest}.json"


def read(path: Path, what: str, check: Callable[[Mapping[str, Any]], object] = dict) -> dict[str, Any] | None:
    """What a file says; None where it is not there, or with a warning where it is damaged.

    Args:
        path: of the file.
        what: its limits are of.
        check: raises if what stands there besides the curves is not as it should be.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["peaks"], dict):
            raise TypeError(f"peaks is {content['peaks']!r}")
        require_rates("peaks", content["peaks"])
        check(content)
        return dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%r): what %s can do is measured anew", path, error, what)
        return None


def write(path: Path, what: str, content: Mapping[str, Any]) -> None:
    """Keep limits; a folder that cannot be written costs a warning.

    Args:
        path: of the file.
        what: its limits are of.
        content: with the curves as `peaks`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1))
    except OSError as error:
        text = "what %s can do is not kept for the next run, which measures it again: %s (limits_dir=%s)"
        log.warning(text, what, error, path.parent)


def require_rates(name: str, value: object) -> None:
    """Refuse curves of which something is no rate or time.

    Raises:
        ValueError: naming it.
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            require_rates(f"{name}, {key}", inner)
    elif not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}")
