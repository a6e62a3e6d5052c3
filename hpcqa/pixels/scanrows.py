"""The compiled pass over the native pixels behind scan.py: rows in, sums of the working image and the profiles out."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.scanblocks import AT_ONCE, BLOCK, FOUR, ONE, ZERO, add_saturated, any_block, four_rows


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
            part = ZERO
            for j in range(k * step, k * step + step):
                part += values[j]
            total[k] += part
    for j in range(whole * step, cols):
        total[whole] += values[j]


@fast_kernel
def _bin_whole(values: np.ndarray, level: np.float32, mean: np.ndarray, count: np.ndarray) -> None:
    """Means and counts of a row of the working image, from the sums of AT_ONCE rows less the level, if all are valid.

    As `add_binned` and `_divide`, in one loop.
    """
    cols = values.shape[0]
    whole = cols // 4
    for k in range(whole):
        total = values[4 * k] + values[4 * k + 1] + values[4 * k + 2] + values[4 * k + 3]
        mean[k] = total * np.float32(1 / 16) + level
        count[k] = 16
    if 4 * whole < cols:
        total = ZERO
        for j in range(4 * whole, cols):
            total += values[j]
        number = 4 * (cols - 4 * whole)
        mean[whole], count[whole] = total / np.float32(number) + level, number


@inner_kernel
def _is_constant(row: np.ndarray) -> bool:
    last = 1
    while last < row.shape[0] and row[last] == row[0]:
        last += 1
    return bool(last >= row.shape[0])


@kernel
def masked_in_rows(masked: np.ndarray) -> np.ndarray:
    """Masked pixels in each row of a mask (R, C), uint8: int32 (R,)."""
    in_row = np.empty(masked.shape[0], np.int32)
    for i in range(masked.shape[0]):
        in_row[i] = _number_masked(masked[i])
    return in_row


@fast_kernel
def _number_masked(row: np.ndarray) -> Any:
    number = np.int32(0)
    for j in range(row.shape[0]):
        number = np.int32(number + np.int32(row[j] != 0))
    return number


@fast_kernel
def _divide(sums: np.ndarray, behind: np.ndarray, level: np.float32, count: np.ndarray) -> None:
    """Sums less the level become means, 0 where nothing is behind them; the numbers behind them become counts."""
    for k in range(sums.size):
        known = behind[k] > 0
        sums[k] = sums[k] / (behind[k] if known else ONE) + level if known else ZERO
        count[k] = np.int32(behind[k])


@kernel
def column_means(sums: np.ndarray, quiet: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and numbers of the pixels within the cut in each column, float32 (C,), from what `scan_rows` added up."""
    cols = sums.shape[1]
    means, numbers = np.empty(cols, np.float32), np.empty(cols, np.float32)
    for side in range(2):
        first, last = (0, split) if side == 0 else (split, cols)
        for j in range(first, last):
            number = sums[3, j] + np.float32(quiet[side, (j - first) // BLOCK])
            means[j], numbers[j] = sums[2, j] / max(number, ONE), number
    return means, numbers


@inner_kernel
def scan_rows(
    pixels: np.ndarray,
    masked: np.ndarray,
    in_row: np.ndarray,
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
        in_row: masked pixels in each row.
        last: the end of a row of the working image, or of the image.
        facts: level of the sky, cut about it, saturation.
        arrays, numbers: as in `Sums`.
    """
    mean, count, row_mean, row_count, sums, saturated, quiet, behind, room, hidden = arrays
    level, cut, full = facts
    cols = pixels.shape[1]
    totals = room[0]
    for begin in range(first, last, step):
        stop = min(begin + step, last)
        place = begin // step
        num_masked = in_row[begin:stop].sum()
        numbers[1] += num_masked
        fast = step == AT_ONCE and stop - begin == step
        whole = fast
        if not fast:
            sums[:2] = 0
            add_saturated(pixels[begin], full, np.float32(step), saturated)
        for side in range(2):
            a, b = (0, split) if side == 0 else (split, cols)
            for i in range(begin, stop, AT_ONCE):
                num = min(AT_ONCE, stop - i)
                if fast:
                    blocks = quiet[side, : -(-(b - a) // BLOCK)]
                    has_mask = num_masked > 0
                    good = four_rows(pixels, masked, has_mask, i, a, b, facts, sums, blocks, saturated, room)
                    whole = whole and good
                else:
                    totals[:] = 0
                    any_block(pixels, masked, (i, i + num), a, b, (level, cut), sums, totals, hidden)
                for k in range(num):
                    row_mean[side, i + k] = totals[0, k] / totals[1, k] if totals[1, k] > 0 else ZERO
                    row_count[side, i + k] = totals[1, k]
        for i in range(begin, stop):
            numbers[0] += 1 if _is_constant(pixels[i]) else 0
        if whole:
            _bin_whole(sums[0], level, mean[place], count[place])
            numbers[2] += (stop - begin) * cols
            continue
        mean[place] = 0
        behind[:] = 0
        add_binned(sums[0], step, mean[place])
        add_binned(sums[1], step, behind)
        sums[1] = FOUR
        # Exact in float32: a row of the working image has less than 2**24 pixels behind it.
        numbers[2] += int(behind.sum())
        _divide(mean[place], behind, level, count[place])
