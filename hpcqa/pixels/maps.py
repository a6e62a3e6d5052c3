"""Numbers of the background's shape: gradients, extremes and quadrants of its map, and the edges of the CCD.

Levels are relative to the sky; see profiles.reference_level.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.medians import known_median
from hpcqa.pixels.profiles import CHUNKS, area_sums, extent, reference_level, thinned
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import MAD

ENOUGH_OF_EDGE = 0.2  # share of a piece of an edge that must be free of sources


def map_numbers(background: np.ndarray, level: float, expected: float) -> dict[str, float]:
    """Plane, scatter, extremes and quadrants of a background map (H, W) in ADU, NaN where unknown."""
    rows, cols = extent(background)
    inside = background[:rows, :cols]
    known = int(np.count_nonzero(np.isfinite(inside)))
    if known < 12 or min(rows, cols) < 4:
        return {}
    relative = (inside - np.float32(level)) / np.float32(reference_level(level, expected))
    slope_row, slope_col, rest = _less_plane(relative)
    rms, high, low = _extremes(rest)
    spread, curvature = _parts(relative, rest)
    return {
        "gradient_row": float(slope_row),
        "gradient_col": float(slope_col),
        "gradient": math.hypot(slope_row, slope_col),
        "map_rms": float(rms),
        "map_high": float(high),
        "map_low": float(low),
        "map_missing": 1.0 - known / inside.size,
        "quadrant_spread": float(spread),
        "map_curvature": float(curvature),
    }


def _less_plane(relative: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Slopes across the map of the plane that fits it best, and the map less that plane.

    Least squares, refitted twice without what lies 3 sigma off.
    """
    answer = np.zeros(3)
    rest = _rest(relative, np.array([known_median(thinned(relative)), 0.0, 0.0]))
    for _ in range(3):
        limit = 3.0 * MAD * known_median(np.abs(thinned(rest))) + 1e-9
        matrix, vector = _plane_sums(relative, rest, limit)
        if np.linalg.det(matrix) <= 1e-6 * max(matrix[0, 0], 1.0) ** 3:
            break
        answer = np.linalg.solve(matrix, vector)
        rest = _rest(relative, answer)
    return float(answer[1]), float(answer[2]), rest


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
def _plane_sums(relative: np.ndarray, rest: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of a plane (level, slope along rows, slope along columns) through the cells within a limit."""
    rows, cols = relative.shape
    matrix, vector = np.zeros((3, 3)), np.zeros(3)
    for i in range(rows):
        y = i / (rows - 1) - 0.5
        number = across = squares = total = product = 0.0
        for j in range(cols):
            x = j / (cols - 1) - 0.5
            used = abs(rest[i, j]) <= limit
            one, value = 1.0 if used else 0.0, relative[i, j] if used else 0.0
            number += one
            across += one * x
            squares += one * x * x
            total += value
            product += value * x
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


def _extremes(rest: np.ndarray) -> tuple[float, float, float]:
    """Robust scatter, and the highest and lowest mean of nine cells of which at least four are known."""
    rms = MAD * known_median(np.abs(rest - known_median(rest)))
    high, low = _nines(rest)
    return rms, float(high), float(low)


@kernel
def _nines(cells: np.ndarray) -> tuple[Any, Any]:
    """Highest and lowest mean of a cell and its eight neighbours, of which four must be known; -inf, inf if none."""
    rows, cols = cells.shape
    # The cells of three rows and their number, with a border; then the means that are the highest and lowest in columns.
    total, number = np.zeros(cols + 2, np.float32), np.zeros(cols + 2, np.float32)
    high, low = np.full(cols, np.float32(-np.inf)), np.full(cols, np.float32(np.inf))
    for i in range(rows):
        total[:], number[:] = 0, 0
        for k in range(max(i - 1, 0), min(i + 2, rows)):
            _add_known(cells[k], total[1:-1])
            _count_known(cells[k], number[1:-1])
        _extend(total, number, high, low)
    return high.max(), low.min()


@fast_kernel
def _add_known(cells: np.ndarray, total: np.ndarray) -> None:
    for j in range(cells.shape[0]):
        total[j] += cells[j] if abs(cells[j]) < np.float32(np.inf) else np.float32(0)


@fast_kernel
def _count_known(cells: np.ndarray, number: np.ndarray) -> None:
    for j in range(cells.shape[0]):
        number[j] += np.float32(1) if abs(cells[j]) < np.float32(np.inf) else np.float32(0)


@fast_kernel
def _extend(total: np.ndarray, number: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    for j in range(high.shape[0]):
        behind = number[j] + number[j + 1] + number[j + 2]
        known = behind >= np.float32(4)
        value = (total[j] + total[j + 1] + total[j + 2]) / (behind if known else np.float32(1))
        high[j] = value if known & (value > high[j]) else high[j]
        low[j] = value if known & (value < low[j]) else low[j]


def _parts(relative: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """Largest less smallest median of the quadrants; median of the centre less that of the border."""
    rows, cols = relative.shape
    halves = [(slice(0, num // 2), slice(num // 2, None)) for num in (rows, cols)]
    middles = [known_median(relative[down, across]) for down in halves[0] for across in halves[1]]
    known = [middle for middle in middles if math.isfinite(middle)]
    border = np.concatenate((rest[0], rest[-1], rest[:, 0], rest[:, -1]))
    centre = rest[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4]
    spread = max(known) - min(known) if known else -math.inf
    return spread, known_median(centre) - known_median(border)


# Edges ----------------------------------------------------------------------------------------------------------------


def edge_numbers(scanned: Scan, sources: Sources, level: float, expected: float) -> dict[str, float]:
    """Largest excess and deficit of the four edges, about 24 native pixels wide, over a strip further in."""
    width = max(1, round(24 / scanned.step))
    if min(scanned.mean.shape) < 8 * width:
        return {}
    pieces = edge_excesses(scanned.mean, scanned.count, sources.near, width)
    excesses = [known_median(piece) for piece in pieces]
    known = [value for value in excesses if math.isfinite(value)]
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
        (4, CHUNKS) float64, of the first rows, the last rows, the first columns and the last; NaN unknown.
    """
    excesses = np.full((4, CHUNKS), np.nan)
    for edge in range(4):
        for k in range(CHUNKS):
            outer = _edge_level(mean, count, near, edge, k, 0, width)
            inner = _edge_level(mean, count, near, edge, k, 2 * width, 4 * width)
            excesses[edge, k] = outer - inner
    return excesses


@kernel
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
