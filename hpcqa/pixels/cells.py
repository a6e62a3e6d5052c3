"""The working image averaged into the cells of a view: over all pixels, and over those that are not near a source.

Everything here is compiled (numba) and releases the GIL. Shapes: r, c working pixels; see scan.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.scanrows import add_binned

_ZERO, _ONE, _NAN = np.float32(0), np.float32(1), np.float32(np.nan)


def cell_side(small: tuple[int, int], view: tuple[int, int]) -> int:
    """The smallest whole number of working pixels along a cell that makes the image fit into the view."""
    return max(1, -(-small[0] // view[0]), -(-small[1] // view[1]))


@fast_kernel
def _weigh(mean: np.ndarray, count: np.ndarray, level: np.float32, line: np.ndarray) -> None:
    """Sums of all pixels of one working row added to a line."""
    for j in range(mean.shape[0]):
        line[j] += (mean[j] - level) * np.float32(count[j])


@fast_kernel
def _weigh_far(mean: np.ndarray, count: np.ndarray, near: np.ndarray, level: np.float32, line: np.ndarray) -> None:
    """As `_weigh`, of those that are not near a source."""
    for j in range(mean.shape[0]):
        line[j] += (mean[j] - level) * np.float32(count[j]) if near[j] == 0 else _ZERO


@fast_kernel
def _all_equal(count: np.ndarray, usual: np.ndarray) -> Any:
    differ = np.uint8(0)
    for j in range(count.shape[0]):
        differ |= np.uint8(count[j] != usual[j])
    return differ == 0


@fast_kernel
def _weigh_usual(
    mean: np.ndarray,
    usual: np.ndarray,
    near: np.ndarray,
    level: np.float32,
    is_first: bool,
    line: np.ndarray,
    far: np.ndarray,
) -> None:
    """`_weigh` and `_weigh_far` of a row with the counts of most rows, float32: small ones take long to convert.

    The first row of a row of cells sets the lines.
    """
    for j in range(mean.shape[0]):
        value = (mean[j] - level) * usual[j]
        less = value if near[j] == 0 else _ZERO
        line[j] = value if is_first else line[j] + value
        far[j] = less if is_first else far[j] + less


@fast_kernel
def _count_usual(usual: np.ndarray, near: np.ndarray, is_first: bool, line: np.ndarray, far: np.ndarray) -> None:
    for j in range(usual.shape[0]):
        less = usual[j] if near[j] == 0 else _ZERO
        line[j] = usual[j] if is_first else line[j] + usual[j]
        far[j] = less if is_first else far[j] + less


@fast_kernel
def _count(count: np.ndarray, line: np.ndarray) -> None:
    for j in range(count.shape[0]):
        line[j] += np.float32(count[j])


@fast_kernel
def _count_far(count: np.ndarray, near: np.ndarray, line: np.ndarray) -> None:
    for j in range(count.shape[0]):
        line[j] += np.float32(count[j]) if near[j] == 0 else _ZERO


@kernel
def cells(
    mean: np.ndarray, count: np.ndarray, near: np.ndarray, level: float, side: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the valid pixels in each cell of side x side working pixels, and how many native pixels it holds.

    Args:
        mean, count: (r, c) of a scan.
        near: (r, c) bool, pixels near a source.
        level: about that of the sky; sums are taken about it, so that they stay exact in float32.
        side: working pixels along a cell.
        shape: (H, W) of the result.

    Returns:
        (2, H, W) float32, over all pixels and over those not near a source, NaN where nothing is left or beyond the
        image; (2, H, W) float32, native pixels behind each.
    """
    like = len(mean) // 2
    found, lines = _room_for(shape, mean.shape[1])
    _add_cells(mean, count, near, np.float32(level), side, like, count[like].astype(np.float32), lines, found)
    return found


@inner_kernel
def _add_cells(
    mean: np.ndarray,
    count: np.ndarray,
    near: np.ndarray,
    reference: np.float32,
    side: int,
    like: int,
    usual: np.ndarray,
    lines: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
) -> None:
    """Set what `cells` gives; `like` is a row whose count most rows have, `usual` that count, float32."""
    rows = mean.shape[0]
    for i in range(rows):
        # Loop by loop: one over all four lines does not become vector instructions.
        is_first = i % side == 0
        if _all_equal(count[i], count[like]):
            _weigh_usual(mean[i], usual, near[i], reference, is_first, lines[0], lines[2])
            _count_usual(usual, near[i], is_first, lines[1], lines[3])
        else:
            if is_first:
                lines[:] = 0
            _weigh(mean[i], count[i], reference, lines[0])
            _count(count[i], lines[1])
            _weigh_far(mean[i], count[i], near[i], reference, lines[2])
            _count_far(count[i], near[i], lines[3])
        _finish_cells(lines, i, rows, side, reference, found)
    _none_from(-(-rows // side), found)


@kernel
def joined_cells(
    mean: np.ndarray, count: np.ndarray, level: float, factor: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What `cells` gives, from what it gave for cells that are smaller by a whole factor."""
    # What lies beyond the view is beyond the image.
    rows, width = min(mean.shape[1], shape[0] * factor), min(mean.shape[2], shape[1] * factor)
    found, lines = _room_for(shape, width)
    _join_rows(mean, count, np.float32(level), factor, rows, lines, found)
    return found


@inner_kernel
def _join_rows(
    mean: np.ndarray,
    count: np.ndarray,
    reference: np.float32,
    factor: int,
    rows: int,
    lines: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
) -> None:
    width = lines.shape[1]
    for i in range(rows):
        if i % factor == 0:
            lines[:] = 0
        for which in range(2):
            _join_cells(mean[which, i, :width], count[which, i, :width], reference, lines[2 * which])
            _count(count[which, i, :width], lines[2 * which + 1])
        _finish_cells(lines, i, rows, factor, reference, found)
    _none_from(-(-rows // factor), found)


@fast_kernel
def _join_cells(mean: np.ndarray, count: np.ndarray, level: np.float32, line: np.ndarray) -> None:
    for j in range(mean.shape[0]):
        line[j] += (mean[j] - level) * count[j] if count[j] > _ZERO else _ZERO


@kernel
def _room_for(shape: tuple[int, int], cols: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Room for the means and counts of cells, and for the lines, (5, cols), that a row of cells is summed in.

    The lines are sums and counts over all pixels, the same without sources, and room for the sums of the cells.
    """
    found = np.empty((2, shape[0], shape[1]), np.float32), np.empty((2, shape[0], shape[1]), np.float32)
    return found, np.empty((5, cols), np.float32)


@inner_kernel
def _none_from(first: int, found: tuple[np.ndarray, np.ndarray]) -> None:
    """The rows of cells beyond the image."""
    out, counts = found
    for which in range(2):
        for row in range(first, out.shape[1]):
            out[which, row][:] = _NAN
            counts[which, row][:] = 0


@inner_kernel
def _finish_cells(
    lines: np.ndarray,
    row: int,
    rows: int,
    side: int,
    reference: np.float32,
    found: tuple[np.ndarray, np.ndarray],
) -> None:
    """After the last row of a row of cells, its means and counts from the lines; none beyond the image."""
    if row % side != side - 1 and row != rows - 1:
        return
    out, counts = found
    row //= side
    sums = lines[4, : -(-lines.shape[1] // side)]
    for which in range(2):
        sums[:] = 0
        counts[which, row][:] = 0
        out[which, row][:] = _NAN
        add_binned(lines[2 * which], side, sums)
        add_binned(lines[2 * which + 1], side, counts[which, row])
        _divide(sums, counts[which, row], reference, out[which, row])


@fast_kernel
def _divide(sums: np.ndarray, counts: np.ndarray, reference: np.float32, out: np.ndarray) -> None:
    for m in range(sums.shape[0]):
        known = counts[m] > 0
        out[m] = sums[m] / (counts[m] if known else _ONE) + reference if known else _NAN
