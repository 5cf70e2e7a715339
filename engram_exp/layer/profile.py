"""Profiles in files: how often rows of a layer's table were asked for."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engram_exp.errors import ConfigError

if TYPE_CHECKING:
    from engram_exp.layer.hash_plan import HashPlan

KEY = "lookup.profile_path"
LAYER = "{layer}"  # in a path: the layer's number


def profile_file(path: str, layer: int) -> Path:
    """The file of a layer's profile: `{layer}` in its path stands for the layer's number."""
    return Path(path.replace(LAYER, str(layer))).expanduser()


def write_profile(file: Path, plan: HashPlan, row_ids: np.ndarray) -> None:
    """Write down how often each row was asked for.

    Args:
        file: a `.npz`; written over.
        plan: of the hash that the row ids come from.
        row_ids: as often as they were asked for.

    Raises:
        OSError: it cannot be written.
    """
    distinct, counts = np.unique(row_ids, return_counts=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as opened:
            np.savez_compressed(opened, row_ids=distinct, counts=counts, hash=_digest(plan))
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_profile(file: Path, plan: HashPlan) -> np.ndarray:
    """Row ids as often as they were asked for, in ascending order.

    Args:
        file: that `write_profile` wrote.
        plan: of the layer's hash.

    Raises:
        ConfigError: it cannot be read, or is of another hash.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            row_ids, counts, of_hash = stored["row_ids"], stored["counts"], str(stored["hash"])
    except Exception as error:  # a file of somebody else may make the archive raise anything
        remedy = f"is no profile ({type(error).__name__}); `python -m engram_exp reuse TOKENS --profile FILE` makes one"
        raise ConfigError(KEY, str(file), remedy) from error
    if of_hash != _digest(plan):
        remedy = f"is a profile of another model or layer; make one of this, and name layers by {LAYER} in its path"
        raise ConfigError(KEY, str(file), remedy)
    return np.repeat(row_ids, counts)


def _digest(plan: HashPlan) -> str:
    """Of all that makes row ids of token ids."""
    parts = plan.compressed_ids, plan.multipliers, plan.moduli, plan.offsets, plan.first_column
    digest = hashlib.sha256(f"{plan.pad} {plan.end}".encode())
    for part in parts:
        digest.update(b"none" if part is None else part.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]
