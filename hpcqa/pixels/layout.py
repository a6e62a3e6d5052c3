"""How the sources lie on a CCD: double exposures, trails, streaks, empty parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.peaks import Peaks

_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def _pair_histogram(rows: np.ndarray, cols: np.ndarray, reach: float, width: float, nearest: float) -> np.ndarray:
    """Displacements between peaks, half a plane: (2n, n) counts of width x width native pixels."""
    bins = int(reach / width)
    counts = np.zeros((2 * bins, bins), np.int32)
    for k in range(rows.shape[0]):
        for m in range(k):
            dy, dx = rows[k] - rows[m], cols[k] - cols[m]
            # Nearly all pairs are farther apart than any displacement that is looked for.
            if abs(dy) > reach + width or abs(dx) > reach + width:
                continue
            if dx < 0 or (dx == 0 and dy < 0):
                dy, dx = -dy, -dx
            if dx * dx + dy * dy < nearest * nearest:
                continue
            i, j = int(np.floor(dy / width)) + bins, int(dx / width)
            if 0 <= i < 2 * bins and j < bins:
                counts[i, j] += 1
    return counts


@dataclass(frozen=True)
class Pairs:
    """The displacement that most pairs of peaks share.

    Attributes:
        excess: pairs above the mean of all displacements, in units of the square root of that mean.
        share: those pairs over the number of peaks.
        separation: length of the displacement, native pixels.
    """

    excess: float
    share: float
    separation: float


def common_displacement(peaks: Peaks, *, most: int = 200, reach: float = 240.0, width: float = 6.0) -> Pairs:
    """Look for double exposures: many pairs of the brightest peaks with one and the same displacement."""
    rows, cols = peaks.row[:most], peaks.col[:most]
    if len(rows) < 8:
        return Pairs(np.nan, np.nan, np.nan)
    counts = _pair_histogram(rows, cols, reach, width, 2 * width)
    highest, mean, i, j = _fullest(counts)
    above = highest - mean
    separation = width * math.hypot(i + 1 - counts.shape[0] // 2, j + 1)
    return Pairs(above / (mean + 1.0) ** 0.5, above / len(rows), separation)


@kernel
def _fullest(counts: np.ndarray) -> tuple[float, float, int, int]:
    """Most counts in two by two bins, the mean of all of these, and where they are.

    Two by two bins, so that a displacement at the corner of bins counts in full.
    """
    most, total, row, col = -1.0, 0.0, 0, 0
    for i in range(counts.shape[0] - 1):
        for j in range(counts.shape[1] - 1):
            four = float(counts[i, j] + counts[i + 1, j] + counts[i, j + 1] + counts[i + 1, j + 1])
            total += four
            if four > most:
                most, row, col = four, i, j
    return most, total / ((counts.shape[0] - 1) * (counts.shape[1] - 1)), row, col


@fast_kernel
def _gradients(above: np.ndarray, row: np.ndarray, below: np.ndarray, found: np.ndarray) -> tuple[Any, Any, Any]:
    """Sums over the detected pixels of a row: cos and sin of twice the gradient's angle, and their number."""
    c = s = number = _ZERO
    for j in range(1, row.shape[0] - 1):
        gx, gy = row[j + 1] - row[j - 1], below[j] - above[j]
        power = gx * gx + gy * gy
        used = (power > _ZERO) & found[j]
        share = _ONE / (power if used else _ONE)
        c += (gx * gx - gy * gy) * share if used else _ZERO
        s += (gx * gy + gx * gy) * share if used else _ZERO
        number += _ONE if used else _ZERO
    return c, s, number


@inner_kernel
def gradient_coherence(image: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """How far the gradients over detected pixels share one axis.

    Returns:
        Two components (cos and sin of twice the angle) of the mean axis, each -1 to 1; (0, 0) for round sources. Each
        pixel counts once, whatever its gradient, so that a bright star does not outweigh the others.
    """
    c: Any = 0.0
    s: Any = 0.0
    number: Any = 0.0
    for i in range(1, image.shape[0] - 1):
        row = _gradients(image[i - 1], image[i], image[i + 1], found[i])
        c, s, number = c + row[0], s + row[1], number + row[2]
    if number == 0.0:
        return 0.0, 0.0
    return c / number, s / number


@lru_cache(maxsize=8)
def _lines(rows: int, cols: int, num_angles: int) -> tuple[np.ndarray, np.ndarray]:
    """Straight lines three pixels wide across an image, for angles spread over half a turn.

    Returns:
        (angles, rows * cols) int16, the line that each pixel lies on; (angles, lines) int32, pixels on each line.
    """
    reach = int(math.hypot(rows, cols)) + 3
    angle = np.pi * np.arange(num_angles)[:, None, None] / num_angles
    i, j = np.mgrid[:rows, :cols]
    places = ((j * np.cos(angle) + i * np.sin(angle) + reach) / 3.0).astype(np.int16).reshape(num_angles, -1)
    num = 2 * reach // 3 + 2
    return places, np.stack([np.bincount(line, minlength=num) for line in places])


def line_cover(found: np.ndarray, num_angles: int) -> float:
    """Largest share of a straight line across the image that lies on detected pixels (satellites, airplanes).

    Lines at least half as long as the image's short side, three pixels wide.
    """
    places, lengths = _lines(*found.shape, num_angles)
    hits = _count_on_lines(places, np.flatnonzero(found), lengths.shape[1])
    long = lengths >= 1.5 * min(found.shape)
    return float((hits[long] / lengths[long]).max()) if long.any() else 0.0


@kernel
def _count_on_lines(places: np.ndarray, found: np.ndarray, num: int) -> np.ndarray:
    hits = np.zeros((places.shape[0], num), np.int32)
    for k in range(places.shape[0]):
        for m in range(found.shape[0]):
            hits[k, places[k, found[m]]] += 1
    return hits


def spread_numbers(rows: np.ndarray, cols: np.ndarray, small: tuple[int, int], step: int) -> dict[str, float]:
    """How evenly the sources (native pixels) spread over the CCD."""
    quadrants, parts = _spread(rows, cols, float(small[0] * step), float(small[1] * step))
    mean = len(rows) / 4
    return {
        "source_unevenness": (max(quadrants) - min(quadrants)) / math.sqrt(mean) if mean > 0 else math.nan,
        "empty_share": 1.0 - parts / 64,
    }


@kernel
def _spread(rows: np.ndarray, cols: np.ndarray, height: float, width: float) -> tuple[tuple[int, ...], int]:
    """Sources in each quadrant, and how many of 8 x 8 parts have one."""
    counts, seen = np.zeros(4, np.int64), np.zeros((8, 8), np.bool_)
    for k in range(rows.size):
        counts[2 * int(rows[k] >= height / 2) + int(cols[k] >= width / 2)] += 1
        seen[int(min(rows[k] / height * 8, 7.0)), int(min(cols[k] / width * 8, 7.0))] = True
    return (counts[0], counts[1], counts[2], counts[3]), seen.sum()


@kernel
def coarse(found: np.ndarray, side: int) -> np.ndarray:
    """A detection map with at most `side` rows and columns: set where any pixel of a block is."""
    rows, cols = found.shape
    step = max(1, -(-max(rows, cols) // side))
    out = np.zeros((-(-rows // step), -(-cols // step)), np.bool_)
    _fill_coarse(found, step, np.empty(out.shape[1] * step, np.bool_), out)
    return out


@inner_kernel
def _fill_coarse(found: np.ndarray, step: int, line: np.ndarray, out: np.ndarray) -> None:
    """`line` is room for a row of whole blocks."""
    rows, cols = found.shape
    for i in range(out.shape[0]):
        line[:] = False
        for k in range(i * step, min((i + 1) * step, rows)):
            _join(line[:cols], found[k])
        for m in range(out.shape[1]):
            block = line[m * step]
            for j in range(m * step + 1, (m + 1) * step):
                block = block | line[j]
            out[i, m] = block


@inner_kernel
def _join(line: np.ndarray, other: np.ndarray) -> None:
    for j in range(line.shape[0]):
        line[j] = line[j] | other[j]


def trail_length(found: np.ndarray, c: float, s: float) -> float:
    """Mean length of runs of detected pixels along the sources' common axis, less that across it, in pixels.

    `c` and `s` are the components of the mean gradient axis; trails lie across it. Runs are taken along the nearest of
    rows, columns and diagonals. NaN where the axis is not known.
    """
    if not math.isfinite(c + s):
        return math.nan
    along = 0.5 * math.atan2(s, c) + 0.5 * math.pi
    pixels = int(np.count_nonzero(found))
    lengths = []
    for angle in (along, along + 0.5 * math.pi):
        dx, dy = round(math.cos(angle)), round(math.sin(angle))
        # A pixel starts a run if the one before it along the axis is not detected; beyond the border nothing is.
        starts = pixels - _pairs_along(found, dy, dx)
        lengths.append(math.hypot(dx, dy) * pixels / max(starts, 1))
    return lengths[0] - lengths[1]


@inner_kernel
def _pairs_along(found: np.ndarray, dy: int, dx: int) -> int:
    """Detected pixels that are one step (dy, dx) after another one."""
    rows, cols = found.shape
    num = 0
    for i in range(max(dy, 0), rows + min(dy, 0)):
        num += _num_of_both(found[i, max(dx, 0) : cols + min(dx, 0)], found[i - dy, max(-dx, 0) : cols + min(-dx, 0)])
    return num


@fast_kernel
def _num_of_both(found: np.ndarray, other: np.ndarray) -> Any:
    num = np.int32(0)
    for j in range(found.shape[0]):
        num = np.int32(num + np.int32(found[j] & other[j]))
    return num
