"""Fetching parts of an image that will be wanted soon: a star lies on dozens of lines that no cache holds any more."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from hpcqa.kernels import inner_kernel

_LINE = 64  # bytes that the processor fetches together


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(typing: Any, image: Any, offset: Any) -> Any:
    """Ask for the bytes at an offset of a contiguous array, without waiting for them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # For reading, to all caches, data.
        how = [ir.Constant(word, number) for number in (0, 3, 1)]
        builder.call(function, [cgutils.pointer_add(builder, data, args[1], byte), *how])
        return context.get_dummy_value()

    return types.void(image, types.int64), generate


@inner_kernel
def fetch_around(image: np.ndarray, row: int, col: int, reach: int) -> None:
    """Ask for the pixels of a contiguous image within `reach` of a place."""
    first, last = max(row - reach, 0), min(row + reach + 1, image.shape[0])
    start, stop = max(col - reach, 0), min(col + reach + 1, image.shape[1])
    if stop <= start:
        return
    for i in range(first, last):
        begin = (i * image.shape[1] + start) * image.itemsize
        end = (i * image.shape[1] + stop - 1) * image.itemsize
        for offset in range(begin, end, _LINE):
            _fetch(image, offset)
        _fetch(image, end)
