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
from hpcqa.pixels.profiles import CHUNKS, extent, reference_level, thinned
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
    high, low = np.float32(-np.inf), np.float32(np.inf)
    total, number = np.empty(cols, np.float32), np.empty(cols, np.float32)
    for i in range(rows):
        total[:], number[:] = 0, 0
        for k in range(max(i - 1, 0), min(i + 2, rows)):
            for j in range(cols):
                known = np.isfinite(cells[k, j])
                total[j] += cells[k, j] if known else np.float32(0)
                number[j] += np.float32(1) if known else np.float32(0)
        for j in range(cols):
            part, behind = np.float32(0), np.float32(0)
            for m in range(max(j - 1, 0), min(j + 2, cols)):
                part += total[m]
                behind += number[m]
            if behind >= 4:
                high, low = max(high, part / behind), min(low, part / behind)
    return high, low


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
    excesses = []
    for mean, count, near in zip(
        *(_four_ways(one) for one in (scanned.mean, scanned.count, sources.near)), strict=True
    ):
        excesses.append(known_median(edge_excesses(mean, count, near, width)))
    known = [value for value in excesses if math.isfinite(value)]
    if not known:
        return {}
    reference = reference_level(level, expected)
    return {"edge_excess": max(known) / reference, "edge_deficit": min(known) / reference}


def _four_ways(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """An image turned so that each of its edges comes first."""
    return image, image[::-1], image.T, image[:, ::-1].T


@kernel
def edge_excesses(mean: np.ndarray, count: np.ndarray, near: np.ndarray, width: int) -> np.ndarray:
    """Mean of the first `width` rows less that of rows 2 width to 4 width, in CHUNKS pieces; NaN unknown.

    Valid pixels that are not near a source count; where hardly any is left, as in a glow that passes for a source, all
    valid ones do.
    """
    cols = mean.shape[1]
    excesses = np.full(CHUNKS, np.nan)
    for k in range(CHUNKS):
        total, number = np.zeros((2, 2)), np.zeros((2, 2))
        for i in range(4 * width):
            part = 0 if i < width else 1
            if width <= i < 2 * width:
                continue
            for j in range(k * cols // CHUNKS, (k + 1) * cols // CHUNKS):
                every, usable = count[i, j] > 0, (count[i, j] > 0) & (not near[i, j])
                total[1, part] += mean[i, j] if every else np.float32(0)
                number[1, part] += every
                total[0, part] += mean[i, j] if usable else np.float32(0)
                number[0, part] += usable
        levels = np.full(2, np.nan)
        for part in range(2):
            which = 1 if number[0, part] < ENOUGH_OF_EDGE * number[1, part] else 0
            if number[which, part] > 0:
                levels[part] = total[which, part] / number[which, part]
        excesses[k] = levels[0] - levels[1]
    return excesses
