"""What a machine can do at best, one file per resource, each found here because it is here.

A file holds three functions:

    measure(rig)                 curves by name, as JSON can hold them: what this machine does at best. What it lacks is
                                 left out.
    bounds(work, load, peaks)    the shortest times of the amounts of its resources in `work`; none for what was not
                                 measured, or is not asked for.
    in_words(peaks, dtype)       the rates that decide most limits, for a human reader.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from engram_exp.measure.rig import Rig

Peaks = Mapping[str, Mapping[str, Any]]
Work = Mapping[str, float]  # amounts by resource


class Limit(NamedTuple):
    """The shortest time that a resource allows.

    ms: the time.
    by: the rate that decides: link, link rows, host or device memory, host or disk rows, host or device GEMM.
    """

    ms: float
    by: str


class Load(Protocol):
    """What rates depend on besides amounts.

    dtype: of matrix products, such as bfloat16.
    row_bytes: of a row as it is stored.
    spread_bytes: of the memory that the rows of all rotating batches are spread over: the table at most.
    table_bytes: of the whole table: what rows that are asked for at random lie in, few as they may be.
    row_ids: that a call looks up.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def spread_bytes(self) -> int: ...
    @property
    def table_bytes(self) -> int: ...
    @property
    def row_ids(self) -> int: ...


class Resource(Protocol):
    """A file of this folder."""

    def measure(self, rig: Rig) -> dict[str, dict[str, Any]]: ...
    def bounds(self, work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]: ...
    def in_words(self, peaks: Peaks, dtype: str) -> Iterator[str]: ...


@cache
def resources() -> tuple[Resource, ...]:
    """The resources of this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}") for name in names)
