"""bfloat16 for compiled loops, which know none: a value is the upper half of a float32's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload


@njit(inline="always")
def bits_to_float(bits):  # type: ignore[no-untyped-def]
    """The float32 that 16 bits stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def float_to_bits(value):  # type: ignore[no-untyped-def]
    """The 16 bits of a number, rounded to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def to_float(element: Any) -> Any:
    """In compiled loops over arrays of either: the float32 that an element is, or whose 16 bits it is."""
    raise TypeError("only compiled code may call it")


def put(out: Any, place: int, value: Any) -> None:
    """In compiled loops over arrays of either: write a float32, or its 16 bits, to a place."""
    raise TypeError("only compiled code may call it")


@overload(to_float, inline="always")
def _to_float(element):  # type: ignore[no-untyped-def]
    if isinstance(element, types.Integer):
        return lambda element: bits_to_float(element)
    return lambda element: element


@overload(put, inline="always")
def _put(out, place, value):  # type: ignore[no-untyped-def]
    if isinstance(out.dtype, types.Integer):

        def put_bits(out, place, value):  # type: ignore[no-untyped-def]
            out[place] = float_to_bits(value)

        return put_bits

    def put_float(out, place, value):  # type: ignore[no-untyped-def]
        out[place] = value

    return put_float
