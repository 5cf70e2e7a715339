"""What reads through the link take on this machine, as `rates/link_rows.py` has measured it: what `auto` goes by."""

from __future__ import annotations

from collections.abc import Mapping

from engram_exp.measure.curve import nearest_to, time_at
from engram_exp.measure.rates import Peaks
from engram_exp.steps.lookup.order import Launch

READS, PARTITIONS = "link_reads_us", "partition_us"  # names of curves
ALL = "all"  # programs: one for each block of rows


def as_key(launch: Launch) -> str:
    """A launch as a file of limits names it."""
    return f"{launch.rows_per_program}x{launch.programs or ALL}"


def as_launch(key: str) -> Launch:
    """The launch that `as_key` named."""
    rows_per_program, _, programs = key.partition("x")
    return Launch(int(rows_per_program), None if programs == ALL else int(programs))


class MeasuredReadTimes:
    """Times in microseconds, of the measured spread that is nearest to the table and the row size nearest to its rows.

    Args:
        peaks: with both curves.
    """

    def __init__(self, peaks: Peaks) -> None:
        self.reads, self.partitions = peaks[READS], peaks[PARTITIONS]

    @classmethod
    def of(cls, peaks: Peaks) -> MeasuredReadTimes | None:
        """Of a machine; None where they were not measured."""
        return cls(peaks) if READS in peaks and PARTITIONS in peaks else None

    def of_reads(self, order: str, rows: int, row_bytes: int, table_bytes: int) -> Mapping[Launch, float]:
        """By each launch that was measured, of so many rows of a table, whose ids come as_asked or sorted."""
        by_launch = nearest_to(nearest_to(self.reads, table_bytes), row_bytes)[order]
        return {as_launch(key): time_at(curve, rows) for key, curve in by_launch.items()}

    def of_partition(self, rows: int, table_bytes: int) -> float:
        """To partition so many row ids of a table."""
        return time_at(nearest_to(self.partitions, table_bytes), rows)
