"""The smallest few of many lower bounds on a CPU: one pass over what a matrix product just left in the cache.

The bounds of a reference for a chunk of queries are first compared as a whole with the largest that each still wants, a
loop without branches that compilers turn into vector instructions; only the few chunks with something smaller are
looked at one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from hpcqa.kernels import fast_kernel

CHUNK = 32
# Half the spacing of bfloat16 numbers, relative, and a little more: what rounding a product to them may have added.
BF16_ROUNDING = np.float32(2.0**-8 * 1.008)


# numba wants both of the same signature, annotations included.
def _of_float32(product: Any) -> Any:
    return product


def _of_bfloat16(product: Any) -> Any:
    rounded = np.uint32(np.uint32(product) << np.uint32(16)).view(np.float32)
    return rounded - BF16_ROUNDING * abs(rounded)


def _least(product: Any) -> Any:
    """The least that a product may have been before it was rounded: a float32, or the bits of a bfloat16 as uint16."""
    return _of_bfloat16(product) if isinstance(product, np.uint16) else _of_float32(product)


@overload(_least, inline="always")  # type: ignore[untyped-decorator]
def _compiled_least(product: Any) -> Any:
    return _of_float32 if product == types.float32 else _of_bfloat16


@fast_kernel
def insert(value: float, number: int, best: np.ndarray, where: np.ndarray) -> None:
    """Put a value in its place among the sorted ones of a query, (wanted,), and its number beside it; the last goes."""
    place = best.shape[0] - 1
    while place > 0 and best[place - 1] > value:
        best[place], where[place] = best[place - 1], where[place - 1]
        place -= 1
    best[place], where[place] = value, number


@fast_kernel
def smallest(
    products: np.ndarray,
    lows: np.ndarray,
    lengths: np.ndarray,
    slopes: np.ndarray,
    first: int,
    ranges: np.ndarray,
    values: np.ndarray,
    places: np.ndarray,
) -> None:
    """Take what is smaller into the sorted lists of the smallest `product + low - slope * length`.

    Args:
        products: float32 (reference, column), or uint16: the bits of bfloat16, for each of which the least number that
            is rounded to it stands. A column for each query, then any up to a multiple of CHUNK.
        lows, lengths: float32 (reference,).
        slopes: float32 (column,).
        first: number of the first reference.
        ranges: int64 (query, 2), numbers of references [start, stop) that a query leaves out.
        values: float32 (query, wanted), ascending; places: int64 (query, wanted), their numbers. Both are updated.
    """
    queries, last = values.shape[0], values.shape[1] - 1
    worst = np.full(slopes.shape[0], -np.inf, np.float32)
    worst[:queries] = values[:, last]
    for reference in range(products.shape[0]):
        row, low, length, number = products[reference], lows[reference], lengths[reference], first + reference
        for start in range(0, slopes.shape[0], CHUNK):
            near = False
            for offset in range(CHUNK):
                # Unsigned: numba's wraparound of negative indices keeps a loop from becoming vectors.
                at = np.uintp(start) + np.uintp(offset)
                near |= _least(row[at]) + (low - slopes[at] * length) < worst[at]
            if not near:
                continue
            for query in range(start, min(start + CHUNK, queries)):
                value = _least(row[query]) + (low - slopes[query] * length)
                if value < worst[query] and not (ranges[query, 0] <= number < ranges[query, 1]):
                    insert(value, number, values[query], places[query])
                    worst[query] = values[query, last]
