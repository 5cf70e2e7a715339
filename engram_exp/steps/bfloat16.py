"""bfloat16 for compiled loops, which know none: a value is the upper half of a float32's bits."""

from __future__ import annotations

import numpy as np
from numba import njit


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
