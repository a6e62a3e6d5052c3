"""Numbers of the sky's structure: amplifiers, stripes, patterns, gradients, edges, and how sources spread.

Levels are given relative to the sky; where the sky is near zero (sky-subtracted images) relative to the square of the
expected noise times the gain of one, so that the numbers stay finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

from hpcqa.pixels.background import Scan, Sky, Sources, sky

if TYPE_CHECKING:
    from hpcqa.pixels.measure import Facts

STRIP = 16  # working pixels on each side of an amplifier boundary
CHUNKS = 8  # pieces that a step or an edge is measured in; their median counts
SCALES = (1, 2, 4, 8, 16)


def reference_level(level: float, expected: float) -> float:
    """What levels are divided by: the sky, but never less than the square of the expected noise."""
    return max(level, expected * expected, 1e-3)


def amplifier_numbers(
    pixels: np.ndarray, masked: np.ndarray, scanned: Scan, sources: Sources, whole: Sky, expected: float, facts: Facts
) -> dict[str, float]:
    """Noise of two amplifiers side by side and the step between them; nothing for other layouts."""
    if len(facts.amplifiers) != 2 or not 0 < facts.amplifiers[1].col0 < pixels.shape[1]:
        return {}
    split = facts.amplifiers[1].col0
    left, right = (
        sky(pixels[:, part], masked[:, part], samples=1 << 13) for part in (slice(0, split), slice(split, None))
    )
    step = amplifier_step(scanned, sources, split / scanned.step)
    reference = reference_level(whole.level, expected)
    return {
        "amp_noise_left": left.noise / expected,
        "amp_noise_right": right.noise / expected,
        "amp_difference": (right.level - left.level) / reference,
        "amp_step_sky": step / reference,
        "amp_step_noise": step / whole.noise if whole.noise > 0 else math.nan,
    }


def amplifier_step(scanned: Scan, sources: Sources, split: float) -> float:
    """Step of the background at a column of the working image, in ADU: right less left, a local slope taken out."""
    cols = scanned.mean.shape[1]
    left, right = math.floor(split), math.ceil(split)
    width = min(STRIP, left // 2, (cols - right) // 2)
    if width < 2:
        return math.nan
    starts = (left - 2 * width, left - width, right, right + width)
    levels = np.stack([strip_levels(scanned, sources, start, start + width) for start in starts])
    far_left, near_left, near_right, far_right = levels
    slope = 0.5 * ((near_left - far_left) + (far_right - near_right))
    steps = near_right - near_left - slope
    steps = steps[np.isfinite(steps)]
    return float(np.median(steps)) if len(steps) else math.nan


def strip_levels(scanned: Scan, sources: Sources, start: int, stop: int) -> np.ndarray:
    """Mean of the working pixels without sources of columns start to stop, in CHUNKS pieces along the rows."""
    usable = (~sources.near[:, start:stop]) & (scanned.count[:, start:stop] > 0)
    values = np.where(usable, scanned.mean[:, start:stop], 0.0).sum(axis=1, dtype=np.float64)
    edges = np.linspace(0, len(values), CHUNKS + 1).astype(int)[:-1]
    total, number = np.add.reduceat(values, edges), np.add.reduceat(usable.sum(axis=1), edges)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


# Stripes --------------------------------------------------------------------------------------------------------------


def stripe_numbers(scanned: Scan, noise: float) -> dict[str, float]:
    """Scatter and periodicity of the profiles along rows and columns, over the expected."""
    rows = [
        profile_numbers(scanned.row_mean[side], scanned.row_count[side], noise)
        for side in range(2)
        if scanned.row_count[side].any()
    ]
    cols = profile_numbers(scanned.col_mean, scanned.col_count, noise)
    worst = max(rows, key=lambda one: one[2] if math.isfinite(one[2]) else -math.inf, default=(math.nan,) * 4)
    numbers = dict(zip(("col_noise", "col_wave", "col_period_power", "col_period"), cols, strict=True))
    numbers |= dict(zip(("row_noise", "row_wave", "row_period_power", "row_period"), worst, strict=True))
    if len(rows) == 2:
        numbers["row_amp_correlation"] = _correlation(scanned.row_mean, scanned.row_count)
    return numbers


def _correlation(profiles: np.ndarray, counts: np.ndarray) -> float:
    good = (counts > 0).all(axis=0)
    if good.sum() < 64:
        return math.nan
    first, second = (_clip(high_pass(profiles[side, good])) for side in range(2))
    scale = float(first.std() * second.std())
    return float(np.mean(first * second)) / scale if scale > 0 else math.nan


def profile_numbers(profile: np.ndarray, count: np.ndarray, noise: float) -> tuple[float, float, float, float]:
    """Of one profile: scatter between neighbours, scatter about the running mean (both over the expected), height of
    the highest peak of its power spectrum over the median (dex), and that peak's period in pixels.
    """
    good = count > 0.25 * count.max(initial=1)
    values, number = profile[good].astype(np.float64), count[good]
    if len(values) < 24 or noise <= 0:
        return (math.nan,) * 4
    expected = noise * float(np.sqrt(np.mean(1.0 / number)))
    differences = np.abs(np.diff(values))
    passed = high_pass(values)
    power = np.abs(np.fft.rfft(_clip(passed))) ** 2
    first = max(2, len(values) // 300)
    middle = float(np.median(power[first:]))
    place = first + int(np.argmax(power[first:]))
    return (
        1.4826 * float(np.median(differences)) / math.sqrt(2.0) / expected,
        1.4826 * float(np.median(np.abs(passed))) / expected,
        math.log10(float(power[place]) / middle) if middle > 0 else math.nan,
        len(values) / place,
    )


def high_pass(values: np.ndarray, width: int = 65) -> np.ndarray:
    """Values less their running mean over `width`, shorter at the ends."""
    half = min(width, len(values)) // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return values - (total[stop] - total[start]) / (stop - start)


def _clip(values: np.ndarray) -> np.ndarray:
    limit = 4.0 * 1.4826 * float(np.median(np.abs(values)))
    return np.clip(values, -limit, limit) if limit > 0 else values


# Patterns -------------------------------------------------------------------------------------------------------------


def pattern_numbers(cells: np.ndarray, counts: np.ndarray, whole: Sky, step: int) -> dict[str, float]:
    """Structure of the context cells without sources: a peak in the power spectrum, and scatter on several scales.

    Args:
        cells: (h, w) ADU, NaN where unknown.
        counts: (h, w) native pixels behind each.
        whole: sky of the image.
        step: native pixels along a cell.
    """
    inside = np.isfinite(cells)
    if inside.sum() < 64 or whole.noise <= 0:
        return {}
    rows, cols = int(np.flatnonzero(inside.any(axis=1))[-1]) + 1, int(np.flatnonzero(inside.any(axis=0))[-1]) + 1
    inside, number = inside[:rows, :cols], counts[:rows, :cols]
    flat = np.where(inside, cells[:rows, :cols] - np.float32(whole.level), np.float32(0))
    flat = np.where(inside, flat - np.float32(np.median(flat[inside])), np.float32(0))
    numbers = {f"scatter_{scale}": _scatter(flat, inside, number, scale, whole.noise) for scale in SCALES}
    limit = 4.0 * 1.4826 * float(np.median(np.abs(flat[inside])))
    power = np.abs(np.fft.rfft2(np.clip(flat, -limit, limit))) ** 2
    rate_row, rate_col = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)[None, :]
    rate = np.hypot(rate_row, rate_col)
    # Lower frequencies belong to gradients and ghosts.
    allowed = rate > 4.0 / min(rows, cols)
    if not allowed.any():
        return numbers
    place = int(np.argmax(np.where(allowed, power, -1.0)))
    middle = float(np.median(power[allowed]))
    if middle > 0:
        numbers["pattern_power"] = math.log10(float(power.flat[place]) / middle)
        numbers["pattern_wavelength"] = step / float(rate.flat[place])
    return numbers


def _scatter(flat: np.ndarray, inside: np.ndarray, number: np.ndarray, scale: int, noise: float) -> float:
    """log10 of the robust scatter of scale x scale averages over what white noise would give."""
    rows, cols = (flat.shape[0] // scale) * scale, (flat.shape[1] // scale) * scale
    if rows == 0 or cols == 0:
        return math.nan
    weight = np.where(inside, number, 0)[:rows, :cols].astype(np.float64)
    shape = (rows // scale, scale, cols // scale, scale)
    behind = weight.reshape(shape).sum(axis=(1, 3))
    total = (flat[:rows, :cols] * weight).reshape(shape).sum(axis=(1, 3))
    good = behind > 0.25 * behind.max()
    if good.sum() < 6:
        return math.nan
    z = total[good] / behind[good] / (noise / np.sqrt(behind[good]))
    spread = 1.4826 * float(np.median(np.abs(z - np.median(z))))
    return math.log10(spread) if spread > 0 else math.nan


# The background map ---------------------------------------------------------------------------------------------------


def map_numbers(background: np.ndarray, level: float, expected: float) -> dict[str, float]:
    """Plane, scatter, extremes and quadrants of a background map (H, W) in ADU, NaN where unknown."""
    inside = np.isfinite(background)
    if inside.sum() < 12:
        return {}
    rows, cols = int(np.flatnonzero(inside.any(axis=1))[-1]) + 1, int(np.flatnonzero(inside.any(axis=0))[-1]) + 1
    inside = inside[:rows, :cols]
    relative = (background[:rows, :cols] - level) / reference_level(level, expected)
    plane, slope_row, slope_col = _plane(relative, inside)
    rest = np.where(inside, relative - plane, np.nan)
    smooth = _mean_of_nine(rest)
    numbers = {
        "gradient_row": slope_row,
        "gradient_col": slope_col,
        "gradient": math.hypot(slope_row, slope_col),
        "map_rms": 1.4826 * float(np.nanmedian(np.abs(rest - np.nanmedian(rest)))),
        "map_high": float(np.nanmax(smooth)),
        "map_low": float(np.nanmin(smooth)),
        "map_missing": 1.0 - float(inside.mean()),
    }
    return numbers | _parts(relative, rest)


def _plane(relative: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float, float]:
    """A plane through the map by least squares, refitted without what lies 3 sigma off; slopes across the whole map."""
    rows, cols = relative.shape
    y, x = np.mgrid[0:rows, 0:cols]
    design = np.stack([np.ones(relative.shape), y / max(rows - 1, 1) - 0.5, x / max(cols - 1, 1) - 0.5], axis=-1)
    used = inside
    for _ in range(3):
        answer = np.linalg.lstsq(design[used], relative[used], rcond=None)[0]
        rest = np.where(inside, relative - design @ answer, np.nan)
        limit = 3.0 * 1.4826 * float(np.nanmedian(np.abs(rest))) + 1e-12
        used = inside & (np.abs(np.nan_to_num(rest, nan=np.inf)) <= limit)
        if used.sum() < 6:
            break
    return design @ answer, float(answer[1]), float(answer[2])


def _mean_of_nine(values: np.ndarray) -> np.ndarray:
    """Mean of the known cells among nine; NaN where fewer than four are known."""
    known = np.isfinite(values)
    padded, number = np.pad(np.where(known, values, 0.0), 1), np.pad(known.astype(float), 1)
    rows, cols = values.shape
    shifts = [(a, b) for a in range(3) for b in range(3)]
    total = sum(padded[a : a + rows, b : b + cols] for a, b in shifts)
    count = sum(number[a : a + rows, b : b + cols] for a, b in shifts)
    enough = count >= 4
    mean = np.where(enough, total / np.maximum(count, 1), np.nan)
    return mean if enough.any() else np.where(known, values, np.nan)


def _parts(relative: np.ndarray, rest: np.ndarray) -> dict[str, float]:
    rows, cols = relative.shape
    if rows < 4 or cols < 4:
        return {}
    halves = [slice(0, rows // 2), slice(rows // 2, rows)], [slice(0, cols // 2), slice(cols // 2, cols)]
    quadrants = [_median(relative[a, b]) for a in halves[0] for b in halves[1]]
    border = np.ones(rest.shape, bool)
    border[1:-1, 1:-1] = False
    centre = rest[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4]
    return {
        "quadrant_spread": max(quadrants) - min(quadrants),
        "map_curvature": _median(centre) - _median(rest[border]),
    }


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def edge_numbers(scanned: Scan, sources: Sources, level: float, expected: float) -> dict[str, float]:
    """Largest excess and deficit of the four edges, about 24 native pixels wide, over a strip further in."""
    width = max(1, round(24 / scanned.step))
    if min(scanned.mean.shape) < 8 * width:
        return {}
    usable = (~sources.near) & (scanned.count > 0)
    values = np.where(usable, scanned.mean, np.float32(0))
    excesses = []
    for turned, good in (
        (values, usable),
        (values[::-1], usable[::-1]),
        (values.T, usable.T),
        (values.T[::-1], usable.T[::-1]),
    ):
        edge = _chunk_means(turned[:width], good[:width])
        inner = _chunk_means(turned[2 * width : 4 * width], good[2 * width : 4 * width])
        excesses.append(_median(edge - inner))
    known = [value for value in excesses if math.isfinite(value)]
    if not known:
        return {}
    reference = reference_level(level, expected)
    return {"edge_excess": max(known) / reference, "edge_deficit": min(known) / reference}


def _chunk_means(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    starts = np.linspace(0, values.shape[1], CHUNKS + 1).astype(int)[:-1]
    total = np.add.reduceat(values.sum(axis=0, dtype=np.float64), starts)
    number = np.add.reduceat(good.sum(axis=0), starts)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


# Sources --------------------------------------------------------------------------------------------------------------


def spread_numbers(rows: np.ndarray, cols: np.ndarray, small: tuple[int, int], step: int) -> dict[str, float]:
    """How evenly the sources (native pixels) spread over the CCD."""
    height, width = small[0] * step, small[1] * step
    quadrant = 2 * (rows >= height / 2).astype(int) + (cols >= width / 2).astype(int)
    counts = np.bincount(quadrant, minlength=4)
    mean = counts.mean()
    part = (np.minimum(rows / height * 8, 7).astype(int) * 8 + np.minimum(cols / width * 8, 7).astype(int)).astype(int)
    return {
        "source_unevenness": float(np.ptp(counts)) / math.sqrt(mean) if mean > 0 else math.nan,
        "empty_share": 1.0 - len(np.unique(part)) / 64,
    }


def coarse(found: np.ndarray, side: int = 128) -> np.ndarray:
    """A detection map with at most `side` rows and columns: set where any pixel of a block is."""
    step = max(1, -(-max(found.shape) // side))
    rows, cols = -(-found.shape[0] // step), -(-found.shape[1] // step)
    padded = np.zeros((rows * step, cols * step), np.bool_)
    padded[: found.shape[0], : found.shape[1]] = found
    return np.ascontiguousarray(padded.reshape(rows, step, cols, step).any(axis=(1, 3)))


@numba.njit(cache=True, nogil=True)
def trail_length(found: np.ndarray, c: float, s: float) -> float:
    """Mean length of runs of detected pixels along the sources' common axis, less that across it, in pixels.

    `c` and `s` are the components of the mean gradient axis; trails lie across it. Runs are taken along the nearest of
    rows, columns and diagonals.
    """
    angle = 0.5 * np.arctan2(s, c) + 0.5 * np.pi
    lengths = np.zeros(2)
    for k in range(2):
        turn = angle + 0.5 * np.pi * k
        dx, dy = round(np.cos(turn)), round(np.sin(turn))
        unit = (dx * dx + dy * dy) ** 0.5
        starts = pixels = 0
        for i in range(found.shape[0]):
            for j in range(found.shape[1]):
                if not found[i, j]:
                    continue
                pixels += 1
                a, b = i - dy, j - dx
                outside = a < 0 or b < 0 or a >= found.shape[0] or b >= found.shape[1]
                if outside or not found[a, b]:
                    starts += 1
        lengths[k] = unit * pixels / max(starts, 1)
    return lengths[0] - lengths[1]
