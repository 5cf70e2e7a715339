"""In which order, and in how many programs, a kernel reads rows. Nothing here imports PyTorch.

Random rows that come through the link are bound by address translation: the order of the reads decides what they cost,
and how many may be in flight before they get into each other's way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from engram_exp.errors import ConfigError
from engram_exp.vocabulary import AS_ASKED, AUTO, HALF_BESIDE, HOST, MULTIPROCESSORS, PARTITIONED, ROW_ORDERS, SORTED

BUCKET_BYTES = 2**22  # of the table, at least: rows that lie so near to each other read as fast as sorted ones
MOST_BUCKETS = 2**13  # that one program adds up
SORT_FROM_ROWS = 16384  # as measured on an H200, for a sort
# Of a table's rows, and row ids: so many are sorted, since many are of one row or of neighbours, which a partition
# leaves apart. Random ids of a table of 1.3 GB, 528 programs of 16 rows, sorted and partitioned, one run each: 262,144
# ids, 1/40 of its rows, take 0.74 and 0.77 ms, 16 times as many 9.2 and 11.8 (outputs/reference/h100_engines/order).
# Of fewer ids, what a sort takes may be more than it saves.
DENSE_SHARE, DENSE_ROWS = 1 / 40, 262_144
CLEARLY_SLOWER = 1.03  # than the best: what is nearer to it may be it when the machine is measured again


class Launch(NamedTuple):
    """Of a kernel that reads rows.

    rows_per_program: that a program has in flight at a time.
    programs: at most; None: one for each block of so many rows.
    """

    rows_per_program: int
    programs: int | None


class Reading(NamedTuple):
    """How a kernel reads rows.

    order: as_asked, sorted or partitioned.
    rows_per_program, programs: of its `Launch`.
    """

    order: str
    rows_per_program: int
    programs: int | None


class ReadTimes(Protocol):
    """What reads through the link take on a machine, in any one unit of time."""

    def of_reads(self, order: str, rows: int, row_bytes: int, table_bytes: int) -> Mapping[Launch, float]:
        """By some launches, of so many rows of a table.

        Args:
            order: as_asked or sorted: of the row ids, as they come.
            rows: row ids.
            row_bytes: of a stored row.
            table_bytes: of the table.
        """

    def of_partition(self, rows: int, table_bytes: int) -> float:
        """To partition so many row ids of a table."""


class Rule(NamedTuple):
    """What is best up to a size of the table in bytes and up to a number of row ids."""

    table_bytes: float
    rows: float
    rows_per_program: int
    programs: int | None


# Measured on one H200 (PCIe 5 x16, a virtual machine), rows of 264 bytes widened in the same kernel, ids drawn anew,
# the partition included; medians of 5 to 9 rounds, whose samples are not kept. The first line: rows of 128 bytes,
# sorted, outputs/reference/h200_tuning/launch.
ORDERED = (  # rows that lie near each other follow each other
    Rule(2e9, math.inf, 16, 528),
    Rule(32e9, 2**16, 1, 132),  # 17.7 GB, 24,576 ids: 402 us; 32 rows in 16 programs 416
    Rule(32e9, math.inf, 1, None),  # 17.7 GB, 196,608 ids: 3,412 us; 32 rows in 32 programs 3,783
    Rule(math.inf, 2**16, 32, 16),  # 64 GB, 24,576 ids: 628 us
    Rule(math.inf, math.inf, 1, None),  # 64 GB, 196,608 ids: 4,541 us; 32 rows in 16 programs 4,738
)
UNORDERED = (
    Rule(math.inf, 2**8, 1, None),  # 24 ids: 4.2 us; 16 rows in 528 programs 5.9
    Rule(math.inf, math.inf, 16, 528),  # 1,536 ids: 43 us packed, 58 split, the best launches 41 and 58
)
ON_THE_DEVICE = Rule(math.inf, math.inf, 32, None)
# A program holds a multiprocessor, and a decoder's products wait for it. 64 sequences beside dense_8b on an H100, two
# layers of 32 GB: the step takes 110 us longer; with 1 row in a program for each, which alone reads faster, 160
# (samples not kept). And reads in flight hold up copies through the same link: half of 196,608 rows of a table of 30
# GB, while the CPU copies the others, 2.7 ms; a program for each 32 rows, 3.6 (outputs/reference/h100_layer/both).
BESIDE_OTHERS = Rule(math.inf, math.inf, 32, 16)


def launches(multiprocessors: int) -> tuple[Launch, ...]:
    """Those that are measured on a machine, each of which was the best somewhere on an H200.

    Args:
        multiprocessors: of the device.
    """
    return (
        Launch(1, None),
        Launch(1, multiprocessors),
        Launch(16, 4 * multiprocessors),
        Launch(32, 16),
        Launch(32, 32),
    )


def reading(
    order: str,
    rows_per_program: int | str,
    programs: int | str | None,
    *,
    sort_from_rows: int | str,
    rows: int,
    row_bytes: int,
    table: str,
    table_bytes: int,
    multiprocessors: int = 1,
    beside: bool = False,
    times: ReadTimes | None = None,
) -> Reading:
    """What `auto` comes to; what is not `auto` stays as it is.

    Rows in device memory gain nothing from an order. Those that come through the link are read as rules say that were
    measured on another machine, unless another order or launch is clearly faster on this one, of those that agree with
    what is typed. Where no such launch was measured here, the rules remain. Beside others a launch costs what it
    takes of the device: its time by the share of the multiprocessors that it holds.

    Args:
        order, rows_per_program, programs: as configured; `programs` may be `multiprocessors` or `half_beside`.
        sort_from_rows: row ids from which on they are partitioned, or sorted where they are dense, if `order` is auto;
            auto: where that pays.
        rows: row ids.
        row_bytes: of a stored row.
        table: host or device.
        table_bytes: of the table.
        multiprocessors: of the device.
        beside: others use the device or the link meanwhile: a decoder, the chunk before in a pipeline, the CPU's
            copies.
        times: of this machine, if they are known.
    """
    if programs in (MULTIPROCESSORS, HALF_BESIDE):
        programs = max(1, multiprocessors // (2 if beside and programs == HALF_BESIDE else 1))
    is_dense = rows >= DENSE_ROWS and rows * row_bytes >= DENSE_SHARE * table_bytes
    usual_order, near = order, SORTED if is_dense else PARTITIONED
    if order == AUTO:
        is_few = rows < (SORT_FROM_ROWS if sort_from_rows == AUTO else int(sort_from_rows))
        usual_order = AS_ASKED if table != HOST or is_few else near
    rule = _rule_of(usual_order, rows, table, table_bytes, beside=beside)
    usual = Reading(
        usual_order,
        rule.rows_per_program if isinstance(rows_per_program, str) else rows_per_program,
        rule.programs if isinstance(programs, str) else programs,
    )
    if table != HOST or times is None:
        return usual
    orders = (AS_ASKED, near) if order == sort_from_rows == AUTO else (usual_order,)
    costs = {
        each: ordering + time * (_share_held(each, rows, multiprocessors) if beside else 1)
        for each, ordering, time in _measured(orders, rows, row_bytes, table_bytes, times)
        if rows_per_program in (AUTO, each.rows_per_program) and programs in (AUTO, each.programs)
    }
    best = min(costs, key=costs.__getitem__, default=usual)
    return best if costs and costs.get(usual, math.inf) > CLEARLY_SLOWER * costs[best] else usual


def _rule_of(order: str, rows: int, table: str, table_bytes: int, *, beside: bool) -> Rule:
    """The rule for so many rows of a table."""
    if table != HOST:
        return ON_THE_DEVICE
    if beside:
        return BESIDE_OTHERS
    rules = UNORDERED if order == AS_ASKED else ORDERED
    return next(rule for rule in rules if table_bytes <= rule.table_bytes and rows <= rule.rows)


def _share_held(how: Reading, rows: int, multiprocessors: int) -> float:
    """The share of the multiprocessors on which a program runs."""
    blocks = math.ceil(rows / how.rows_per_program)
    return min(1.0, (how.programs or blocks) / multiprocessors, blocks / multiprocessors)


def _measured(
    orders: Sequence[str], rows: int, row_bytes: int, table_bytes: int, times: ReadTimes
) -> Iterator[tuple[Reading, float, float]]:
    """What it takes to put row ids into each of these orders, and to read so by each launch. What a sort takes is not
    measured; where `auto` may choose it, reads as asked take several times as long as sorted ones."""
    for order in orders:
        ordering = times.of_partition(rows, table_bytes) if order == PARTITIONED else 0.0
        reads = times.of_reads(AS_ASKED if order == AS_ASKED else SORTED, rows, row_bytes, table_bytes)
        for launch, time in reads.items():
            yield Reading(order, *launch), ordering, time


def check_order(order: str) -> None:
    """Refuse an order that is none.

    Raises:
        ConfigError: naming those that there are.
    """
    if order not in ROW_ORDERS:
        raise ConfigError("lookup.order", order, f"must be one of {', '.join(ROW_ORDERS)}")


def check_launch(rows_per_program: int | str, warps: int, programs: int | str | None, stages: int = 1) -> None:
    """Refuse what Triton cannot launch.

    Raises:
        ConfigError: a number out of range.
    """
    for name, number in (("rows_per_program", rows_per_program), ("warps", warps)):
        if number != AUTO and not (isinstance(number, int) and number >= 1 and number & (number - 1) == 0):
            raise ConfigError(f"lookup.{name}", number, "must be a power of two")
    if stages < 1:
        raise ConfigError("lookup.stages", stages, "must be at least 1: every block of rows is waited for in turn")
    if isinstance(programs, int) and programs < 1:
        remedy = f"must be at least 1, {MULTIPROCESSORS}, {HALF_BESIDE}, {AUTO}, or null for one per block of rows"
        raise ConfigError("lookup.programs", programs, remedy)


def bucket_shift(rows: int, row_bytes: int) -> int:
    """By how many bits a row id is shifted to give its bucket: the fewest that leave buckets of `BUCKET_BYTES` and no
    more than `MOST_BUCKETS` of them.

    Args:
        rows: of the table.
        row_bytes: of a stored row.
    """
    by_bytes = max(0, math.ceil(math.log2(BUCKET_BYTES / row_bytes)))
    by_number = max(0, (rows - 1).bit_length() - (MOST_BUCKETS - 1).bit_length())
    return max(by_bytes, by_number)
