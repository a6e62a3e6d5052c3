"""The bits of floats as whole numbers: these have largest and smallest ones by vector instructions, floats don't.

A compiler must not reorder comparisons of numbers that may be NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from hpcqa.kernels import fast_kernel


@intrinsic  # type: ignore[untyped-decorator]
def size_bits(typing: Any, number: Any) -> Any:
    """The bits of a float32's absolute value, int32: they are in the order of the sizes, NaN above all."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        return builder.and_(builder.bitcast(args[0], word), ir.Constant(word, 0x7FFFFFFF))

    return types.int32(types.float32), generate


@fast_kernel
def largest_size(values: np.ndarray) -> Any:
    """`size_bits` of the largest size in an array (n,) of float32."""
    largest = np.int32(0)
    for k in range(values.shape[0]):
        size = size_bits(values[k])
        largest = largest if largest > size else size
    return largest
