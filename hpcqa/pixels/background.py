"""The background without sources: both found on the working image, and averaged into the cells of a view.

Everything here is compiled (numba) and releases the GIL. Shapes: r, c working pixels; see scan.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.pixels.kernels import fast_kernel, kernel
from hpcqa.pixels.scan import Scan, add_binned
from hpcqa.pixels.sky import clipped, clipped_level

MESH = 32  # working pixels along a side of a cell of the local background
SOURCE_SIGMA = 3.0
GROW_PIXELS = 7
# A mask of sources that covers more than this share of the CCD is of no use (crowding, bright sky structure).
MOST_SOURCES = 0.5
_ZERO, _ONE, _NAN = np.float32(0), np.float32(1), np.float32(np.nan)

# The local background and the mask of sources -------------------------------------------------------------------------


@kernel
def _gather(mean: np.ndarray, count: np.ndarray, enough: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of the working pixels of each cell, (cells, n) with infinity at the end, and how many there are."""
    rows, cols = mean.shape
    down, across = -(-rows // cell), -(-cols // cell)
    values = np.full((down * across, (cell // 2 + 1) ** 2), np.float32(np.inf))
    numbers = np.zeros(down * across, np.int64)
    for i in range(0, rows, 2):
        for m in range(across):
            place = i // cell * across + m
            number = numbers[place]
            # Every second column, beginning with the second one in every other row that is taken.
            for j in range(m * cell + (i // 2 + m * cell) % 2, min((m + 1) * cell, cols), 2):
                values[place, number] = mean[i, j]
                number += 1 if count[i, j] >= enough else 0
            numbers[place] = number
    for place in range(numbers.size):
        values[place, numbers[place] :] = np.float32(np.inf)
    return values, numbers


@kernel
def _clip_cells(ordered: np.ndarray, numbers: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    levels, sigmas = np.full(numbers.size, np.float32(level)), np.full(numbers.size, np.float32(np.nan))
    for k in range(numbers.size):
        if numbers[k] >= 8:
            levels[k], sigmas[k] = clipped(ordered[k], numbers[k])
    return levels, sigmas


def _mesh(scanned: Scan, enough: int, cell: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Clipped median and sigma of each cell (cell x cell binned pixels); `level` where too few pixels are valid."""
    rows, cols = scanned.mean.shape
    values, numbers = _gather(scanned.mean, scanned.count, enough, cell)
    # numpy sorts many short rows an order faster than compiled loops do.
    levels, sigmas = _clip_cells(np.sort(values, axis=1), numbers, level)
    shape = -(-rows // cell), -(-cols // cell)
    return levels.reshape(shape), sigmas.reshape(shape)


@kernel
def _without_bumps(mesh: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The mesh with cells that stand out from the median of nine by two usual sigmas (galaxies, haloes) set to it."""
    usual = np.nanmedian(sigma)
    limit = 2.0 * usual if np.isfinite(usual) else np.inf
    smooth = mesh.copy()
    for k in range(mesh.shape[0]):
        for m in range(mesh.shape[1]):
            middle = np.median(mesh[max(k - 1, 0) : k + 2, max(m - 1, 0) : m + 2].copy().ravel())
            if abs(mesh[k, m] - middle) > limit:
                smooth[k, m] = middle
    return smooth


@kernel
def _residual(mean: np.ndarray, count: np.ndarray, mesh: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """The binned image less the local background (0 where nothing is valid), and that background.

    The mesh is interpolated between the centres of its cells: along its rows first, once for each of them.
    """
    rows, cols = mean.shape
    lines = np.empty((mesh.shape[0], cols), np.float32)
    for j in range(cols):
        left, right, part = _between(j, cell, mesh.shape[1])
        for k in range(mesh.shape[0]):
            lines[k, j] = mesh[k, left] * (_ONE - part) + mesh[k, right] * part
    out, background = np.empty_like(mean), np.empty_like(mean)
    for i in range(rows):
        top, down, part = _between(i, cell, mesh.shape[0])
        _residual_row(mean[i], count[i], lines[top], lines[down], part, out[i], background[i])
    return out, background


@kernel
def _between(place: int, cell: int, num: int) -> tuple[int, int, np.float32]:
    """The two cells whose centres a pixel lies between, and how far it is from the first to the second."""
    x = min(max((place + 0.5) / cell - 0.5, 0.0), float(num - 1))
    first = min(int(x), max(num - 2, 0))
    return first, min(first + 1, num - 1), np.float32(x - first)


@fast_kernel
def _residual_row(
    mean: np.ndarray,
    count: np.ndarray,
    above: np.ndarray,
    below: np.ndarray,
    part: np.float32,
    out: np.ndarray,
    background: np.ndarray,
) -> None:
    for j in range(mean.shape[0]):
        local = above[j] * (_ONE - part) + below[j] * part
        background[j] = local
        out[j] = mean[j] - local if count[j] > 0 else _ZERO


@fast_kernel
def box_mean(image: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a square of 2 radius + 1 pixels; zeros outside the image."""
    rows, cols = image.shape
    width = 2 * radius + 1
    lines = np.empty_like(image)
    for i in range(rows):
        for j in range(cols):
            lines[i, j] = image[i, j]
        for shift in range(1, radius + 1):
            for j in range(shift, cols):
                lines[i, j] += image[i, j - shift]
            for j in range(cols - shift):
                lines[i, j] += image[i, j + shift]
    out = np.zeros_like(image)
    scale = np.float32(1.0 / (width * width))
    for i in range(rows):
        for k in range(max(i - radius, 0), min(i + radius + 1, rows)):
            for j in range(cols):
                out[i, j] += lines[k, j] * scale
    return out


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within a square of `radius` around a set pixel; bool."""
    return _grow(mask.view(np.uint8), radius).view(np.bool_)


@kernel
def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    rows, cols = mask.shape
    lines = mask.copy()
    for i in range(rows):
        for shift in range(1, min(radius, cols - 1) + 1):
            _join(lines[i, shift:], mask[i, : cols - shift])
            _join(lines[i, : cols - shift], mask[i, shift:])
    out = lines.copy()
    for i in range(rows):
        for k in range(max(i - radius, 0), min(i + radius + 1, rows)):
            if k != i:
                _join(out[i], lines[k])
    return out


@kernel
def _join(line: np.ndarray, other: np.ndarray) -> None:
    for j in range(line.shape[0]):
        line[j] |= other[j]


@dataclass(frozen=True)
class Sources:
    """The working image split into background and sources.

    Attributes:
        residual: (r, c) float32, less the local background, ADU.
        smooth: (r, c) float32, the residual smoothed as the sources were found.
        smooth_noise: its noise, ADU.
        found: (r, c) bool, detected pixels.
        near: (r, c) bool, detected pixels grown, less far where they would cover more than half of the image, and
            nothing if they cover it without growing.
        crowded: whether they are grown less far than elsewhere.
        local: (r, c) float32, local background, ADU.
    """

    residual: np.ndarray
    smooth: np.ndarray
    smooth_noise: float
    found: np.ndarray
    near: np.ndarray
    crowded: bool
    local: np.ndarray


@kernel
def _lower_sigma(smooth: np.ndarray, count: np.ndarray, enough: int) -> float:
    """Noise of the smoothed image from what lies below its clipped median, where no star is; 0 unknown."""
    row, col, step = (1, 2, 4) if smooth.size > 1 << 16 else (0, 0, 1)
    some, behind = smooth[row::step, col::step], count[row::step, col::step]
    values = np.empty(some.size + 1, smooth.dtype)
    num = 0
    for i in range(some.shape[0]):
        for j in range(some.shape[1]):
            values[num] = some[i, j]
            num += behind[i, j] >= enough
    return clipped_level(values[:num])[1] if num >= 8 else 0.0


@kernel
def _above(smooth: np.ndarray, count: np.ndarray, threshold: float) -> np.ndarray:
    found = np.zeros(smooth.shape, np.bool_)
    for i in range(smooth.shape[0]):
        for j in range(smooth.shape[1]):
            found[i, j] = smooth[i, j] > threshold and count[i, j] > 0
    return found


def find_sources(scanned: Scan, *, level: float) -> Sources:
    """Local background and mask of sources of a scanned image.

    3 sigma on an image smoothed over about 5 native pixels (12 on a binned one), grown by 7 native pixels.
    """
    step = scanned.step
    enough = max(1, step * step // 2)
    mesh = _without_bumps(*_mesh(scanned, enough, MESH, level))
    residual, local = _residual(scanned.mean, scanned.count, mesh, MESH)
    smooth = box_mean(residual, 2 if step <= 2 else 1)
    noise = _lower_sigma(smooth, scanned.count, enough)
    found = _above(smooth, scanned.count, max(SOURCE_SIGMA * noise, 1e-6 * max(abs(level), 1e-3)))
    near, crowded = _grown(found, max(1, -(-GROW_PIXELS // step)))
    return Sources(residual, smooth, float(noise), found, near, crowded, local)


def _grown(found: np.ndarray, pixels: int) -> tuple[np.ndarray, bool]:
    """Detected pixels grown as far as leaves half of the image, and whether that is less far than asked."""
    for reach in range(pixels, 0, -1):
        near = grow(found, reach)
        if np.count_nonzero(near) <= MOST_SOURCES * near.size:
            return near, reach < pixels
    return found if np.count_nonzero(found) <= MOST_SOURCES * found.size else np.zeros_like(found), True


# Cells ----------------------------------------------------------------------------------------------------------------


def cell_side(small: tuple[int, int], view: tuple[int, int]) -> int:
    """The smallest whole number of working pixels along a cell that makes the image fit into the view."""
    return max(1, -(-small[0] // view[0]), -(-small[1] // view[1]))


@fast_kernel
def _weigh(mean: np.ndarray, count: np.ndarray, near: np.ndarray, level: np.float32, lines: np.ndarray) -> None:
    """Sums and counts of one working row added to lines: all pixels (0, 1), those not near a source (2, 3)."""
    for j in range(mean.shape[0]):
        part = (mean[j] - level) * count[j]
        lines[0, j] += part
        lines[1, j] += count[j]
        lines[2, j] += _ZERO if near[j] else part
        lines[3, j] += _ZERO if near[j] else count[j]


@kernel
def cells(
    mean: np.ndarray, count: np.ndarray, near: np.ndarray, level: float, side: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the valid pixels in each cell of side x side working pixels, and how many native pixels it holds.

    Args:
        mean, count: (r, c) float32 of a scan.
        near: (r, c) bool, pixels near a source.
        level: about that of the sky; sums are taken about it, so that they stay exact in float32.
        side: working pixels along a cell.
        shape: (H, W) of the result.

    Returns:
        (2, H, W) float32, over all pixels and over those not near a source, NaN where nothing is left or beyond the
        image; (2, H, W) float32, native pixels behind each.
    """
    sums = np.zeros((4, shape[0], shape[1]), np.float32)
    rows, cols = mean.shape
    lines = np.zeros((4, cols), np.float32)
    reference = np.float32(level)
    for i in range(rows):
        _weigh(mean[i], count[i], near[i], reference, lines)
        if i % side == side - 1 or i == rows - 1:
            for which in range(4):
                add_binned(lines[which], side, sums[which, i // side])
            lines[:] = 0
    out = np.empty((2, shape[0], shape[1]), np.float32)
    counts = np.empty((2, shape[0], shape[1]), np.float32)
    for which in range(2):
        counts[which] = sums[2 * which + 1]
        for k in range(shape[0]):
            _divide(sums[2 * which, k], counts[which, k], reference, out[which, k])
    return out, counts


@fast_kernel
def _divide(sums: np.ndarray, counts: np.ndarray, reference: np.float32, out: np.ndarray) -> None:
    for m in range(out.shape[0]):
        known = counts[m] > 0
        out[m] = sums[m] / (counts[m] if known else _ONE) + reference if known else _NAN
