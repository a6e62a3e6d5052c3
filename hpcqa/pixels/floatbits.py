"""The bits of floats as whole numbers: these have largest and smallest ones by vector instructions, floats don't.

A compiler must not reorder comparisons of numbers that may be NaN. Logarithms begin with the bits too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from hpcqa.kernels import fast_kernel

_INT = ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def size_bits(typing: Any, number: Any) -> Any:
    """The bits of a float32's absolute value, int32: they are in the order of the sizes, NaN above all."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], _INT), ir.Constant(_INT, 0x7FFFFFFF))

    return types.int32(types.float32), generate


_ROOT_HALF = 0x3F3504F3  # the bits of the root of 1/2
_TO_ONE = 0x3F800000 - _ROOT_HALF


def _moved_bits(builder: Any, number: Any) -> Any:
    """The bits of a float32, moved so that its power of two changes at the roots of 1/2 and 2, not at 1."""
    return builder.add(builder.bitcast(number, _INT), ir.Constant(_INT, _TO_ONE))


@intrinsic  # type: ignore[untyped-decorator]
def exponent(typing: Any, number: Any) -> Any:
    """The power of two that a positive float32 is `significand` times of, float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.lshr(_moved_bits(builder, args[0]), ir.Constant(_INT, 23))
        return builder.sitofp(builder.sub(biased, ir.Constant(_INT, 127)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def significand(typing: Any, number: Any) -> Any:
    """A positive float32 over a power of two: from the root of 1/2 to that of 2, so that it is near one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fraction = builder.and_(_moved_bits(builder, args[0]), ir.Constant(_INT, 0x7FFFFF))
        return builder.bitcast(builder.add(fraction, ir.Constant(_INT, _ROOT_HALF)), ir.FloatType())

    return types.float32(types.float32), generate


@fast_kernel
def largest_size(values: np.ndarray) -> Any:
    """`size_bits` of the largest size in an array (n,) of float32."""
    largest = np.int32(0)
    for k in range(values.shape[0]):
        size = size_bits(values[k])
        largest = largest if largest > size else size
    return largest
