"""Order statistics of thousands of numbers, without sorting them.

Counting how many numbers lie below a limit takes vector instructions, moving them about does not. So limits are drawn
in round a rank by counting, until few enough numbers lie between them to be sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.pixels.kernels import fast_kernel, kernel

_SAMPLE = 64
_ASIDE = 12  # places in the sample on both sides of a rank that the first limits are at: three standard deviations
_FEW = 256  # so many numbers are sorted
_GOLDEN = 0.6180339887498949
_BLOCK = 64
_ROUNDS = 4


def known_median(values: np.ndarray) -> float:
    """Median of the finite values of an array of floats; NaN without any."""
    return float(median(np.ascontiguousarray(values).ravel()))


@kernel
def median(values: np.ndarray) -> float:
    """As `known_median`, of a contiguous array (n,)."""
    num = _count_finite(values)
    if num == 0:
        return np.nan
    known = values if num == values.size else _finite(values, num)
    lower, upper = select(known, (num - 1) // 2, num // 2)
    return 0.5 * (np.float64(lower) + np.float64(upper))


@fast_kernel
def _count_finite(values: np.ndarray) -> Any:
    num = np.int32(0)
    for k in range(values.size):
        num += np.int32(abs(values[k]) < np.inf)
    return num


@kernel
def _finite(values: np.ndarray, num: int) -> np.ndarray:
    out = np.empty(num + 1, values.dtype)
    found = 0
    for k in range(values.size):
        out[found] = values[k]
        found += np.isfinite(values[k])
    return out[:num]


@kernel
def select(values: np.ndarray, first: int, last: int) -> tuple[float, float]:
    """The numbers of two ranks of an array.

    Args:
        values: (n,) float, contiguous, all finite.
        first, last: ranks from 0; `last` is `first` or the next.
    """
    while values.size > _FEW:
        low, high, below, upto = _limits(values, first, last)
        low, high, below, upto = _close_in(values, first, last, low, high, below, upto)
        if low == high:
            return low, low
        if upto - below == values.size:
            break
        values = _between(values, low, high, upto - below)
        first, last = first - below, last - below
    ordered = np.sort(values)
    return ordered[first], ordered[last]


@kernel
def _limits(values: np.ndarray, first: int, last: int) -> tuple[float, float, int, int]:
    """Limits round two ranks from a sample, with how many numbers lie below the lower one and up to the upper one."""
    num = values.size
    sample = np.empty(_SAMPLE, values.dtype)
    for k in range(_SAMPLE):
        # Scattered by the golden ratio, so that no structure of an image lies in step with it.
        sample[k] = values[int(((k + 0.5) * _GOLDEN) % 1.0 * num)]
    sample.sort()
    middle = first * _SAMPLE // num
    low, high = sample[max(middle - _ASIDE, 0)], sample[min(middle + _ASIDE, _SAMPLE - 1)]
    below, upto = count(values, low, high)
    if below > first:
        low, below = values.min(), 0
    if upto <= last:
        high, upto = values.max(), num
    return low, high, below, upto


@kernel
def _close_in(
    values: np.ndarray, first: int, last: int, low: float, high: float, below: int, upto: int
) -> tuple[float, float, int, int]:
    """Closer limits round two ranks, with how many numbers lie below the lower one and up to the upper one."""
    wide = 0.05
    for _ in range(_ROUNDS):
        if low == high or upto - below <= _FEW:
            break
        reach = 1.5 * np.sqrt(upto - below) + wide * (upto - below)
        # As if the numbers were spread evenly between the limits.
        slope = (high - low) / (upto - below)
        lower = max(low, values.dtype.type(low + slope * (first - below - reach)))
        upper = min(high, values.dtype.type(low + slope * (last - below + reach)))
        under, over = count(values, lower, upper)
        if under <= first:
            low, below = lower, under
        if over > last:
            high, upto = upper, over
        if under > first or over <= last:
            wide = 0.25
    return low, high, below, upto


@fast_kernel
def count(values: np.ndarray, low: float, high: float) -> Any:
    """Numbers below the lower limit, and those not above the upper one."""
    below = upto = np.int32(0)
    for k in range(values.size):
        below += np.int32(values[k] < low)
        upto += np.int32(values[k] <= high)
    return below, upto


@kernel
def _between(values: np.ndarray, low: float, high: float, num: int) -> np.ndarray:
    """The numbers from the lower limit to the upper one, `num` of them."""
    out = np.empty(num, values.dtype)
    found = 0
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK]
        below, upto = count(part, low, high)
        if upto == below:
            continue
        for k in range(part.size):
            if low <= part[k] <= high:
                out[found] = part[k]
                found += 1
    return out
