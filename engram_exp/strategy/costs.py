"""What stages come to between them: bytes, operations, and the least that must be done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from engram_exp.stage import Task


def bytes_moved(tasks: Sequence[Task]) -> int:
    """The fewest bytes that these stages read and write."""
    return sum(kind.bytes_moved(load) for kind, load in tasks)


def flops(tasks: Sequence[Task]) -> int:
    """Floating-point operations of these stages."""
    return sum(kind.flops(load) for kind, load in tasks)


def work(tasks: Sequence[Task]) -> dict[str, float]:
    """The least that these stages must do, by resource."""
    total: dict[str, float] = defaultdict(float)
    for kind, load in tasks:
        for resource, amount in kind.work(load).items():
            total[resource] += amount
    return dict(total)
