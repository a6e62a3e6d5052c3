"""Sums over blocks of native pixels: the compiled loops under the pass over the rows (scanrows.py).

Four rows are taken at once, because every sum is then loaded and stored once for four pixels; and block by block of
columns, because nearly all blocks have neither a star nor a fault nor a mask, and take a third of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel
from hpcqa.pixels.floatbits import size_bits

AT_ONCE = 4  # rows that one turn of the pass takes; written out in the loops
BLOCK = 128  # columns that are looked at together for stars and faults
# A finite number is one whose absolute value is at most the largest (false for NaN). Counts are float32 too, exact up
# to 2**24, so that the loops use one vector width.
_LARGEST = np.float32(np.finfo(np.float32).max)
ZERO, ONE, FOUR, _NOWHERE = np.float32(0), np.float32(1), np.float32(4), np.float32(np.inf)


@fast_kernel
def _add_block(
    pixels: np.ndarray, row: int, start: int, width: int, level: np.float32, sums: np.ndarray, totals: np.ndarray
) -> Any:
    """The sums of some columns of four rows, as if all of their pixels were valid.

    Args:
        level: of the sky.
        sums: (4, C), the first row set: the pixels less the sky.
        totals: (2, 4) set, as by `_near_block`, as if there were no star.

    Returns:
        `size_bits` of the pixel that is farthest from the sky.
    """
    total0 = total1 = total2 = total3 = ZERO
    farthest = np.int32(0)
    i = np.uint64(row)
    for j in range(width):
        # Unsigned indices spare the test for negative ones.
        k = np.uint64(start) + np.uint64(j)
        one, two = pixels[i, k] - level, pixels[i + np.uint64(1), k] - level
        three, last = pixels[i + np.uint64(2), k] - level, pixels[i + np.uint64(3), k] - level
        # Bits, because the largest of floats that may be NaN takes no vector instructions.
        size0, size1, size2, size3 = size_bits(one), size_bits(two), size_bits(three), size_bits(last)
        size0 = size0 if size0 > size1 else size1
        size2 = size2 if size2 > size3 else size3
        size0 = size0 if size0 > size2 else size2
        farthest = farthest if farthest > size0 else size0
        sums[np.uint64(0), k] = (one + two) + (three + last)
        total0, total1, total2, total3 = total0 + one, total1 + two, total2 + three, total3 + last
    totals[0, 0], totals[0, 1], totals[0, 2], totals[0, 3] = total0, total1, total2, total3
    totals[1] = np.float32(width)
    return farthest


@fast_kernel
def _near_block(
    pixels: np.ndarray,
    row: int,
    start: int,
    width: int,
    facts: tuple[np.float32, np.float32],
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """The sums of those pixels of a block that lie within the cut.

    Args:
        facts: level of the sky, cut about it.
        sums: (4, C), the last two rows added to: the pixels less the sky, and their number.
        totals: (2, 4) set: the sum and the number for each row.
    """
    level, cut = facts
    total0 = total1 = total2 = total3 = ZERO
    num0 = num1 = num2 = num3 = ZERO
    i = np.uint64(row)
    for j in range(width):
        k = np.uint64(start) + np.uint64(j)
        one, two = pixels[i, k] - level, pixels[i + np.uint64(1), k] - level
        three, last = pixels[i + np.uint64(2), k] - level, pixels[i + np.uint64(3), k] - level
        near0, near1, near2, near3 = abs(one) <= cut, abs(two) <= cut, abs(three) <= cut, abs(last) <= cut
        less0, less1 = one if near0 else ZERO, two if near1 else ZERO
        less2, less3 = three if near2 else ZERO, last if near3 else ZERO
        one0, one1 = ONE if near0 else ZERO, ONE if near1 else ZERO
        one2, one3 = ONE if near2 else ZERO, ONE if near3 else ZERO
        sums[np.uint64(2), k] += (less0 + less1) + (less2 + less3)
        sums[np.uint64(3), k] += (one0 + one1) + (one2 + one3)
        total0, total1, total2, total3 = total0 + less0, total1 + less1, total2 + less2, total3 + less3
        num0, num1, num2, num3 = num0 + one0, num1 + one1, num2 + one2, num3 + one3
    totals[0, 0], totals[0, 1], totals[0, 2], totals[0, 3] = total0, total1, total2, total3
    totals[1, 0], totals[1, 1], totals[1, 2], totals[1, 3] = num0, num1, num2, num3


@fast_kernel
def _valid_block(
    pixels: np.ndarray,
    masked: np.ndarray,
    row: int,
    start: int,
    width: int,
    facts: tuple[np.float32, np.float32],
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """The sums of the valid pixels of a block of which not all are.

    Args:
        facts: level of the sky, cut about it.
        sums: (4, C), the first two rows set, the others added to: as for `_add_any`.
        totals: (2, 4) set, as by `_near_block`.
    """
    level, cut = facts
    total0 = total1 = total2 = total3 = ZERO
    num0 = num1 = num2 = num3 = ZERO
    i = np.uint64(row)
    for j in range(width):
        k = np.uint64(start) + np.uint64(j)
        less0, less1 = pixels[i, k] - level, pixels[i + np.uint64(1), k] - level
        less2, less3 = pixels[i + np.uint64(2), k] - level, pixels[i + np.uint64(3), k] - level
        # Left out: farther from the sky than any number.
        less0 = less0 if masked[i, k] == 0 else _NOWHERE
        less1 = less1 if masked[i + np.uint64(1), k] == 0 else _NOWHERE
        less2 = less2 if masked[i + np.uint64(2), k] == 0 else _NOWHERE
        less3 = less3 if masked[i + np.uint64(3), k] == 0 else _NOWHERE
        good0, good1, good2, good3 = (
            abs(less0) <= _LARGEST, abs(less1) <= _LARGEST, abs(less2) <= _LARGEST, abs(less3) <= _LARGEST
        )  # fmt: skip
        sums[np.uint64(0), k] = ((less0 if good0 else ZERO) + (less1 if good1 else ZERO)) + (
            (less2 if good2 else ZERO) + (less3 if good3 else ZERO)
        )
        sums[np.uint64(1), k] = ((ONE if good0 else ZERO) + (ONE if good1 else ZERO)) + (
            (ONE if good2 else ZERO) + (ONE if good3 else ZERO)
        )
        near0, near1, near2, near3 = abs(less0) <= cut, abs(less1) <= cut, abs(less2) <= cut, abs(less3) <= cut
        less0, less1 = less0 if near0 else ZERO, less1 if near1 else ZERO
        less2, less3 = less2 if near2 else ZERO, less3 if near3 else ZERO
        one0, one1 = ONE if near0 else ZERO, ONE if near1 else ZERO
        one2, one3 = ONE if near2 else ZERO, ONE if near3 else ZERO
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
    total0 = total1 = total2 = total3 = ZERO
    number0 = number1 = number2 = number3 = ZERO
    for j in range(row0.shape[0]):
        less0, less1, less2, less3 = row0[j] - level, row1[j] - level, row2[j] - level, row3[j] - level
        good0 = (abs(less0) <= _LARGEST) & (mask0[j] == 0)
        good1 = (abs(less1) <= _LARGEST) & (mask1[j] == 0)
        good2 = (abs(less2) <= _LARGEST) & (mask2[j] == 0)
        good3 = (abs(less3) <= _LARGEST) & (mask3[j] == 0)
        less0, one0 = less0 if good0 else ZERO, ONE if good0 else ZERO
        less1, one1 = less1 if good1 else ZERO, ONE if good1 else ZERO
        less2, one2 = less2 if good2 else ZERO, ONE if good2 else ZERO
        less3, one3 = less3 if good3 else ZERO, ONE if good3 else ZERO
        valid[j] += (less0 + less1) + (less2 + less3)
        num_valid[j] += (one0 + one1) + (one2 + one3)
        near0, near1, near2, near3 = abs(less0) <= cut, abs(less1) <= cut, abs(less2) <= cut, abs(less3) <= cut
        less0, one0 = less0 if near0 else ZERO, one0 if near0 else ZERO
        less1, one1 = less1 if near1 else ZERO, one1 if near1 else ZERO
        less2, one2 = less2 if near2 else ZERO, one2 if near2 else ZERO
        less3, one3 = less3 if near3 else ZERO, one3 if near3 else ZERO
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


@inner_kernel
def any_block(
    pixels: np.ndarray,
    masked: np.ndarray,
    rows: tuple[int, int],
    start: int,
    stop: int,
    facts: tuple[np.float32, np.float32],
    sums: np.ndarray,
    totals: np.ndarray,
    hidden: np.ndarray,
) -> None:
    """`_add_any` for the columns start to stop of one to four rows, with a mask or with what is no number.

    Where fewer than four rows are left, the last stands in, masked by `hidden`, for those that are missing.
    """
    first, last = rows
    level, cut = facts
    i1, i2, i3 = min(first + 1, last - 1), min(first + 2, last - 1), min(first + 3, last - 1)
    a, b = start, stop
    hidden = hidden[a:b]
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


@inner_kernel
def four_rows(
    pixels: np.ndarray,
    masked: np.ndarray,
    has_mask: bool,
    row: int,
    start: int,
    stop: int,
    facts: tuple[np.float32, np.float32, np.float32],
    sums: np.ndarray,
    quiet: np.ndarray,
    saturated: np.ndarray,
    room: np.ndarray,
) -> bool:
    """Columns start to stop of four rows, block by block; whether all of their pixels are valid.

    Args:
        has_mask: whether a pixel of these rows is masked.
        sums: (4, C): of these rows (set), then of all rows (added to): as for `_add_any`, but the second row is as it
            was where all four pixels of a column are valid.
        quiet: (blocks,) added to: rows of a block that are to be added to the last row of the sums.
        room: (2, 2, 4), the first set: sum and number of the pixels within the cut in each row.
    """
    level, cut, full = facts
    totals, part = room[0], room[1]
    totals[:] = 0
    whole = True
    for block in range(quiet.size):
        a, b = start + block * BLOCK, min(start + block * BLOCK + BLOCK, stop)
        good = not (has_mask and _any_masked(masked[row : row + AT_ONCE, a:b]))
        is_quiet = False
        if good:
            # The width that nearly all blocks have is written out, for the compiler.
            if b - a == BLOCK:
                farthest = _add_block(pixels, row, a, BLOCK, level, sums, part)
            else:
                farthest = _add_block(pixels, row, a, b - a, level, sums, part)
            is_quiet, good = farthest <= size_bits(cut), farthest <= size_bits(_LARGEST)
        if is_quiet:
            _keep_block(a, b - a, sums)
            quiet[block] += AT_ONCE
        elif good:
            _near_block(pixels, row, a, b - a, (level, cut), sums, part)
        else:
            whole = False
            _valid_block(pixels, masked, row, a, b - a, (level, cut), sums, part)
        if not is_quiet or level + cut >= full:
            add_saturated(pixels[row, a:b], full, np.float32(AT_ONCE), saturated[a:b])
        for k in range(AT_ONCE):
            totals[0, k] += part[0, k]
            totals[1, k] += part[1, k]
    return whole


@fast_kernel
def _any_masked(masked: np.ndarray) -> Any:
    found = np.uint8(0)
    for i in range(masked.shape[0]):
        for j in range(masked.shape[1]):
            found |= masked[i, j]
    return found != 0


@fast_kernel
def add_saturated(row: np.ndarray, full: np.float32, every: np.float32, saturated: np.ndarray) -> None:
    for j in range(row.shape[0]):
        saturated[j] += every if row[j] >= full else ZERO
