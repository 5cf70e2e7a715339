"""How many rows each hash column has: primes, none of which two columns share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

PrimeSource = Callable[[int, tuple[int, ...], int], Sequence[Sequence[int]]]


@cache  # seconds for the largest models
def search_primes(layers: int, vocab_per_order: tuple[int, ...], heads: int) -> tuple[tuple[int, ...], ...]:
    """Rows of every hash column, [layers][H]: for each layer and order in turn, the next `heads` primes from the
    order's vocab on that no column before has taken."""
    from sympy import nextprime  # slow to import, and seldom needed: `kept_primes` has what it found on disk

    taken: set[int] = set()
    primes = []
    for _ in range(layers):
        columns = []
        for vocab in vocab_per_order:
            prime = vocab - 1
            for _ in range(heads):
                prime = nextprime(prime)
                while prime in taken:
                    prime = nextprime(prime)
                taken.add(prime)
                columns.append(int(prime))
        primes.append(tuple(columns))
    return tuple(primes)


def kept_primes(folder: Path) -> PrimeSource:
    """The same search, which keeps what it found in a folder."""
    import numpy as np  # what only composes a configuration does without

    from engram_exp.layer.cache import cached_array

    def primes(layers: int, vocab_per_order: tuple[int, ...], heads: int) -> list[list[int]]:
        key = f"primes-{layers}-{'-'.join(map(str, vocab_per_order))}-{heads}"
        found = cached_array(folder, key, lambda: np.array(search_primes(layers, vocab_per_order, heads)))
        return found.tolist()

    return primes
