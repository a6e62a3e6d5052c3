"""One pass over the native pixels of a CCD: the binned working image, the profiles along rows and columns, saturation.

Everything that follows is measured on what this gives; only the stars go back to native pixels. Shapes: R, C native
rows and columns; r, c binned, r = ceil(R / step).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcqa.pixels.kernels import fast_kernel, kernel

# The binned image that sources are found on has at most this many pixels along a side: 4x4 binning for a 2k x 4k CCD.
WORKING_SIDE = 1024
_AT_ONCE = 4  # rows that one turn of the pass takes; written out in _four_rows
# A finite number is one whose absolute value is at most the largest (false for NaN). Counts are float32 too, exact up
# to 2**24, so that the loops use one vector width.
_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


@dataclass(frozen=True)
class Scan:
    """What one pass over the native pixels gives.

    Attributes:
        step: native pixels along a side of a binned one.
        mean: (r, c) float32, mean of the valid pixels, ADU; 0 where there is none.
        count: (r, c) float32, valid pixels.
        row_mean: (2, R) float32, clipped mean of each row less the sky, ADU, left and right of the split.
        row_count: (2, R) float32, pixels behind it.
        col_mean: (C,) float32, clipped mean of each column less the sky, ADU.
        col_count: (C,) float32.
        saturated: (C,) float32, saturated pixels in each column, masked or not; from every `step`-th row.
        constant_rows: rows whose pixels are all equal.
        num_masked: masked pixels of the CCD.
    """

    step: int
    mean: np.ndarray
    count: np.ndarray
    row_mean: np.ndarray
    row_count: np.ndarray
    col_mean: np.ndarray
    col_count: np.ndarray
    saturated: np.ndarray
    constant_rows: int
    num_masked: int

    @cached_property
    def num_valid(self) -> int:
        """Valid pixels of the CCD."""
        # Rows first: their sums are exact in float32.
        return int(self.count.sum(axis=1).sum(dtype=np.float64))


@fast_kernel
def _four_rows(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    masks: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    level: np.float32,
    cut: np.float32,
    sums: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    totals: np.ndarray,
) -> None:
    """Four rows less the sky added up, column by column and row by row.

    Four at once, because every sum is then loaded and stored once for four pixels; written out, because only so does
    the loop become vector instructions.

    Args:
        rows, masks: the pixels (ADU) and which are not to be used (uint8).
        sums: added to, for each column: the valid pixels less the sky and their number, those within the cut of the sky
            and their number.
        totals: (2, 4) set: the sum and the number of those within the cut for each row.
    """
    row0, row1, row2, row3 = rows
    mask0, mask1, mask2, mask3 = masks
    valid, num_valid, near, num_near = sums
    total0 = total1 = total2 = total3 = _ZERO
    number0 = number1 = number2 = number3 = _ZERO
    for j in range(row0.shape[0]):
        less0, less1, less2, less3 = row0[j] - level, row1[j] - level, row2[j] - level, row3[j] - level
        good0 = (abs(less0) <= _LARGEST) & (mask0[j] == 0)
        good1 = (abs(less1) <= _LARGEST) & (mask1[j] == 0)
        good2 = (abs(less2) <= _LARGEST) & (mask2[j] == 0)
        good3 = (abs(less3) <= _LARGEST) & (mask3[j] == 0)
        less0, one0 = less0 if good0 else _ZERO, _ONE if good0 else _ZERO
        less1, one1 = less1 if good1 else _ZERO, _ONE if good1 else _ZERO
        less2, one2 = less2 if good2 else _ZERO, _ONE if good2 else _ZERO
        less3, one3 = less3 if good3 else _ZERO, _ONE if good3 else _ZERO
        valid[j] += (less0 + less1) + (less2 + less3)
        num_valid[j] += (one0 + one1) + (one2 + one3)
        near0, near1, near2, near3 = abs(less0) <= cut, abs(less1) <= cut, abs(less2) <= cut, abs(less3) <= cut
        less0, one0 = less0 if near0 else _ZERO, one0 if near0 else _ZERO
        less1, one1 = less1 if near1 else _ZERO, one1 if near1 else _ZERO
        less2, one2 = less2 if near2 else _ZERO, one2 if near2 else _ZERO
        less3, one3 = less3 if near3 else _ZERO, one3 if near3 else _ZERO
        near[j] += (less0 + less1) + (less2 + less3)
        num_near[j] += (one0 + one1) + (one2 + one3)
        total0, total1, total2, total3 = total0 + less0, total1 + less1, total2 + less2, total3 + less3
        number0, number1, number2, number3 = number0 + one0, number1 + one1, number2 + one2, number3 + one3
    totals[0, 0], totals[0, 1], totals[0, 2], totals[0, 3] = total0, total1, total2, total3
    totals[1, 0], totals[1, 1], totals[1, 2], totals[1, 3] = number0, number1, number2, number3


@fast_kernel
def _add_saturated(row: np.ndarray, full: np.float32, every: np.float32, saturated: np.ndarray) -> None:
    for j in range(row.shape[0]):
        saturated[j] += every if row[j] >= full else _ZERO


@fast_kernel
def add_binned(values: np.ndarray, step: int, total: np.ndarray) -> None:
    """Sums over `step` neighbours (fewer at the end) added to `total`."""
    cols = values.shape[0]
    whole = cols // step
    # Two and four are the full-size camera's, unrolled so that they become vector instructions.
    if step == 4:
        for k in range(whole):
            total[k] += values[4 * k] + values[4 * k + 1] + values[4 * k + 2] + values[4 * k + 3]
    elif step == 2:
        for k in range(whole):
            total[k] += values[2 * k] + values[2 * k + 1]
    else:
        for k in range(whole):
            part = _ZERO
            for j in range(k * step, k * step + step):
                part += values[j]
            total[k] += part
    for j in range(whole * step, cols):
        total[whole] += values[j]


@kernel
def _is_constant(row: np.ndarray) -> bool:
    last = 1
    while last < row.shape[0] and row[last] == row[0]:
        last += 1
    return bool(last >= row.shape[0])


@kernel
def _number_masked(masked: np.ndarray) -> int:
    """Masked pixels of some rows; mostly there is none, which is told without counting."""
    found = np.uint8(0)
    for i in range(masked.shape[0]):
        for j in range(masked.shape[1]):
            found |= masked[i, j]
    return int(np.count_nonzero(masked)) if found != 0 else 0


@kernel
def _scan(
    pixels: np.ndarray,
    masked: np.ndarray,
    step: int,
    split: int,
    facts: tuple[np.float32, np.float32, np.float32],
    arrays: tuple[np.ndarray, ...],
) -> tuple[int, int]:
    """Fill the arrays of a scan; how many rows are constant, and how many pixels masked."""
    mean, count, row_mean, row_count, col_total, col_count, saturated = arrays
    level, cut, full = facts
    rows, cols = pixels.shape
    sums, totals = np.zeros((2, cols), np.float32), np.empty((2, _AT_ONCE), np.float32)
    # Where fewer than four rows are left, the last stands in, masked, for those that are missing.
    hidden = np.ones(cols, np.uint8)
    constant = num_masked = 0
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        for i in range(first, stop, _AT_ONCE):
            num = min(_AT_ONCE, stop - i)
            i1, i2, i3 = min(i + 1, stop - 1), min(i + 2, stop - 1), min(i + 3, stop - 1)
            mask1 = masked[i1] if num > 1 else hidden
            mask2 = masked[i2] if num > 2 else hidden
            mask3 = masked[i3] if num > 3 else hidden
            for side in range(2):
                a, b = (0, split) if side == 0 else (split, cols)
                _four_rows(
                    (pixels[i, a:b], pixels[i1, a:b], pixels[i2, a:b], pixels[i3, a:b]),
                    (masked[i, a:b], mask1[a:b], mask2[a:b], mask3[a:b]),
                    level,
                    cut,
                    (sums[0, a:b], sums[1, a:b], col_total[a:b], col_count[a:b]),
                    totals,
                )
                for k in range(num):
                    row_mean[side, i + k] = totals[0, k] / totals[1, k] if totals[1, k] > 0 else _ZERO
                    row_count[side, i + k] = totals[1, k]
            num_masked += _number_masked(masked[i : i + num])
            for k in range(num):
                constant += 1 if _is_constant(pixels[i + k]) else 0
        _add_saturated(pixels[first], full, np.float32(step), saturated)
        add_binned(sums[0], step, mean[first // step])
        add_binned(sums[1], step, count[first // step])
        sums[:] = 0
    for k in range(cols):
        col_total[k] = col_total[k] / col_count[k] if col_count[k] > 0 else _ZERO
    for k in range(mean.shape[0]):
        for m in range(mean.shape[1]):
            mean[k, m] = mean[k, m] / count[k, m] + level if count[k, m] > 0 else _ZERO
    return constant, num_masked


def working_step(shape: tuple[int, int]) -> int:
    """Native pixels along a side of a pixel of the working image."""
    return max(1, -(-max(shape) // WORKING_SIDE))


def scan(pixels: np.ndarray, masked: np.ndarray, *, level: float, noise: float, split: int, saturation: float) -> Scan:
    """One pass over the native pixels (R, C).

    Args:
        pixels: float32, ADU.
        masked: bool, same shape.
        level: of the sky, ADU.
        noise: of a pixel, ADU; the profiles use pixels within 5 noise of the level.
        split: column where the second amplifier starts; 0 or C when there is none.
        saturation: pixels at or above are saturated, ADU.
    """
    rows, cols = pixels.shape
    step = working_step((rows, cols))
    small = (-(-rows // step), -(-cols // step))
    cut = 5.0 * noise if noise > 0 else 1e-3 * max(abs(level), 1.0)
    facts = (np.float32(level), np.float32(cut), np.float32(saturation))
    mean, count = np.zeros(small, np.float32), np.zeros(small, np.float32)
    row_mean, row_count = np.zeros((2, rows), np.float32), np.zeros((2, rows), np.float32)
    columns = np.zeros((3, cols), np.float32)
    arrays = (mean, count, row_mean, row_count, columns[0], columns[1], columns[2])
    constant, num_masked = _scan(pixels, masked.view(np.uint8), step, split, facts, arrays)
    return Scan(step, mean, count, row_mean, row_count, columns[0], columns[1], columns[2], constant, num_masked)
