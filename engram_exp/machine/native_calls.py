"""System calls out of compiled loops, by the address of a function: a loop that reads thousands of rows returns to
Python once, holds no lock meanwhile, and takes another function in its place where a test gives one.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LIBC = ctypes.CDLL(None, use_errno=True)


def address_of(function: Any) -> int:
    """The address of a function of the C library, or of a callback that `ctypes` made. Whoever calls it keeps it."""
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


PREAD = address_of(LIBC.pread64 if hasattr(LIBC, "pread64") else LIBC.pread)
SYSCALL = address_of(LIBC.syscall)


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """What the function at an address returns for a tuple of 64-bit arguments: a number of 64 bits; -1 where it fails,
    for a reason that only another call of the same can tell."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        taken = cgutils.unpack_tuple(builder, values[1])
        pointer = builder.inttoptr(values[0], ir.FunctionType(word, [word] * len(taken)).as_pointer())
        return builder.call(pointer, taken)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Keep what is read and written before it before what is read and written behind it, for compiler and CPU."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
