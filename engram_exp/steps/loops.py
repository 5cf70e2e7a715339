"""Compiled loops in two forms of one source: over the CPU's threads, and on the calling thread alone.

Threads that a loop has left behind go to sleep, and a model calls a step of its layer once in milliseconds: to wake
them again takes longer than a short loop. The calling thread is awake.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import numba

from engram_exp.vocabulary import AUTO

Threads = int | Literal["auto"]


class Loop:
    """A function over `prange`, compiled in both forms when they are first called.

    Args:
        source: what to compile.
    """

    def __init__(self, source: Callable[..., Any]) -> None:
        self.together = numba.njit(parallel=True, cache=True, error_model="numpy")(source)
        self.alone = numba.njit(cache=True, error_model="numpy")(_namesake(source))

    def __call__(self, threads: int | None, *arguments: Any) -> Any:
        """Run on so many threads, the calling one among them; None: on all of the run.

        A number between 1 and all costs microseconds, and far more where loops take turns with different ones: GNU's
        OpenMP ends the threads that a smaller team leaves over, and starts them again for the next larger one.
        """
        if threads == 1:
            return self.alone(*arguments)
        if threads is None or threads == numba.get_num_threads():
            return self.together(*arguments)
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return self.together(*arguments)
        finally:
            numba.set_num_threads(before)


def threads_for(threads: Threads, rows: int, together_from_rows: int) -> int | None:
    """The threads that a loop over so many rows is given: as configured, else the calling one, or from so many rows on
    all of the run (None)."""
    if threads != AUTO:
        return threads
    return None if rows >= together_from_rows else 1


def _namesake(source: Any) -> Callable[..., Any]:
    """The function under another name: numba keeps compiled code by name, and not by how it was compiled."""
    same = FunctionType(source.__code__, source.__globals__, source.__name__, source.__defaults__, source.__closure__)
    same.__module__, same.__qualname__ = source.__module__, f"{source.__qualname__}_alone"
    return same
