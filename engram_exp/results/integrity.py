"""Whether a file is what its run wrote: by its digest, and by numbers that must agree with each other."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path

from engram_exp.vocabulary import OWN

DIGESTS = "sha256"  # of the files of a run, in its record
ROUNDING = 1e-6  # numbers are written with nine digits
ASCENDING = (
    ("wall_ms_min", "wall_ms_lo", "wall_ms_median", "wall_ms_hi", "wall_ms_max"),
    ("wall_ms_median", "wall_ms_p95", "wall_ms_p99", "wall_ms_max"),
)
PER_SECOND = {"gb_per_s": ("bytes_moved", 1e9), "tflop_per_s": ("flops", 1e12)}
TRUTHS = ("True", "False")


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def check_digest(content: bytes, name: str, environment: Path) -> bool:
    """Check the content of a file against the record beside it.

    Returns:
        Whether there is a readable record. Without one, everything passes; so does what one from before there were
        digests does not name.

    Raises:
        ValueError: the record says otherwise.
    """
    digests = digests_in(environment)
    if digests is None:
        return False
    if name in digests and digests[name] != digest(content):
        raise ValueError(f"it is not what its run wrote, says {environment.name}: was it edited or cut?")
    return True


def digests_in(environment: Path) -> dict[str, str] | None:
    """The digests that a run's record holds, by the name of the file; None without a readable record."""
    try:
        return dict(dict(json.loads(environment.read_bytes())).get(DIGESTS, {}))
    except (OSError, ValueError, TypeError):
        return None


def check_row(row: Mapping[str, str], numbers: Collection[str], truths: Collection[str]) -> None:
    """Check the cells of one row; empty ones agree with everything.

    Args:
        row: column -> text.
        numbers, truths: columns that hold a number, or True or False.

    Raises:
        ValueError: naming the column and what is wrong with its value.
    """
    for name in truths:
        if row[name] and row[name] not in TRUTHS:
            raise ValueError(f"{name} is {row[name]!r}, not True or False")
    known = {name: _number(name, row[name]) for name in numbers if row[name]}
    for name in known:
        if name.startswith("wall_ms") and known[name] <= 0:
            raise ValueError(f"{name} is {row[name]}, not a time: was it edited?")
    for columns in ASCENDING:
        for low, high in pairwise([name for name in columns if name in known]):
            if known[low] > known[high] * (1 + ROUNDING):
                raise ValueError(f"{low}={row[low]} is above {high}={row[high]}: was it edited?")
    if "wall_ms_median" in known:
        _check_rates(row, known)


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {text!r}, not a number")
    return number


def _check_rates(row: Mapping[str, str], known: Mapping[str, float]) -> None:
    seconds = known["wall_ms_median"] / 1e3
    expected = {rate: known[amount] / unit / seconds for rate, (amount, unit) in PER_SECOND.items() if amount in known}
    if "limit_ms" in known:
        expected["efficiency"] = known["limit_ms"] / known["wall_ms_median"]
    if {"batch_size", "seq_len"} <= known.keys():
        asking = known["ranks"] if row.get("rank_batches") == OWN and "ranks" in known else 1
        expected["tokens_per_s"] = asking * known["batch_size"] * known["seq_len"] / seconds
    for name, value in expected.items():
        if name in known and not math.isclose(known[name], value, rel_tol=ROUNDING):
            reason = f"does not follow from wall_ms_median={row['wall_ms_median']} and its row, which give {value:.9g}"
            raise ValueError(f"{name}={row[name]} {reason}: was it edited?")
