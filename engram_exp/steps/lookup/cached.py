"""Rows of a table in host memory, of which a cache in device memory keeps some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any, Literal

import numpy as np
import torch
import triton

from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.order import check_launch
from engram_exp.steps.lookup.row_cache_triton import EMPTY, NEXT_BYTES, RowCache
from engram_exp.steps.lookup.step import Lookup, require_readable
from engram_exp.steps.lookup.words import Part, Words
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import COLD, DEVICE, STATIC, WARM

MOST_WAYS = 64  # that a program holds in registers
ROWS_AT_A_TIME = 2**18  # that are pinned, or read back


class CachedLookup(Lookup):
    """Copies rows from a cache in device memory or, where they are not in it, from host memory through the link.

    Args:
        table: in host memory that the GPU can read.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        profile: returns row ids that other batches than those of the run ask for, of so many tokens at least, or those
            of a file.
        gb: of device memory for rows and for what finds them, in 10^9 bytes.
        ways: rows of a set: each row has its place in one set, as `RowCache` says.
        policy: lru: what misses takes the place of the row of its set that was asked for longest ago; lfu: of the one
            that was asked for least often, as `RowCache` counts; static: the rows of each set that a profile asks for
            most often are pinned.
        state: warm: all batches have been called once before any is timed; steady: the first half of them have, and the
            others are timed; cold: each call that is timed finds the cache empty. Nothing here acts on it.
        profile_tokens: of the profile, at least.
        profile_path: of a file that has the profile instead.
        rows_per_program, warps, programs: of the kernel that reads, as `TritonLookup` has them.

    Raises:
        ConfigError: a number that cannot be, or a profile of no batch at all.
        SkippedError: the table lies in memory that the GPU cannot read.
    """

    counts_rows = True
    keeps_rows = True

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        profile: Callable[[int, str | None], np.ndarray],
        gb: float,
        ways: int,
        policy: Literal["lru", "lfu", "static"],
        state: Literal["warm", "steady", "cold"],
        profile_tokens: int,
        rows_per_program: int,
        warps: int,
        programs: int | None,
        profile_path: str | None = None,
    ) -> None:
        placement.require_triton("lookup")
        check_launch(rows_per_program, warps, programs)
        if not self.asks_host:
            require_readable(table, placement)
        row_format, self.words = table.row_format, Words(table.row_format)
        self.parts = self.words.parts_of(table)
        self.rows = placement.empty(max_tokens * columns, row_format.width, dtype=row_format.storage_dtype)
        row_id_dtype = torch.int32 if len(table.parts[0]) <= 2**31 else torch.int64
        row_bytes = row_format.width * row_format.storage_dtype.itemsize
        sets, _ = size_of({"gb": gb, "ways": ways, "policy": policy}, row_bytes, row_id_dtype.itemsize)
        self.launch, self.state = (rows_per_program, warps, programs), state
        self.cache = RowCache(
            sets, ways, self.words.per_row, self.words.dtype, row_id_dtype, len(self.rows), placement.device, policy,
        )  # fmt: skip
        if policy == STATIC:
            self._pin(hottest(profile(profile_tokens, profile_path), sets, ways))

    @classmethod
    def refuse(cls, load: Load, free_bytes: int) -> None:
        """Refuse a cache that cannot be.

        Args:
            load: of the run.
            free_bytes: of device memory.

        Raises:
            ConfigError: it is larger than free memory, or smaller than a set; the ways are no power of two; pinned rows
                are to be cold.
        """
        options = load.options
        if options["profile_tokens"] < 1:
            raise ConfigError("lookup.profile_tokens", options["profile_tokens"], "must be at least 1")
        if options["policy"] == STATIC and options["state"] != WARM:
            remedy = "pinned rows are there from the start, and stay; use lookup.policy=lru"
            raise ConfigError("lookup.state", options["state"], remedy)
        if _cache_bytes(load) > free_bytes:
            remedy = f"must be below {free_bytes / 1e9:.3g}: no more device memory is free"
            raise ConfigError("lookup.gb", options["gb"], remedy)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Cold, what any lookup through the link must do; warm, no more than if all rows lay in device memory: which of
        them hit, nobody knows beforehand."""
        if load.options.get("state") == COLD:
            return super().work(load)
        return super().work(replace(load, table=DEVICE))

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """What it makes, the cache, and a link of a chain for each row id."""
        chains = 0 if load.options["policy"] == STATIC else NEXT_BYTES * load.row_ids
        return {load.stage.side: load.bytes_of(load.stage.makes) + _cache_bytes(load) + chains}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call. Calls
        follow each other on one stream, or wait for each other."""
        return self.look_up(row_ids, self.parts)

    def look_up(self, row_ids: torch.Tensor, parts: list[Part], numbers: torch.Tensor | None = None) -> torch.Tensor:
        """The same, where those that miss come from these parts, as `RowCache` has them."""
        count = row_ids.numel()
        rows_per_program, warps, programs = self.launch
        blocks = triton.cdiv(count, rows_per_program)
        grid = (min(blocks, programs or blocks),)
        out = self.rows[:count]
        self.cache(parts, row_ids.view(-1), out.view(self.words.dtype), rows_per_program, grid, warps, numbers)
        return out.view(row_ids.shape[0] * row_ids.shape[1], -1)

    @property
    def counts(self) -> torch.Tensor:
        """Row ids that hit so far, and all that were asked for: int64 [2] where the cache is."""
        return self.cache.counts

    def reset(self) -> None:
        """Make it cold."""
        self.cache.empty()

    def kept(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What it keeps, some at a time: row ids [N], and what it would return for each, [N, width], on the CPU."""
        lines = self.cache.lines.view(self.rows.dtype)
        for tags, rows in zip(self.cache.tags.view(-1).split(ROWS_AT_A_TIME), lines.split(ROWS_AT_A_TIME), strict=True):
            row_ids = tags.cpu()
            yield row_ids[row_ids != EMPTY], rows.cpu()[row_ids != EMPTY]

    def _pin(self, row_ids: np.ndarray) -> None:
        first = 0
        for some in torch.from_numpy(row_ids).split(ROWS_AT_A_TIME):
            rows = [part.array.index_select(0, some.clamp(min=0).to(part.array.device)) for part in self.parts]
            self.cache.pin(some, torch.cat(rows, dim=1), first)
            first += len(some)


def size_of(options: Mapping[str, Any], row_bytes: int, row_id_bytes: int) -> tuple[int, int]:
    """The sets of a cache, and its bytes.

    Args:
        options: gb, ways and policy among them.
        row_bytes, row_id_bytes: of a row and of its id.

    Raises:
        ConfigError: there is no set, or the ways are no power of two that there can be.
    """
    gb, ways = options["gb"], options["ways"]
    if not 1 <= ways <= MOST_WAYS or ways & (ways - 1):
        raise ConfigError("lookup.ways", ways, f"must be a power of two, and at most {MOST_WAYS}")
    set_bytes = RowCache.set_bytes(ways, row_bytes, row_id_bytes, options["policy"])
    sets = int(gb * 1e9 // set_bytes) if 0 < gb < inf else 0
    if sets < 1:
        raise ConfigError("lookup.gb", gb, f"must hold a set of {ways} rows, which takes {set_bytes / 1e9:.3g}")
    return sets, sets * set_bytes


def _cache_bytes(load: Load) -> int:
    _, cache_bytes = size_of(load.options, load.row_bytes, load.geometry.row_id_bytes)
    return cache_bytes


def hottest(row_ids: np.ndarray, sets: int, ways: int) -> np.ndarray:
    """The rows that are pinned: of each set those that come most often, of equals the smaller; row ids int64
    [sets * ways], -1 where there are none."""
    distinct, counts = np.unique(row_ids.astype(np.int64), return_counts=True)
    of_set = distinct % sets
    order = np.lexsort((distinct, -counts, of_set))
    distinct, of_set = distinct[order], of_set[order]
    way = np.arange(len(distinct)) - np.searchsorted(of_set, of_set)
    found = np.full((sets, ways), EMPTY, dtype=np.int64)
    found[of_set[way < ways], way[way < ways]] = distinct[way < ways]
    return found.reshape(-1)
