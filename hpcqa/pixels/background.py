"""Sky, noise and the background without sources: one pass over the native pixels, the rest on a binned image.

Everything here is compiled (numba) and releases the GIL. Pixels are float32 in ADU, `masked` is bool; a pixel counts as
valid when it is finite and not masked. Shapes: R, C native rows and columns; r, c binned; the binned image has
ceil(R / step) rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.pixels.kernels import fast_kernel, kernel

# The binned image that sources are found on has at most this many pixels along a side: 4x4 binning for a 2k x 4k CCD.
WORKING_SIDE = 1024
SAMPLES = 1 << 15
MESH = 32  # binned pixels along a side of a cell of the local background
SOURCE_SIGMA = 3.0
GROW_PIXELS = 7
# A mask of sources that covers more than this share of the CCD is of no use (crowding, bright sky structure).
MOST_SOURCES = 0.5


@dataclass(frozen=True)
class Sky:
    """Level and noise of one image, or of a part of it.

    Attributes:
        level: clipped median, ADU.
        noise: standard deviation of a pixel from neighbouring differences, ADU; blind to gradients.
        spread: standard deviation of the pixels about the level, ADU; sees gradients.
        above: share of pixels more than 5 noise above the level.
        below: share of pixels more than 5 noise below the level.
        num: pixels that were looked at.
    """

    level: float
    noise: float
    spread: float
    above: float
    below: float
    num: int


@kernel
def _sample(
    pixels: np.ndarray, masked: np.ndarray, step_row: int, step_col: int, values: np.ndarray, following: np.ndarray
) -> int:
    """Valid pixels of a grid, and their right-hand neighbours (NaN where these are not valid)."""
    num = 0
    rows, cols = pixels.shape
    for i in range(0, rows, step_row):
        # The first column shifts from row to row, so that periodic columns are not sampled in step.
        for j in range((i // step_row * 7) % step_col, cols, step_col):
            value = pixels[i, j]
            if masked[i, j] or not np.isfinite(value):
                continue
            values[num], following[num] = value, np.nan
            if j + 1 < cols and not masked[i, j + 1] and np.isfinite(pixels[i, j + 1]):
                following[num] = pixels[i, j + 1]
            num += 1
    return num


@kernel
def _difference_noise(values: np.ndarray, following: np.ndarray, limit: float) -> float:
    """Noise from differences of neighbours that both lie below a limit: stars would add theirs."""
    differences = np.empty(values.size, np.float32)
    num = 0
    for k in range(values.size):
        if values[k] <= limit and following[k] <= limit:
            differences[num] = abs(following[k] - values[k])
            num += 1
    return np.median(differences[:num]) * 1.4826 / 2.0**0.5 if num > 0 else np.nan


@kernel
def _clipped(ordered: np.ndarray, num: int) -> tuple[float, float]:
    """Median and one-sided sigma of sorted values, the bright tail clipped at 3 sigma again and again."""
    level, sigma = 0.0, 0.0
    for _ in range(8):
        level = 0.5 * (ordered[(num - 1) // 2] + ordered[num // 2])
        sigma = level - ordered[int(0.15866 * num)]
        kept = np.searchsorted(ordered[:num], level + 3.0 * sigma, side="right")
        if kept >= num or kept < 8:
            break
        num = kept
    return level, sigma


def sky(pixels: np.ndarray, masked: np.ndarray, *, samples: int = SAMPLES) -> Sky:
    """Sky level and noise of an image (R, C) from about `samples` pixels spread over it.

    With 32,768 samples the level is within 2 % and the noise within 2 % of a sigma of the full image's.
    """
    rows, cols = pixels.shape
    thin = max(1.0, (rows * cols / samples) ** 0.5)
    step_row, step_col = max(1, round(thin)), max(1, int(thin))
    room = (rows // step_row + 1) * (cols // step_col + 1)
    values, following = np.empty(room, np.float32), np.empty(room, np.float32)
    num = _sample(pixels, masked, step_row, step_col, values, following)
    if num == 0:
        return Sky(np.nan, np.nan, np.nan, 0.0, 0.0, 0)
    values, following = values[:num], following[:num]
    ordered = np.sort(values)
    level, spread = _clipped(ordered, num)
    noise = float(_difference_noise(values, following, level + 3.0 * spread))
    noise = noise if np.isfinite(noise) else spread
    above = 1.0 - np.searchsorted(ordered, level + 5.0 * noise, side="right") / num
    below = np.searchsorted(ordered, level - 5.0 * noise, side="left") / num
    return Sky(level, noise, spread, float(above), float(below), num)


@dataclass(frozen=True)
class Scan:
    """What one pass over the native pixels gives.

    Attributes:
        step: native pixels along a side of a binned one.
        mean: (r, c) float32, mean of the valid pixels, ADU; 0 where there is none.
        count: (r, c) float32, valid pixels.
        row_mean: (2, R) float32, clipped mean of each row less the sky, ADU, left and right of the split.
        row_count: (2, R) float32, pixels behind it.
        col_mean: (C,) float32, clipped mean of each column less the sky, ADU.
        col_count: (C,) float32.
        saturated: (C,) float32, saturated pixels in each column, masked or not; from every `step`-th row.
        constant_rows: rows whose pixels are all equal.
    """

    step: int
    mean: np.ndarray
    count: np.ndarray
    row_mean: np.ndarray
    row_count: np.ndarray
    col_mean: np.ndarray
    col_count: np.ndarray
    saturated: np.ndarray
    constant_rows: int


# Counts are float32, exact up to 2**24, so that the loops below use one vector width; a finite number is one whose
# absolute value is at most the largest (false for NaN).
_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


@fast_kernel
def _split_row(
    row: np.ndarray, masked: np.ndarray, level: np.float32, cut: np.float32, clean: np.ndarray, lines: np.ndarray
) -> None:
    """A row less the sky (0 where not valid); lines: valid, clipped, and whether within the clip, as 0 and 1.

    Separate simple loops over a row in the cache are twice as fast as one that does everything: all of them vectorise.
    """
    for j in range(row.shape[0]):
        good = (abs(row[j]) <= _LARGEST) & (masked[j] == 0)
        less = row[j] - level if good else _ZERO
        valid = _ONE if good else _ZERO
        inside = abs(less) <= cut
        clean[j] = less
        lines[0, j] = valid
        lines[1, j] = less if inside else _ZERO
        lines[2, j] = valid if inside else _ZERO


@fast_kernel
def _sums(first: np.ndarray, second: np.ndarray) -> tuple[np.float32, np.float32]:
    one, two = _ZERO, _ZERO
    for j in range(first.shape[0]):
        one += first[j]
        two += second[j]
    return one, two


@fast_kernel
def _add(row: np.ndarray, total: np.ndarray) -> None:
    for j in range(row.shape[0]):
        total[j] += row[j]


@fast_kernel
def _add_saturated(row: np.ndarray, full: np.float32, every: np.float32, saturated: np.ndarray) -> None:
    for j in range(row.shape[0]):
        saturated[j] += every if row[j] >= full else _ZERO


@fast_kernel
def _add_binned(values: np.ndarray, step: int, total: np.ndarray) -> None:
    cols = values.shape[0]
    whole = cols // step
    # Two and four are the full-size camera's, unrolled because that is three times as fast.
    if step == 4:
        for k in range(whole):
            total[k] += values[4 * k] + values[4 * k + 1] + values[4 * k + 2] + values[4 * k + 3]
    elif step == 2:
        for k in range(whole):
            total[k] += values[2 * k] + values[2 * k + 1]
    else:
        for k in range(whole):
            part = _ZERO
            for j in range(k * step, k * step + step):
                part += values[j]
            total[k] += part
    for j in range(whole * step, cols):
        total[whole] += values[j]


@kernel
def _is_constant(row: np.ndarray) -> bool:
    last = 1
    while last < row.shape[0] and row[last] == row[0]:
        last += 1
    return bool(last >= row.shape[0])


@kernel
def _scan(
    pixels: np.ndarray,
    masked: np.ndarray,
    step: int,
    split: int,
    facts: tuple[np.float32, np.float32, np.float32],
    arrays: tuple[np.ndarray, ...],
) -> int:
    mean, count, row_mean, row_count, col_total, col_count, saturated = arrays
    level, cut, full = facts
    rows, cols = pixels.shape
    clean, lines = np.empty(cols, np.float32), np.empty((3, cols), np.float32)
    # The rows of one working row are added first, so that the slower binning along the row is done once for them.
    sums = np.zeros((2, cols), np.float32)
    constant = 0
    for i in range(rows):
        _split_row(pixels[i], masked[i], level, cut, clean, lines)
        for side in range(2):
            start, stop = (0, split) if side == 0 else (split, cols)
            total, number = _sums(lines[1, start:stop], lines[2, start:stop])
            row_mean[side, i] = total / number if number > 0 else _ZERO
            row_count[side, i] = number
        _add(lines[1], col_total)
        _add(lines[2], col_count)
        _add(clean, sums[0])
        _add(lines[0], sums[1])
        if i % step == 0:
            _add_saturated(pixels[i], full, np.float32(step), saturated)
        if i % step == step - 1 or i == rows - 1:
            _add_binned(sums[0], step, mean[i // step])
            _add_binned(sums[1], step, count[i // step])
            sums[:] = 0
        constant += 1 if _is_constant(pixels[i]) else 0
    for k in range(cols):
        col_total[k] = col_total[k] / col_count[k] if col_count[k] > 0 else _ZERO
    for k in range(mean.shape[0]):
        for m in range(mean.shape[1]):
            mean[k, m] = mean[k, m] / count[k, m] + level if count[k, m] > 0 else _ZERO
    return constant


def working_step(shape: tuple[int, int]) -> int:
    """Native pixels along a side of a pixel of the working image."""
    return max(1, -(-max(shape) // WORKING_SIDE))


def scan(pixels: np.ndarray, masked: np.ndarray, *, level: float, noise: float, split: int, saturation: float) -> Scan:
    """One pass over the native pixels (R, C).

    Args:
        pixels: float32, ADU.
        masked: bool, same shape.
        level: of the sky, ADU.
        noise: of a pixel, ADU; the profiles use pixels within 5 noise of the level.
        split: column where the second amplifier starts; 0 or C when there is none.
        saturation: pixels at or above are saturated, ADU.
    """
    rows, cols = pixels.shape
    step = working_step((rows, cols))
    small = (-(-rows // step), -(-cols // step))
    cut = 5.0 * noise if noise > 0 else 1e-3 * max(abs(level), 1.0)
    facts = (np.float32(level), np.float32(cut), np.float32(saturation))
    mean, count = np.zeros(small, np.float32), np.zeros(small, np.float32)
    row_mean, row_count = np.zeros((2, rows), np.float32), np.zeros((2, rows), np.float32)
    columns = np.zeros((3, cols), np.float32)
    arrays = (mean, count, row_mean, row_count, columns[0], columns[1], columns[2])
    constant = _scan(pixels, masked.view(np.uint8), step, split, facts, arrays)
    return Scan(step, mean, count, row_mean, row_count, columns[0], columns[1], columns[2], int(constant))


# The local background and the mask of sources -------------------------------------------------------------------------


@kernel
def _gather(mean: np.ndarray, count: np.ndarray, enough: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of the working pixels of each cell, (cells, n) with infinity at the end, and how many there are."""
    rows, cols = mean.shape
    down, across = -(-rows // cell), -(-cols // cell)
    values = np.full((down * across, (cell // 2 + 1) ** 2), np.float32(np.inf))
    numbers = np.zeros(down * across, np.int64)
    for i in range(0, rows, 2):
        for j in range((i // 2) % 2, cols, 2):
            if count[i, j] >= enough:
                place = i // cell * across + j // cell
                values[place, numbers[place]] = mean[i, j]
                numbers[place] += 1
    return values, numbers


@kernel
def _clip_cells(ordered: np.ndarray, numbers: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    levels, sigmas = np.full(numbers.size, np.float32(level)), np.full(numbers.size, np.float32(np.nan))
    for k in range(numbers.size):
        if numbers[k] >= 8:
            levels[k], sigmas[k] = _clipped(ordered[k], numbers[k])
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

    The mesh is interpolated between the centres of its cells.
    """
    rows, cols = mean.shape
    last_row, last_col = mesh.shape[0] - 1, mesh.shape[1] - 1
    left = np.empty(cols, np.int64)
    weight = np.empty(cols, np.float32)
    for j in range(cols):
        x = min(max((j + 0.5) / cell - 0.5, 0.0), float(last_col))
        left[j] = min(int(x), max(last_col - 1, 0))
        weight[j] = x - left[j]
    out, background = np.empty_like(mean), np.empty_like(mean)
    line = np.empty(mesh.shape[1], np.float32)
    for i in range(rows):
        y = min(max((i + 0.5) / cell - 0.5, 0.0), float(last_row))
        top = min(int(y), max(last_row - 1, 0))
        down = min(top + 1, last_row)
        part = np.float32(y - top)
        for m in range(mesh.shape[1]):
            line[m] = mesh[top, m] * (np.float32(1) - part) + mesh[down, m] * part
        for j in range(cols):
            right = min(left[j] + 1, last_col)
            local = line[left[j]] * (np.float32(1) - weight[j]) + line[right] * weight[j]
            background[i, j] = local
            out[i, j] = mean[i, j] - local if count[i, j] > 0 else np.float32(0)
    return out, background


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


@kernel
def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within a square of `radius` around a set pixel."""
    rows, cols = mask.shape
    lines = np.zeros_like(mask)
    for i in range(rows):
        last = -radius - 1
        for j in range(cols):
            if mask[i, j]:
                for k in range(max(j - radius, last + 1, 0), min(j + radius + 1, cols)):
                    lines[i, k] = True
                last = min(j + radius, cols - 1)
    out = np.zeros_like(mask)
    for i in range(rows):
        for k in range(max(i - radius, 0), min(i + radius + 1, rows)):
            for j in range(cols):
                out[i, j] |= lines[k, j]
    return out


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


def _lower_sigma(smooth: np.ndarray, count: np.ndarray, enough: int) -> float:
    """Noise of the smoothed image from what lies below its clipped median, where no star is; 0 unknown."""
    some = (slice(1, None, 4), slice(2, None, 4)) if smooth.size > 1 << 16 else (slice(None), slice(None))
    ordered = np.sort(smooth[some][count[some] >= enough])
    return float(_clipped(ordered, len(ordered))[1]) if len(ordered) >= 8 else 0.0


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
                _add_binned(lines[which], side, sums[which, i // side])
            lines[:] = 0
    out = np.empty((2, shape[0], shape[1]), np.float32)
    counts = np.empty((2, shape[0], shape[1]), np.float32)
    for which in range(2):
        for k in range(shape[0]):
            for m in range(shape[1]):
                behind = sums[2 * which + 1, k, m]
                counts[which, k, m] = behind
                out[which, k, m] = sums[2 * which, k, m] / behind + reference if behind > 0 else np.nan
    return out, counts
