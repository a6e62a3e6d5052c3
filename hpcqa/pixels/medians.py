"""Order statistics of thousands of numbers, without sorting them.

Counting how many numbers lie below a limit takes vector instructions, moving them about does not. So limits are drawn
in round a rank by counting, until few enough numbers lie between them to be sorted. Where many ranks are asked for, the
numbers are dealt into small buckets once, and a bucket is sorted when one of its ranks is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, kernel

_SAMPLE = 64
_ASIDE = 12  # places in the sample on both sides of a rank that the first limits are at: three standard deviations
_FEW = 64  # so many numbers are sorted
_GOLDEN = 0.6180339887498949
_BLOCK = 64
_ROUNDS = 6
_A_BUCKET, _MOST_BUCKETS = 32, 1024  # numbers in a bucket, buckets


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
        num = np.int32(num + np.int32(abs(values[k]) < np.inf))
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
    # Limits and counters of the numbers' own width: vector instructions take half as many of the double width.
    lower, upper = values.dtype.type(low), values.dtype.type(high)
    for k in range(values.size):
        below = np.int32(below + np.int32(values[k] < lower))
        upto = np.int32(upto + np.int32(values[k] <= upper))
    return below, upto


@kernel
def _between(values: np.ndarray, low: float, high: float, num: int) -> np.ndarray:
    """The numbers from the lower limit to the upper one, `num` of them."""
    out = np.empty(num + 1, values.dtype)
    found = 0
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK]
        below, upto = count(part, low, high)
        if upto == below:
            continue
        # Without a branch, of which the processor would guess one in each block wrong.
        for k in range(part.size):
            out[found] = part[k]
            found += (low <= part[k]) & (part[k] <= high)
    return out[:num]


# Many ranks of the same numbers ---------------------------------------------------------------------------------------


@kernel
def dealt(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers dealt into buckets of ascending value, for `ranked`.

    Args:
        values: (n,) float, contiguous, all finite, n > 0.

    Returns:
        (n,), bucket after bucket; (buckets + 1,) int64, where each begins, and the end; (buckets,) bool, whether each
        is sorted: none is.
    """
    num = max(1, min(values.size // _A_BUCKET, _MOST_BUCKETS))
    low, scale = _width(values, num)
    last = values.dtype.type(num - 1)
    buckets = np.empty(values.size, np.int32)
    starts = np.zeros(num + 1, np.int64)
    for k in range(values.size):
        # Rounding keeps order: no number gets into a lower bucket than a smaller number. What is no number, as the
        # product of infinity and zero, is not above zero.
        place = (values[k] - low) * scale
        place = place if place > 0 else values.dtype.type(0)
        buckets[k] = np.int32(place if place < last else last)
    for k in range(values.size):
        starts[buckets[k] + 1] += 1
    for bucket in range(num):
        starts[bucket + 1] += starts[bucket]
    following = starts.copy()
    out = np.empty_like(values)
    for k in range(values.size):
        out[following[buckets[k]]] = values[k]
        following[buckets[k]] += 1
    return out, starts, np.zeros(num, np.bool_)


@kernel
def _width(values: np.ndarray, num: int) -> tuple[float, float]:
    """Where the first of `num` buckets begins and how many a unit has: seven eighths of a sample lie within them."""
    size = min(_SAMPLE, values.size)
    sample = np.empty(size, values.dtype)
    for k in range(size):
        sample[k] = values[int(((k + 0.5) * _GOLDEN) % 1.0 * values.size)]
    sample.sort()
    low, high = sample[0], sample[size - 1 - size // 8]
    wide = high - low
    return low, values.dtype.type(num) / wide if wide > 0 else values.dtype.type(0)


@kernel
def ranked(values: np.ndarray, starts: np.ndarray, is_sorted: np.ndarray, rank: int) -> Any:
    """The number of a rank from 0 of what `dealt` gave; sorts the bucket that it is in."""
    bucket = np.searchsorted(starts, rank, side="right") - 1
    if not is_sorted[bucket]:
        values[starts[bucket] : starts[bucket + 1]].sort()
        is_sorted[bucket] = True
    return values[rank]
