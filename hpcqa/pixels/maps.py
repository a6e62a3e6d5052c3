"""Numbers of the background's shape: gradients, extremes and quadrants of its map, and the edges of the CCD.

Levels are relative to the sky; see profiles.reference_level.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.medians import median
from hpcqa.pixels.profiles import CHUNKS, THIN_FROM, area_sums, extent, reference_level
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import MAD

ENOUGH_OF_EDGE = 0.2  # share of a piece of an edge that must be free of sources


def map_numbers(background: np.ndarray, level: float, expected: float) -> dict[str, float]:
    """Plane, scatter, extremes and quadrants of a background map (H, W) in ADU, NaN where unknown."""
    rows, cols = extent(background)
    inside = background[:rows, :cols]
    if rows * cols < 12 or min(rows, cols) < 4:
        return {}
    reference = np.float32(reference_level(level, expected))
    known, slope_row, slope_col, rms, high, low, spread, curvature = _shape_of(inside, np.float32(level), reference)
    if known < 12:
        return {}
    return {
        "gradient_row": slope_row,
        "gradient_col": slope_col,
        "gradient": math.hypot(slope_row, slope_col),
        "map_rms": rms,
        "map_high": high,
        "map_low": low,
        "map_missing": 1.0 - known / inside.size,
        "quadrant_spread": spread,
        "map_curvature": curvature,
    }


@kernel
def _shape_of(inside: np.ndarray, level: np.float32, reference: np.float32) -> tuple[Any, ...]:
    """Number of known cells; slopes of the plane along rows and columns; robust scatter, highest and lowest mean of
    nine cells about it; spread of the quadrants; centre less border.
    """
    relative = np.empty(inside.shape, np.float32)
    known = 0
    for i in range(inside.shape[0]):
        known += _relative_row(inside[i], level, reference, relative[i])
    slope_row, slope_col, rest = _less_plane(relative)
    middle = np.float32(median(rest.ravel()))
    rms = MAD * median(np.abs(rest.ravel() - middle))
    high, low = _nines(rest)
    spread, curvature = _parts(relative, rest)
    return known, slope_row, slope_col, rms, np.float64(high), np.float64(low), spread, curvature


@fast_kernel
def _relative_row(cells: np.ndarray, level: np.float32, reference: np.float32, out: np.ndarray) -> Any:
    known = np.int32(0)
    for j in range(out.shape[0]):
        out[j] = (cells[j] - level) / reference
        known = np.int32(known + np.int32(abs(cells[j]) < np.float32(np.inf)))
    return known


@kernel
def _less_plane(relative: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Slopes across the map of the plane that fits it best, and the map less that plane.

    Least squares, refitted twice without what lies 3 sigma off.
    """
    answer, plane = np.zeros(3), np.zeros(3)
    plane[0] = median(_sample(relative))
    rest = _rest(relative, plane)
    x = np.arange(relative.shape[1]) / (relative.shape[1] - 1) - 0.5
    for _ in range(3):
        limit = 3.0 * MAD * median(np.abs(_sample(rest))) + 1e-9
        matrix, vector = _plane_sums(relative, rest, x, limit)
        if not _solve(matrix, vector, answer):
            break
        rest = _rest(relative, answer)
    return answer[1], answer[2], rest


@kernel
def _sample(cells: np.ndarray) -> np.ndarray:
    """A quarter of the cells of a large map, all of a small one: (n,)."""
    apart = 2 if cells.size >= THIN_FROM else 1
    return cells[::apart, ::apart].copy().ravel()


@kernel
def _solve(matrix: np.ndarray, vector: np.ndarray, answer: np.ndarray) -> bool:
    """Solve three linear equations with a symmetric matrix; False if they are nearly dependent."""
    cofactors = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            a, b, c, d = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
            cofactors[i, j] = matrix[a, c] * matrix[b, d] - matrix[a, d] * matrix[b, c]
    determinant = (matrix[0] * cofactors[0]).sum()
    if not determinant > 1e-6 * max(matrix[0, 0], 1.0) ** 3:
        return False
    for i in range(3):
        answer[i] = (cofactors[i] * vector).sum() / determinant
    return True


@kernel
def _rest(relative: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """A map less a plane of a level and two slopes, which is taken at places from -0.5 to 0.5 along each side."""
    rows, cols = relative.shape
    out = np.empty_like(relative)
    across = np.empty(cols, np.float32)
    for j in range(cols):
        across[j] = plane[2] * (j / (cols - 1) - 0.5)
    for i in range(rows):
        down = np.float32(plane[0] + plane[1] * (i / (rows - 1) - 0.5))
        for j in range(cols):
            out[i, j] = relative[i, j] - (down + across[j])
    return out


@fast_kernel
def _plane_sums(relative: np.ndarray, rest: np.ndarray, x: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of a plane (level, slope along rows, slope along columns) through the cells within a limit.

    `x` are the columns' places, from -0.5 to 0.5.
    """
    rows, cols = relative.shape
    matrix, vector = np.zeros((3, 3)), np.zeros(3)
    for i in range(rows):
        y = i / (rows - 1) - 0.5
        number = across = squares = total = product = 0.0
        for j in range(cols):
            used = abs(rest[i, j]) <= limit
            one, value = 1.0 if used else 0.0, relative[i, j] if used else 0.0
            number += one
            across += one * x[j]
            squares += one * x[j] * x[j]
            total += value
            product += value * x[j]
        matrix[0, 0] += number
        matrix[0, 1] += number * y
        matrix[1, 1] += number * y * y
        matrix[0, 2] += across
        matrix[1, 2] += across * y
        matrix[2, 2] += squares
        vector[0] += total
        vector[1] += total * y
        vector[2] += product
    matrix[1, 0], matrix[2, 0], matrix[2, 1] = matrix[0, 1], matrix[0, 2], matrix[1, 2]
    return matrix, vector


@kernel
def _nines(cells: np.ndarray) -> tuple[Any, Any]:
    """Highest and lowest mean of a cell and its eight neighbours, of which four must be known; -inf, inf if none."""
    cols = cells.shape[1]
    # Three rows of cells, 0 where unknown, and whether each is known; their sums, with a border; the highest and lowest
    # means of each column.
    kept, sums = np.zeros((2, 3, cols), np.float32), np.zeros((2, cols + 2), np.float32)
    high, low = np.full(cols, np.float32(-np.inf)), np.full(cols, np.float32(np.inf))
    _extremes(cells, kept, sums, high, low)
    return high.max(), low.min()


@inner_kernel
def _extremes(cells: np.ndarray, kept: np.ndarray, sums: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    rows = cells.shape[0]
    values, known = kept[0], kept[1]
    for i in range(rows + 1):
        if i < rows:
            _keep_known(cells[i], values[i % 3], known[i % 3])
        else:
            values[i % 3], known[i % 3] = 0, 0
        if i > 0:
            # From the row above to the row below.
            first, middle, last = (i + 1) % 3, (i + 2) % 3, i % 3
            _add_three(values[first], values[middle], values[last], sums[0, 1:-1])
            _add_three(known[first], known[middle], known[last], sums[1, 1:-1])
            _extend(sums[0], sums[1], high, low)


@fast_kernel
def _keep_known(cells: np.ndarray, values: np.ndarray, known: np.ndarray) -> None:
    for j in range(cells.shape[0]):
        is_known = abs(cells[j]) < np.float32(np.inf)
        values[j], known[j] = cells[j] if is_known else np.float32(0), np.float32(is_known)


@fast_kernel
def _add_three(first: np.ndarray, second: np.ndarray, third: np.ndarray, out: np.ndarray) -> None:
    for j in range(out.shape[0]):
        out[j] = (first[j] + second[j]) + third[j]


@fast_kernel
def _extend(total: np.ndarray, number: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    for j in range(high.shape[0]):
        behind = number[j] + number[j + 1] + number[j + 2]
        known = behind >= np.float32(4)
        value = (total[j] + total[j + 1] + total[j + 2]) / (behind if known else np.float32(1))
        high[j] = value if known & (value > high[j]) else high[j]
        low[j] = value if known & (value < low[j]) else low[j]


@kernel
def _parts(relative: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """Largest less smallest median of the quadrants; median of the centre less that of the border."""
    rows, cols = relative.shape
    high, low = -np.inf, np.inf
    for half in range(4):
        first, last = (0, rows // 2) if half < 2 else (rows // 2, rows)
        start, stop = (0, cols // 2) if half % 2 == 0 else (cols // 2, cols)
        middle = median(relative[first:last, start:stop].copy().ravel())
        if np.isfinite(middle):
            high, low = max(high, middle), min(low, middle)
    border = np.concatenate((rest[0], rest[-1], rest[:, 0].copy(), rest[:, -1].copy()))
    centre = rest[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4].copy().ravel()
    return high - low, median(centre) - median(border)


# Edges ----------------------------------------------------------------------------------------------------------------


def edge_numbers(scanned: Scan, sources: Sources, level: float, expected: float) -> dict[str, float]:
    """Largest excess and deficit of the four edges, about 24 native pixels wide, over a strip further in."""
    width = max(1, round(24 / scanned.step))
    if min(scanned.mean.shape) < 8 * width:
        return {}
    excesses = edge_excesses(scanned.mean, scanned.count, sources.near, width)
    known = [value for value in excesses.tolist() if math.isfinite(value)]
    if not known:
        return {}
    reference = reference_level(level, expected)
    return {"edge_excess": max(known) / reference, "edge_deficit": min(known) / reference}


@kernel
def edge_excesses(mean: np.ndarray, count: np.ndarray, near: np.ndarray, width: int) -> np.ndarray:
    """Mean of the `width` pixels along each edge less that of those 2 width to 4 width away, in CHUNKS pieces.

    Valid pixels that are not near a source count; where hardly any is left, as in a glow that passes for a source, all
    valid ones do.

    Returns:
        (4,) float64, the pieces' median at the first rows, the last rows, the first columns and the last; NaN unknown.
    """
    excesses, pieces = np.empty(4), np.empty(CHUNKS)
    for edge in range(4):
        for k in range(CHUNKS):
            outer = _edge_level(mean, count, near, edge, k, 0, width)
            inner = _edge_level(mean, count, near, edge, k, 2 * width, 4 * width)
            pieces[k] = outer - inner
        excesses[edge] = median(pieces)
    return excesses


@inner_kernel
def _edge_level(
    mean: np.ndarray, count: np.ndarray, near: np.ndarray, edge: int, piece: int, begin: int, end: int
) -> float:
    """Level of one piece along an edge, from `begin` to `end` pixels away from it."""
    across, along = mean.shape if edge < 2 else mean.shape[::-1]
    if edge % 2 == 1:
        begin, end = across - end, across - begin
    first, last = piece * along // CHUNKS, (piece + 1) * along // CHUNKS
    area = (begin, end, first, last) if edge < 2 else (first, last, begin, end)
    usable, every = area_sums(mean, count, near, area)
    total, number = every if usable[1] < ENOUGH_OF_EDGE * every[1] else usable
    return total / number if number > 0 else np.nan
