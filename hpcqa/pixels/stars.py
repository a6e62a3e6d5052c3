"""The shapes of the stars, measured on native pixels about the peaks of the working image.

Shapes come from Gaussian-weighted second moments with a weight matched to the star (circular, found by iteration, then
taken out again), after Bernstein & Jarvis 2002 (AJ 123, 583), section 3. Widths of rings, which have no useful second
moment, come from the radial profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.peaks import Peaks
from hpcqa.pixels.prefetch import fetch_around
from hpcqa.pixels.streaks import Streak, find_streaks

MOST_SHAPES = 100  # the brightest usable peaks are measured on native pixels
HALF = 20  # native pixels around a star that its shape is measured on
RINGS = HALF  # one-pixel rings of the radial profile
_WIDE = 48  # whole vector registers that the 2 HALF + 1 pixels of a row fit into
MIN_SIGMA = 0.7  # sharper than any star: cosmic rays and hot pixels
_AHEAD = 2  # peaks whose pixels are fetched before they are wanted
STACK_HALF = 16
MOST_STACKED = 30

# Columns of the table of shapes.
X, Y, FLUX, SIGMA, E1, E2, SNR, PEAK, HALF_RADIUS, DIP, SATURATED = range(11)
NUM_SHAPE = 11


@inner_kernel
def _brightest_near(pixels: np.ndarray, row: int, col: int, reach: int) -> tuple[int, int]:
    """The pixel within `reach` whose 3x3 sum is largest."""
    best, found_row, found_col = -np.inf, row, col
    for i in range(max(row - reach, 1), min(row + reach + 1, pixels.shape[0] - 1)):
        for j in range(max(col - reach, 1), min(col + reach + 1, pixels.shape[1] - 1)):
            total = 0.0
            for a in range(-1, 2):
                for b in range(-1, 2):
                    total += pixels[i + a, j + b]
            if total > best:
                best, found_row, found_col = total, i, j
    return found_row, found_col


@inner_kernel
def _is_usable(pixels: np.ndarray, masked: np.ndarray, row: int, col: int, full: float) -> int:
    """0 usable, 1 saturated, 2 masked or not finite within two pixels, 3 at the edge."""
    rows, cols = pixels.shape
    if row < 4 or col < 4 or row >= rows - 4 or col >= cols - 4:
        return 3
    for i in range(row - 2, row + 3):
        for j in range(col - 2, col + 3):
            if pixels[i, j] >= full:
                return 1
    for i in range(row - 2, row + 3):
        for j in range(col - 2, col + 3):
            if masked[i, j] or not np.isfinite(pixels[i, j]):
                return 2
    return 0


@inner_kernel
def _gaussian(first: float, width: float, out: np.ndarray) -> None:
    """exp(-x^2 / (2 width^2)) at first, first + 1 and so on, each from the one before."""
    scale = 1.0 / (width * width)
    value, ratio = np.exp(-0.5 * scale * first * first), np.exp(-scale * (first + 0.5))
    change = np.exp(-scale)
    for k in range(out.size):
        out[k] = value
        value *= ratio
        ratio *= change


@fast_kernel
def _row_sums(
    pixels: np.ndarray, masked: np.ndarray, level: float, weights: np.ndarray, first: float
) -> tuple[float, float, float, float]:
    """Sums over the valid pixels of a row: flux times weight, that times x and times x^2, and the squared weights.

    `first` is the x of the first pixel.
    """
    zeroth = one = two = squares = 0.0
    for k in range(pixels.size):
        good = (abs(pixels[k]) < np.inf) & (masked[k] == 0)
        weight = weights[k] if good else 0.0
        value = (pixels[k] - level) * weights[k] if good else 0.0
        x = first + k
        zeroth += value
        one += value * x
        two += value * x * x
        squares += weight * weight
    return zeroth, one, two, squares


@inner_kernel
def _weighted(
    pixels: np.ndarray,
    masked: np.ndarray,
    level: float,
    y: float,
    x: float,
    width: float,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted flux, first and second moments about (y, x), into out[0:6]; out[6] is the sum of squared weights.

    `weights` is room for those along rows and columns, (2, 2 HALF + 1).
    """
    reach = min(HALF, int(3.0 * width) + 1)
    out[:] = 0.0
    row0, col0 = round(y) - reach, round(x) - reach
    along, down = weights[0, : 2 * reach + 1], weights[1, : 2 * reach + 1]
    _gaussian(col0 - x, width, along)
    _gaussian(row0 - y, width, down)
    start, stop = max(col0, 0), min(col0 + along.size, pixels.shape[1])
    for i in range(max(row0, 0), min(row0 + down.size, pixels.shape[0])):
        dy, weight = i - y, down[i - row0]
        zeroth, one, two, squares = _row_sums(
            pixels[i, start:stop], masked[i, start:stop], level, along[start - col0 : stop - col0], start - x
        )
        out[0] += weight * zeroth
        out[1] += weight * one
        out[2] += weight * zeroth * dy
        out[3] += weight * two
        out[4] += weight * zeroth * dy * dy
        out[5] += weight * one * dy
        out[6] += weight * weight * squares


@inner_kernel
def _unweighted(xx: float, yy: float, xy: float, width: float) -> tuple[float, float, float, bool]:
    """Second moments with a circular Gaussian weight taken out: C = (M^-1 - 1/w^2)^-1."""
    determinant = xx * yy - xy * xy
    if xx <= 0.0 or yy <= 0.0 or determinant <= 0.0:
        return 0.0, 0.0, 0.0, False
    inverse = 1.0 / (width * width)
    a, b, c = yy / determinant - inverse, xx / determinant - inverse, -xy / determinant
    # Flatter than the weight can tell: a floor keeps the answer finite and large.
    floor = 0.1 * inverse
    a, b = max(a, floor), max(b, floor)
    rest = a * b - c * c
    if rest <= 1e-3 * a * b:
        rest = 1e-3 * a * b
    return b / rest, a / rest, -c / rest, True


@kernel
def _shape(
    pixels: np.ndarray, masked: np.ndarray, level: float, row: int, col: int, noise: float, out: np.ndarray
) -> int:
    """Iterate centre and weight of one star: 0; 1 if it does not settle on anything positive; 2 if it is too sharp."""
    sums, weights = np.empty(7), np.empty((2, 2 * HALF + 1))
    y, x, width = float(row), float(col), 2.0
    xx = yy = xy = 0.0
    for _ in range(8):
        _weighted(pixels, masked, level, y, x, width, weights, sums)
        if sums[0] <= 0.0:
            return 1
        shift_x, shift_y = sums[1] / sums[0], sums[2] / sums[0]
        xx = sums[3] / sums[0] - shift_x * shift_x
        yy = sums[4] / sums[0] - shift_y * shift_y
        xy = sums[5] / sums[0] - shift_x * shift_y
        # For a Gaussian and a matched weight the weighted centroid moves half of the way.
        x, y = x + min(max(2.0 * shift_x, -2.0), 2.0), y + min(max(2.0 * shift_y, -2.0), 2.0)
        if abs(x - col) > HALF / 2 or abs(y - row) > HALF / 2:
            return 1
        if 0.5 * (xx + yy) < 0.5 * MIN_SIGMA**2:
            return 2
        xx, yy, xy, good = _unweighted(xx, yy, xy, width)
        if not good:
            return 1
        new = min(max((0.5 * (xx + yy)) ** 0.5, 0.5), HALF / 2.5)
        settled = abs(new - width) < 0.02 * width and abs(shift_x) + abs(shift_y) < 0.05
        width = new
        if settled:
            break
    out[X], out[Y], out[SIGMA] = x, y, (0.5 * (xx + yy)) ** 0.5
    out[E1], out[E2] = (xx - yy) / (xx + yy), 2.0 * xy / (xx + yy)
    out[FLUX] = 2.0 * sums[0]
    out[SNR] = sums[0] / max(noise * sums[6] ** 0.5, 1e-12)
    return 2 if out[SIGMA] < MIN_SIGMA else 0


@fast_kernel
def _rings_of(dy2: np.float32, dx2: np.ndarray, rings: np.ndarray) -> None:
    """The one-pixel ring that each pixel of a row lies in, RINGS for those beyond.

    The width is written out, for the compiler; what lies behind the row is worked out too, and not looked at.
    """
    for k in range(_WIDE):
        away = np.sqrt(dy2 + dx2[np.uint64(k)]) + np.float32(0.5)
        rings[np.uint64(k)] = np.int32(away if away < np.float32(RINGS) else np.float32(RINGS))


@fast_kernel
def _num_good(pixels: np.ndarray, masked: np.ndarray) -> Any:
    num = np.int32(0)
    for k in range(pixels.size):
        num = np.int32(num + np.int32((abs(pixels[k]) < np.float32(np.inf)) & (masked[k] == 0)))
    return num


@inner_kernel
def _ring_sums(
    pixels: np.ndarray, masked: np.ndarray, y: float, x: float, dx2: np.ndarray, rings: np.ndarray, sums: np.ndarray
) -> None:
    """Sum and number of the valid pixels in each one-pixel ring about (y, x) into sums, (RINGS + 1, 2).

    `dx2`, float32, and `rings`, int32, are room of _WIDE.
    """
    row, col = round(y), round(x)
    start, stop = max(col - HALF, 0), min(col + HALF + 1, pixels.shape[1])
    for k in range(_WIDE):
        dx2[k] = np.float32((start + k - x) ** 2)
    sums[:] = 0.0
    for i in range(max(row - HALF, 0), min(row + HALF + 1, pixels.shape[0])):
        _rings_of(np.float32((i - y) ** 2), dx2, rings)
        whole = _num_good(pixels[i, start:stop], masked[i, start:stop]) == stop - start
        for j in range(start, stop):
            if whole or (not masked[i, j] and np.isfinite(pixels[i, j])):
                ring = np.uint64(rings[np.uint64(j - start)])
                sums[ring, 0] += pixels[i, j]
                sums[ring, 1] += 1.0


@kernel
def _profile(pixels: np.ndarray, masked: np.ndarray, level: float, out: np.ndarray) -> None:
    """Half-light ring and central dip from one-pixel rings about the star's centre."""
    sums = np.empty((RINGS + 1, 2))
    _ring_sums(pixels, masked, out[Y], out[X], np.empty(_WIDE, np.float32), np.empty(_WIDE, np.int32), sums)
    total, number = sums[:, 0], sums[:, 1]
    highest = 0.0
    for k in range(RINGS):
        total[k] = total[k] / number[k] - level if number[k] > 0 else 0.0
        highest = max(highest, total[k])
    if highest <= 0.0:
        return
    centre = (total[0] * number[0] + total[1] * number[1]) / max(number[0] + number[1], 1.0)
    out[DIP] = 1.0 - centre / highest
    for k in range(RINGS - 2, -1, -1):
        if total[k] >= 0.5 * highest:
            step = max(total[k] - total[k + 1], 1e-12)
            out[HALF_RADIUS] = k + min((total[k] - 0.5 * highest) / step, 1.0)
            break


@kernel
def _measure(
    pixels: np.ndarray,
    masked: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    local: np.ndarray,
    facts: tuple[float, float, int],
    table: np.ndarray,
) -> tuple[int, int, int]:
    """Shapes of the peaks into the table, until it is full; returns rows written, saturated and sharp peaks."""
    noise, full, reach = facts
    num = saturated = sharp = 0
    for k in range(rows.shape[0]):
        if num == table.shape[0]:
            break
        if k + _AHEAD < rows.shape[0]:
            fetch_around(pixels, int(rows[k + _AHEAD]), int(cols[k + _AHEAD]), HALF)
            fetch_around(masked, int(rows[k + _AHEAD]), int(cols[k + _AHEAD]), HALF)
        row, col = _brightest_near(pixels, int(rows[k]), int(cols[k]), reach)
        usable = _is_usable(pixels, masked, row, col, full)
        saturated += 1 if usable == 1 else 0
        if usable != 0:
            continue
        out = table[num]
        out[:] = 0.0
        state = _shape(pixels, masked, local[k], row, col, noise, out)
        sharp += 1 if state == 2 else 0
        if state != 0:
            continue
        out[PEAK] = pixels[row, col] - local[k]
        _profile(pixels, masked, local[k], out)
        num += 1
    return num, saturated, sharp


@dataclass(frozen=True)
class Stars:
    """Shapes of the brightest usable peaks of one CCD.

    Attributes:
        table: (n, NUM_SHAPE) float64, brightest first; columns are this module's X, Y (px), FLUX (ADU), SIGMA (px), E1,
            E2, SNR, PEAK (ADU), HALF_RADIUS (px), DIP.
        is_star: (n,) bool, of the size of the point sources.
        num_saturated: peaks that are saturated.
        num_sharp: peaks sharper than a star.
        stack: (33, 33) float32, mean of normalised stamps; zeros if there are no stars.
        streaks: what has been left out of all of these.
    """

    table: np.ndarray
    is_star: np.ndarray
    num_saturated: int
    num_sharp: int
    stack: np.ndarray
    streaks: tuple[Streak, ...] = ()


def measure_stars(
    pixels: np.ndarray,
    masked: np.ndarray,
    peaks: Peaks,
    sources: Sources,
    *,
    noise: float,
    saturation: float,
    step: int,
) -> Stars:
    """Shapes of the brightest usable peaks of an image (R, C).

    Args:
        pixels: float32, ADU.
        masked: bool, same shape.
        peaks: where to look, brightest first.
        sources: of the same image; gives the local background.
        noise: of a pixel, ADU.
        saturation: ADU; peaks within a tenth of it are not used.
        step: native pixels along a side of a working pixel.
    """
    candidates = slice(0, 3 * MOST_SHAPES)
    rows, cols = peaks.row[candidates].astype(np.int64), peaks.col[candidates].astype(np.int64)
    local = sources.local(rows // step, cols // step)
    table = np.empty((MOST_SHAPES, NUM_SHAPE))
    facts = (noise if noise > 0 else 1e-6, 0.9 * saturation, max(step, 2))
    num, saturated, sharp = _measure(pixels, masked, rows, cols, local, facts, table)
    table = _unique(table[:num], np.full(num, 2.0))
    x, y, e1, e2, sigma = (table[:, column] for column in (X, Y, E1, E2, SIGMA))
    streaks = find_streaks(x, y, e1, e2, sigma, (pixels.shape[0], pixels.shape[1]))
    for streak in streaks:
        table = table[~streak.covers(table[:, X], table[:, Y])]
    table = _unique(table, np.minimum(table[:, SIGMA], HALF))
    is_star = _point_like(np.ascontiguousarray(table))
    chosen = table[is_star & (table[:, SNR] > 20)][:MOST_STACKED]
    return Stars(table, is_star, saturated, sharp, _stack(pixels, masked, chosen), streaks)


def _unique(table: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Rows whose centre lies within no brighter row's reach (px).

    Several peaks may settle on one star, and dozens on the core of a galaxy or a nebula: those would be the densest
    place in size, and pass for the stars.
    """
    unique: np.ndarray = table[_far_from_brighter(table, reach)]
    return unique


@kernel
def _far_from_brighter(table: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Which rows lie within no earlier row's reach: (n,) bool."""
    far = np.ones(len(table), np.bool_)
    for k in range(len(table)):
        for m in range(k):
            if (table[k, X] - table[m, X]) ** 2 + (table[k, Y] - table[m, Y]) ** 2 < reach[m] ** 2:
                far[k] = False
                break
    return far


@kernel
def _point_like(table: np.ndarray) -> np.ndarray:
    """Which rows have the size of the point sources: within 25 % of the densest place in log size."""
    good = table[:, SNR] > 10
    if good.sum() < 3:
        return good
    sizes = np.log(table[:, SIGMA])
    ordered = np.sort(sizes[good])
    width = max(3, len(ordered) // 3)
    spans = ordered[width - 1 :] - ordered[: len(ordered) - width + 1]
    best = int(np.argmin(spans))
    centre = 0.5 * (ordered[best + (width - 1) // 2] + ordered[best + width // 2])
    return np.asarray(good & (np.abs(sizes - centre) < 0.25))


@kernel
def _stack_kernel(pixels: np.ndarray, masked: np.ndarray, chosen: np.ndarray, half: int) -> tuple[np.ndarray, int]:
    side = 2 * half + 1
    total = np.zeros((side, side))
    num = 0
    for k in range(chosen.shape[0]):
        row, col = round(chosen[k, Y]), round(chosen[k, X])
        inside = half <= row < pixels.shape[0] - half and half <= col < pixels.shape[1] - half
        if not inside:
            continue
        stamp = pixels[row - half : row + half + 1, col - half : col + half + 1]
        edge = np.concatenate((stamp[0], stamp[-1], stamp[:, 0].copy(), stamp[:, -1].copy()))
        level = np.median(edge)
        flux = 0.0
        for i in range(side):
            for j in range(side):
                flux += stamp[i, j] - level
        # Where a neighbour at the edge spoils the level, little of the star's light is left: dividing by that would let
        # one stamp outweigh all others.
        if not (np.isfinite(flux) and flux > 0.5 * chosen[k, FLUX]):
            continue
        for i in range(side):
            for j in range(side):
                total[i, j] += (stamp[i, j] - level) / flux
        num += 1
    return total, num


def _stack(pixels: np.ndarray, masked: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    total, num = _stack_kernel(pixels, masked, np.ascontiguousarray(chosen), STACK_HALF)
    return (total / max(num, 1)).astype(np.float32)
