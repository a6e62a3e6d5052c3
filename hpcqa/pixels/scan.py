"""One pass over the native pixels of a CCD: the binned working image, the profiles along rows and columns, saturation.

Everything that follows is measured on what this gives; only the stars go back to native pixels. Shapes: R, C native
rows and columns; r, c binned, r = ceil(R / step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, kernel

# The binned image that sources are found on has at most this many pixels along a side: 4x4 binning for a 2k x 4k CCD.
WORKING_SIDE = 1024
_AT_ONCE = 4  # rows that one turn of the pass takes; written out in _add_any
_BLOCK = 128  # columns that are looked at together for stars and faults
# A finite number is one whose absolute value is at most the largest (false for NaN). Counts are float32 too, exact up
# to 2**24, so that the loops use one vector width.
_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE, _FOUR = np.float32(0), np.float32(1), np.float32(4)


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
        num_masked, num_valid: masked and valid pixels of the CCD.
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
    num_valid: int


@fast_kernel
def _add_block(
    pixels: np.ndarray,
    row: int,
    start: int,
    width: int,
    facts: tuple[np.float32, ...],
    sums: np.ndarray,
    totals: np.ndarray,
) -> tuple[Any, Any]:
    """The sums of some columns of four rows, as if all of their pixels were valid.

    Args:
        facts: level of the sky, lowest and highest value within the cut.
        sums: (4, C), the first row set: the pixels less the sky.
        totals: (2, 4) set, as by `_near_block`, as if there were no star.

    Returns:
        Whether all pixels lie within the cut, and whether all are numbers.
    """
    level, low, high = facts
    total0 = total1 = total2 = total3 = _ZERO
    near = np.int32(0)
    i, four = np.uint64(row), _FOUR * level
    for j in range(width):
        # Unsigned indices spare the test for negative ones.
        k = np.uint64(start) + np.uint64(j)
        one, two = pixels[i, k], pixels[i + np.uint64(1), k]
        three, last = pixels[i + np.uint64(2), k], pixels[i + np.uint64(3), k]
        near += np.int32(
            (one >= low) & (one <= high)
            & (two >= low) & (two <= high)
            & (three >= low) & (three <= high)
            & (last >= low) & (last <= high)
        )  # fmt: skip
        sums[np.uint64(0), k] = (one + two) + (three + last) - four
        total0, total1, total2, total3 = total0 + one, total1 + two, total2 + three, total3 + last
    expected = np.float32(width) * level
    totals[0, 0], totals[0, 1] = total0 - expected, total1 - expected
    totals[0, 2], totals[0, 3] = total2 - expected, total3 - expected
    totals[1] = np.float32(width)
    return near == width, abs((total0 + total1) + (total2 + total3)) <= _LARGEST


@fast_kernel
def _near_block(
    pixels: np.ndarray,
    row: int,
    start: int,
    width: int,
    facts: tuple[np.float32, ...],
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """The sums of those pixels of a block that lie within the cut.

    Args:
        sums: (4, C), the last two rows added to: the pixels less the sky, and their number.
        totals: (2, 4) set: the sum and the number for each row.
    """
    level, low, high = facts
    total0 = total1 = total2 = total3 = _ZERO
    num0 = num1 = num2 = num3 = _ZERO
    i = np.uint64(row)
    for j in range(width):
        k = np.uint64(start) + np.uint64(j)
        one, two = pixels[i, k], pixels[i + np.uint64(1), k]
        three, last = pixels[i + np.uint64(2), k], pixels[i + np.uint64(3), k]
        near0, near1 = (one >= low) & (one <= high), (two >= low) & (two <= high)
        near2, near3 = (three >= low) & (three <= high), (last >= low) & (last <= high)
        less0, less1 = one - level if near0 else _ZERO, two - level if near1 else _ZERO
        less2, less3 = three - level if near2 else _ZERO, last - level if near3 else _ZERO
        one0, one1 = _ONE if near0 else _ZERO, _ONE if near1 else _ZERO
        one2, one3 = _ONE if near2 else _ZERO, _ONE if near3 else _ZERO
        sums[np.uint64(2), k] += (less0 + less1) + (less2 + less3)
        sums[np.uint64(3), k] += (one0 + one1) + (one2 + one3)
        total0, total1, total2, total3 = total0 + less0, total1 + less1, total2 + less2, total3 + less3
        num0, num1, num2, num3 = num0 + one0, num1 + one1, num2 + one2, num3 + one3
    totals[0, 0], totals[0, 1], totals[0, 2], totals[0, 3] = total0, total1, total2, total3
    totals[1, 0], totals[1, 1], totals[1, 2], totals[1, 3] = num0, num1, num2, num3


@fast_kernel
def _keep_block(start: int, width: int, sums: np.ndarray) -> None:
    """A block without stars: all that is valid lies within the cut."""
    for j in range(width):
        k = np.uint64(start) + np.uint64(j)
        sums[np.uint64(2), k] += sums[np.uint64(0), k]


@fast_kernel
def _add_any(
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
        totals: (2, 4) added to: the sum and the number of those within the cut for each row.
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
    totals[0, 0] += total0
    totals[1, 0] += number0
    totals[0, 1] += total1
    totals[1, 1] += number1
    totals[0, 2] += total2
    totals[1, 2] += number2
    totals[0, 3] += total3
    totals[1, 3] += number3


@kernel
def _any_block(
    pixels: np.ndarray,
    masked: np.ndarray,
    rows: tuple[int, int],
    start: int,
    stop: int,
    facts: tuple[np.float32, np.float32],
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """`_add_any` for the columns start to stop of one to four rows, with a mask or with what is no number.

    Where fewer than four rows are left, the last stands in, masked, for those that are missing.
    """
    first, last = rows
    level, cut = facts
    hidden = np.ones(stop - start, np.uint8)
    i1, i2, i3 = min(first + 1, last - 1), min(first + 2, last - 1), min(first + 3, last - 1)
    a, b = start, stop
    mask1 = masked[i1, a:b] if first + 1 < last else hidden
    mask2 = masked[i2, a:b] if first + 2 < last else hidden
    mask3 = masked[i3, a:b] if first + 3 < last else hidden
    _add_any(
        (pixels[first, a:b], pixels[i1, a:b], pixels[i2, a:b], pixels[i3, a:b]),
        (masked[first, a:b], mask1, mask2, mask3),
        level,
        cut,
        (sums[0, a:b], sums[1, a:b], sums[2, a:b], sums[3, a:b]),
        totals,
    )


@kernel
def _whole_rows(
    pixels: np.ndarray,
    masked: np.ndarray,
    row: int,
    start: int,
    stop: int,
    facts: tuple[np.float32, np.float32, np.float32],
    sums: np.ndarray,
    quiet: np.ndarray,
    saturated: np.ndarray,
    totals: np.ndarray,
) -> bool:
    """Columns start to stop of four rows without a mask, block by block; whether all of their pixels are numbers.

    Nearly all blocks have neither a star nor a fault, and take a third of the time.

    Args:
        sums: (4, C): of these rows (set), then of all rows (added to): as for `_add_any`, but the second row is as it
            was where all four pixels of a column are valid.
        quiet: (blocks,) added to: rows of a block that are to be added to the last row of the sums.
        totals: (2, 4) set: sum and number of the pixels within the cut in each row.
    """
    level, cut, full = facts
    limits = (level, level - cut, level + cut)
    part = np.empty((2, _AT_ONCE), np.float32)
    totals[:] = 0
    whole = True
    for block in range(quiet.size):
        a, b = start + block * _BLOCK, min(start + block * _BLOCK + _BLOCK, stop)
        if b - a == _BLOCK:
            is_quiet, good = _add_block(pixels, row, a, _BLOCK, limits, sums, part)
        else:
            is_quiet, good = _add_block(pixels, row, a, b - a, limits, sums, part)
        if is_quiet:
            _keep_block(a, b - a, sums)
            quiet[block] += _AT_ONCE
        elif good:
            _near_block(pixels, row, a, b - a, limits, sums, part)
        else:
            whole = False
            sums[:2, a:b] = 0
            part[:] = 0
            _any_block(pixels, masked, (row, row + _AT_ONCE), a, b, (level, cut), sums, part)
        if not is_quiet or limits[2] >= full:
            _add_saturated(pixels[row, a:b], full, np.float32(_AT_ONCE), saturated[a:b])
        for k in range(_AT_ONCE):
            totals[0, k] += part[0, k]
            totals[1, k] += part[1, k]
    return whole


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
    flat = masked.reshape(masked.size)
    found = False
    for k in range(flat.size):
        found |= flat[k] != 0
    return int(np.count_nonzero(flat)) if found else 0


@fast_kernel
def _divide(sums: np.ndarray, counts: np.ndarray, level: np.float32) -> None:
    """Sums less the level become means; 0 where nothing is behind them."""
    for k in range(sums.size):
        known = counts[k] > 0
        sums[k] = sums[k] / (counts[k] if known else _ONE) + level if known else _ZERO


@kernel
def scan_rows(
    pixels: np.ndarray,
    masked: np.ndarray,
    first: int,
    last: int,
    step: int,
    split: int,
    facts: tuple[np.float32, np.float32, np.float32],
    arrays: tuple[np.ndarray, ...],
    numbers: np.ndarray,
) -> None:
    """Add rows `first` to `last` of an image to a scan; `first` begins a row of the working image.

    Args:
        pixels, masked: the image, and which of its pixels are not to be used (uint8).
        last: the end of a row of the working image, or of the image.
        facts: level of the sky, cut about it, saturation.
        arrays, numbers: as in `Sums`.
    """
    mean, count, row_mean, row_count, sums, saturated, full_count, quiet = arrays
    level, cut, full = facts
    cols = pixels.shape[1]
    totals = np.empty((2, _AT_ONCE), np.float32)
    for begin in range(first, last, step):
        stop = min(begin + step, last)
        place = begin // step
        num_masked = _number_masked(masked[begin:stop])
        numbers[1] += num_masked
        fast = step == _AT_ONCE and stop - begin == step and num_masked == 0
        whole = fast
        if not fast:
            sums[:2] = 0
            _add_saturated(pixels[begin], full, np.float32(step), saturated)
        for side in range(2):
            a, b = (0, split) if side == 0 else (split, cols)
            for i in range(begin, stop, _AT_ONCE):
                num = min(_AT_ONCE, stop - i)
                if fast:
                    blocks = quiet[side, : -(-(b - a) // _BLOCK)]
                    good = _whole_rows(pixels, masked, i, a, b, facts, sums, blocks, saturated, totals)
                    whole = whole and good
                else:
                    totals[:] = 0
                    _any_block(pixels, masked, (i, i + num), a, b, (level, cut), sums, totals)
                for k in range(num):
                    row_mean[side, i + k] = totals[0, k] / totals[1, k] if totals[1, k] > 0 else _ZERO
                    row_count[side, i + k] = totals[1, k]
        for i in range(begin, stop):
            numbers[0] += 1 if _is_constant(pixels[i]) else 0
        add_binned(sums[0], step, mean[place])
        if whole:
            count[place] = full_count
            numbers[2] += (stop - begin) * cols
        else:
            add_binned(sums[1], step, count[place])
            sums[1] = _FOUR
            # Exact in float32: a row of the working image has less than 2**24 pixels behind it.
            numbers[2] += int(count[place].sum())
        _divide(mean[place], count[place], level)


def working_step(shape: tuple[int, int]) -> int:
    """Native pixels along a side of a pixel of the working image."""
    return max(1, -(-max(shape) // WORKING_SIDE))


@dataclass(frozen=True)
class Sums:
    """A scan under way: what `scan_rows` takes, and adds to.

    Attributes:
        step, split, facts: see `scan_rows`.
        arrays: mean, count, row_mean and row_count as in Scan; (4, C) float32, of each column, of one row of the
            working image: the valid pixels less the sky and their number, and of all rows the same for those within the
            cut; `saturated` as in Scan; (c,) float32, the count of a row of the working image if all is valid; (2,
            blocks) int64, rows of each block left and right of the split that are still to be added to the last number.
        numbers: int64 (3,), constant rows, masked pixels and valid ones.
    """

    step: int
    split: int
    facts: tuple[np.float32, np.float32, np.float32]
    arrays: tuple[np.ndarray, ...]
    numbers: np.ndarray

    @classmethod
    def begin(cls, shape: tuple[int, int], *, level: float, noise: float, split: int, saturation: float) -> Sums:
        """Sums of nothing yet; see `scan`."""
        rows, cols = shape
        step = working_step(shape)
        small = (-(-rows // step), -(-cols // step))
        cut = 5.0 * noise if noise > 0 else 1e-3 * max(abs(level), 1.0)
        facts = (np.float32(level), np.float32(cut), np.float32(saturation))
        binned, profiles = np.zeros((2, *small), np.float32), np.zeros((2, 2, rows), np.float32)
        sums, full_count = np.zeros((4, cols), np.float32), np.zeros(small[1], np.float32)
        sums[1] = _FOUR
        add_binned(sums[1], step, full_count)
        quiet = np.zeros((2, -(-cols // _BLOCK)), np.int64)
        arrays = (*binned, *profiles, sums, np.zeros(cols, np.float32), full_count, quiet)
        return cls(step, split, facts, arrays, np.zeros(3, np.int64))

    def finish(self) -> Scan:
        """The scan, once all rows are in."""
        mean, count, row_mean, row_count, sums, saturated, _, quiet = self.arrays
        col_count = sums[3].copy()
        for part, rows in zip(np.split(col_count, [self.split]), quiet, strict=True):
            part += np.repeat(rows, _BLOCK)[: part.size]
        col_mean = sums[2] / np.maximum(col_count, _ONE)
        columns = col_mean, col_count, saturated
        return Scan(self.step, mean, count, row_mean, row_count, *columns, *self.numbers.tolist())


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
    sums = Sums.begin((rows, cols), level=level, noise=noise, split=split, saturation=saturation)
    hidden = masked.view(np.uint8)
    scan_rows(pixels, hidden, 0, rows, sums.step, sums.split, sums.facts, sums.arrays, sums.numbers)
    return sums.finish()
