"""The background without sources, both found on the working image.

Everything here is compiled (numba) and releases the GIL. Shapes: r, c working pixels; see scan.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import clipped, clipped_level

MESH = 32  # working pixels along a side of a cell of the local background
SOURCE_SIGMA = 3.0
GROW_PIXELS = 7
# A mask of sources that covers more than this share of the CCD is of no use (crowding, bright sky structure).
MOST_SOURCES = 0.5
_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def _gather(mean: np.ndarray, count: np.ndarray, enough: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of the working pixels of each cell, (cells, n) with infinity at the end, and how many there are."""
    rows, cols = mean.shape
    down, across = -(-rows // cell), -(-cols // cell)
    values = np.empty((down * across, (cell // 2 + 1) ** 2), np.float32)
    numbers = np.zeros(down * across, np.int64)
    for i in range(0, rows, 2):
        whole = _num_below(count[i], enough) == 0
        for m in range(across):
            place = i // cell * across + m
            number = numbers[place]
            # Every second column, beginning with the second one in every other row that is taken.
            first, last = m * cell + (i // 2 + m * cell) % 2, min((m + 1) * cell, cols)
            if whole:
                more = (last - first + 1) // 2
                _every_second(mean[i, first:last], values[place, number : number + more])
                number += more
            else:
                for j in range(first, last, 2):
                    values[place, number] = mean[i, j]
                    number += 1 if count[i, j] >= enough else 0
            numbers[place] = number
    for place in range(numbers.size):
        values[place, numbers[place] :] = np.float32(np.inf)
    return values, numbers


@fast_kernel
def _every_second(values: np.ndarray, out: np.ndarray) -> None:
    for k in range(out.shape[0]):
        out[k] = values[2 * k]


@fast_kernel
def _num_below(counts: np.ndarray, limit: int) -> Any:
    num = np.int32(0)
    for k in range(counts.shape[0]):
        num = np.int32(num + np.int32(np.int32(counts[k]) < np.int32(limit)))
    return num


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
    values.sort(axis=1)
    levels, sigmas = _clip_cells(values, numbers, level)
    shape = -(-rows // cell), -(-cols // cell)
    return levels.reshape(shape), sigmas.reshape(shape)


@kernel
def _without_bumps(mesh: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The mesh with cells that stand out from the median of nine by two usual sigmas (galaxies, haloes) set to it."""
    usual = np.nanmedian(sigma)
    limit = 2.0 * usual if np.isfinite(usual) else np.inf
    smooth = mesh.copy()
    nine = np.empty(9, mesh.dtype)
    for k in range(mesh.shape[0]):
        for m in range(mesh.shape[1]):
            middle = _middle(mesh[max(k - 1, 0) : k + 2, max(m - 1, 0) : m + 2], nine)
            if abs(mesh[k, m] - middle) > limit:
                smooth[k, m] = middle
    return smooth


@kernel
def _middle(cells: np.ndarray, ordered: np.ndarray) -> Any:
    """Median of a few cells; `ordered` is room for them."""
    num = 0
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            place = num
            while place > 0 and ordered[place - 1] > cells[i, j]:
                ordered[place] = ordered[place - 1]
                place -= 1
            ordered[place] = cells[i, j]
            num += 1
    return np.float32(0.5) * (ordered[(num - 1) // 2] + ordered[num // 2])


@kernel
def _smooth_residual(mean: np.ndarray, count: np.ndarray, mesh: np.ndarray, cell: int, radius: int) -> np.ndarray:
    """The working image less the local background (0 where nothing is valid), averaged over squares.

    The squares have 2 radius + 1 pixels along a side, and zeros outside of the image. In one pass, of which only the
    result is written to memory.
    """
    cols = mean.shape[1]
    out = np.empty_like(mean)
    room = np.zeros((2 * radius + 1, cols), np.float32), np.zeros(cols + 2 * radius, np.float32)
    _smooth_rows(mean, count, _along_rows(mesh, cell, cols), cell, radius, room, out)
    return out


@inner_kernel
def _smooth_rows(
    mean: np.ndarray,
    count: np.ndarray,
    lines: np.ndarray,
    cell: int,
    radius: int,
    room: tuple[np.ndarray, np.ndarray],
    out: np.ndarray,
) -> None:
    """`_smooth_residual` from the mesh along its rows; room, zeros: (2 radius + 1, c) and (c + 2 radius,)."""
    rows, cols = mean.shape
    kept, wide = room
    for i in range(rows + radius):
        place = kept[i % (2 * radius + 1)]
        if i < rows:
            top, down, part = _between(i, cell, lines.shape[0])
            _residual_row(mean[i], count[i], lines[top], lines[down], part, wide[radius : radius + cols])
            _add_shifted(wide, radius, place)
        else:
            place[:] = 0
        if i >= radius:
            _add_rows(kept, np.float32(1.0 / (2 * radius + 1) ** 2), out[i - radius])


@kernel
def _along_rows(mesh: np.ndarray, cell: int, cols: int) -> np.ndarray:
    """The mesh interpolated between the centres of its cells, along its rows."""
    lines = np.empty((mesh.shape[0], cols), np.float32)
    for j in range(cols):
        left, right, part = _between(j, cell, mesh.shape[1])
        for k in range(mesh.shape[0]):
            lines[k, j] = mesh[k, left] * (_ONE - part) + mesh[k, right] * part
    return lines


@kernel
def _local_at(mesh: np.ndarray, cell: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The mesh interpolated at working pixels: (n,) float64, ADU."""
    out = np.empty(rows.size)
    for k in range(rows.size):
        top, down, part_row = _between(rows[k], cell, mesh.shape[0])
        left, right, part = _between(cols[k], cell, mesh.shape[1])
        above = mesh[top, left] * (_ONE - part) + mesh[top, right] * part
        below = mesh[down, left] * (_ONE - part) + mesh[down, right] * part
        out[k] = above * (_ONE - part_row) + below * part_row
    return out


@inner_kernel
def _between(place: int, cell: int, num: int) -> tuple[int, int, np.float32]:
    """The two cells whose centres a pixel lies between, and how far it is from the first to the second."""
    x = min(max((place + 0.5) / cell - 0.5, 0.0), float(num - 1))
    first = min(int(x), max(num - 2, 0))
    return first, min(first + 1, num - 1), np.float32(x - first)


@fast_kernel
def _residual_row(
    mean: np.ndarray, count: np.ndarray, above: np.ndarray, below: np.ndarray, part: np.float32, out: np.ndarray
) -> None:
    for j in range(out.shape[0]):
        out[j] = mean[j] - (above[j] * (_ONE - part) + below[j] * part) if count[j] > 0 else _ZERO


@fast_kernel
def _add_shifted(wide: np.ndarray, radius: int, out: np.ndarray) -> None:
    """Sums over 2 radius + 1 neighbours of a line with borders; the radius is 1 or 2."""
    if radius == 1:
        for j in range(out.shape[0]):
            out[j] = wide[j] + wide[j + 1] + wide[j + 2]
    else:
        for j in range(out.shape[0]):
            out[j] = (wide[j] + wide[j + 1]) + (wide[j + 2] + wide[j + 3]) + wide[j + 4]


@fast_kernel
def _add_rows(kept: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """The sum of three or five rows, scaled."""
    if kept.shape[0] == 3:
        for j in range(out.shape[0]):
            out[j] = (kept[0, j] + kept[1, j] + kept[2, j]) * scale
    else:
        for j in range(out.shape[0]):
            out[j] = ((kept[0, j] + kept[1, j]) + (kept[2, j] + kept[3, j]) + kept[4, j]) * scale


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


@inner_kernel
def _join(line: np.ndarray, other: np.ndarray) -> None:
    for j in range(line.shape[0]):
        line[j] |= other[j]


@dataclass(frozen=True)
class Sources:
    """The working image split into background and sources.

    Attributes:
        smooth: (r, c) float32, the working image less the local background, smoothed as the sources were found, ADU.
        smooth_noise: its noise, ADU.
        found: (r, c) bool, detected pixels.
        near: (r, c) bool, detected pixels grown, less far where they would cover more than half of the image, and
            nothing if they cover it without growing.
        crowded: whether they are grown less far than elsewhere.
        mesh: float32, the local background in cells of MESH x MESH working pixels, ADU.
    """

    smooth: np.ndarray
    smooth_noise: float
    found: np.ndarray
    near: np.ndarray
    crowded: bool
    mesh: np.ndarray

    def local(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The local background at some working pixels: (n,) float64, ADU."""
        return _local_at(self.mesh, MESH, rows, cols)


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


@inner_kernel
def _above(smooth: np.ndarray, count: np.ndarray, threshold: float, found: np.ndarray) -> None:
    for i in range(smooth.shape[0]):
        _above_in_row(smooth[i], count[i], np.float32(threshold), found[i])


@fast_kernel
def _above_in_row(smooth: np.ndarray, count: np.ndarray, threshold: np.float32, found: np.ndarray) -> None:
    for j in range(found.shape[0]):
        found[j] = (smooth[j] > threshold) & (count[j] != 0)


def find_sources(scanned: Scan, *, level: float) -> Sources:
    """Local background and mask of sources of a scanned image.

    3 sigma on an image smoothed over about 5 native pixels (12 on a binned one), grown by 7 native pixels.
    """
    step = scanned.step
    enough = max(1, step * step // 2)
    mesh = _without_bumps(*_mesh(scanned, enough, MESH, level))
    smooth = _smooth_residual(scanned.mean, scanned.count, mesh, MESH, 2 if step <= 2 else 1)
    noise = _lower_sigma(smooth, scanned.count, enough)
    found = np.empty(smooth.shape, np.bool_)
    _above(smooth, scanned.count, max(SOURCE_SIGMA * noise, 1e-6 * max(abs(level), 1e-3)), found)
    near, crowded = _grown(found, max(1, -(-GROW_PIXELS // step)))
    return Sources(smooth, float(noise), found, near, crowded, mesh)


def _grown(found: np.ndarray, pixels: int) -> tuple[np.ndarray, bool]:
    """Detected pixels grown as far as leaves half of the image, and whether that is less far than asked."""
    for reach in range(pixels, 0, -1):
        near = grow(found, reach)
        if np.count_nonzero(near) <= MOST_SOURCES * near.size:
            return near, reach < pixels
    return found if np.count_nonzero(found) <= MOST_SOURCES * found.size else np.zeros_like(found), True
