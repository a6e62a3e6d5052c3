"""Numbers of the sky's structure: amplifiers, stripes and patterns.

Levels are given relative to the sky; where the sky is near zero (sky-subtracted images) relative to the square of the
expected noise, so that the numbers stay finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft

from hpcqa.instruments.base import Region
from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.cutouts import Binned
from hpcqa.pixels.floatbits import largest_size, size_bits
from hpcqa.pixels.medians import median
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import MAD, Sky

STRIP = 16  # working pixels on each side of an amplifier boundary
THIN_FROM = 1 << 14  # cells of a map of which a quarter tell its scatter to one percent
CHUNKS = 8  # pieces that a step or an edge is measured in; their median counts
SCALES = (1, 2, 4, 8, 16)


def reference_level(level: float, expected: float) -> float:
    """What levels are divided by: the sky, but never less than the square of the expected noise."""
    return max(level, expected * expected, 1e-3)


# Amplifiers -----------------------------------------------------------------------------------------------------------


def amplifier_numbers(
    scanned: Scan, sources: Sources, skies: tuple[Sky, Sky, Sky], expected: float, amplifiers: Sequence[Region]
) -> dict[str, float]:
    """Noise of two amplifiers side by side and the step between them; nothing for other layouts.

    `skies` are those of the whole image, and left and right of where the second amplifier begins.
    """
    if len(amplifiers) != 2 or not 0 < amplifiers[1].col0 < scanned.col_mean.size:
        return {}
    split = amplifiers[1].col0
    whole, left, right = skies
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
    left, right = math.floor(split), math.ceil(split)
    width = min(STRIP, left // 2, (scanned.mean.shape[1] - right) // 2)
    if width < 2:
        return math.nan
    return float(_step(scanned.mean, scanned.count, sources.near, left, right, width))


@kernel
def _step(mean: np.ndarray, count: np.ndarray, near: np.ndarray, left: int, right: int, width: int) -> float:
    """Median over CHUNKS pieces along the rows; two strips of columns on each side give the slope."""
    starts = (left - 2 * width, left - width, right, right + width)
    steps, levels = np.empty(CHUNKS), np.empty(4)
    for k in range(CHUNKS):
        first, last = k * len(mean) // CHUNKS, (k + 1) * len(mean) // CHUNKS
        for strip in range(4):
            usable = area_sums(mean, count, near, (first, last, starts[strip], starts[strip] + width))[0]
            levels[strip] = usable[0] / usable[1] if usable[1] > 0 else np.nan
        slope = 0.5 * ((levels[1] - levels[0]) + (levels[3] - levels[2]))
        steps[k] = levels[2] - levels[1] - slope
    return median(steps)


@inner_kernel
def area_sums(
    mean: np.ndarray, count: np.ndarray, near: np.ndarray, area: tuple[int, int, int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sum and number of the working pixels of an area (rows from, to; columns from, to) that are valid.

    Returns:
        Of those that are not near a source, and of all.
    """
    usable_sum = usable = every_sum = every = 0.0
    first, last, start, stop = area
    for i in range(first, last):
        sums = _row_sums(mean[i, start:stop], count[i, start:stop], near[i, start:stop])
        usable_sum, usable = usable_sum + sums[0], usable + sums[1]
        every_sum, every = every_sum + sums[2], every + sums[3]
    return (usable_sum, usable), (every_sum, every)


@fast_kernel
def _row_sums(mean: np.ndarray, count: np.ndarray, near: np.ndarray) -> tuple[Any, Any, Any, Any]:
    usable_sum = usable = every_sum = every = 0.0
    for j in range(mean.shape[0]):
        one = 1.0 if count[j] != 0 else 0.0
        far = one if near[j] == 0 else 0.0
        value = np.float64(mean[j])
        usable_sum, usable = usable_sum + far * value, usable + far
        every_sum, every = every_sum + one * value, every + one
    return usable_sum, usable, every_sum, every


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


@kernel
def _correlation(profiles: np.ndarray, counts: np.ndarray) -> float:
    good = (counts[0] > 0) & (counts[1] > 0)
    if good.sum() < 64:
        return np.nan
    first, second = clip(high_pass(profiles[0][good])), clip(high_pass(profiles[1][good]))
    scale = first.std() * second.std()
    return np.mean(first * second) / scale if scale > 0 else np.nan


@kernel
def high_pass(values: np.ndarray) -> np.ndarray:
    """Values less their running mean over 65, shorter at the ends; float32."""
    half = min(65, values.size) // 2
    total = np.zeros(values.size + 1)
    for k in range(values.size):
        total[k + 1] = total[k] + values[k]
    out = np.empty(values.size, np.float32)
    for k in range(values.size):
        start, stop = max(k - half, 0), min(k + half + 1, values.size)
        out[k] = values[k] - (total[stop] - total[start]) / (stop - start)
    return out


@kernel
def clip(values: np.ndarray) -> np.ndarray:
    """Values within four robust standard deviations of zero."""
    limit = values.dtype.type(4.0 * MAD * median(np.abs(values)))
    return np.minimum(np.maximum(values, -limit), limit) if limit > 0 else values


@kernel
def _profile_scatter(profile: np.ndarray, count: np.ndarray, noise: float) -> tuple[float, float, np.ndarray]:
    """Scatter between neighbours and about the running mean, over the expected; what is left to transform."""
    good = count > 0.25 * count.max()
    values = profile[good]
    if values.size < 24 or noise <= 0:
        return np.nan, np.nan, np.empty(0, np.float32)
    expected = noise * np.sqrt(np.mean(1.0 / count[good]))
    passed = high_pass(values)
    neighbours = MAD * median(np.abs(np.diff(values))) / 2.0**0.5 / expected
    return neighbours, MAD * median(np.abs(passed)) / expected, clip(passed)


def profile_numbers(profile: np.ndarray, count: np.ndarray, noise: float) -> tuple[float, float, float, float]:
    """Of one profile: scatter between neighbours, scatter about the running mean (both over the expected), height of
    the highest peak of its power spectrum over the median (dex), and that peak's period in pixels.
    """
    neighbours, wave, passed = _profile_scatter(profile, count, noise)
    if passed.size == 0:
        return (math.nan,) * 4
    length = fast_length(passed.size)
    height, place = _profile_peak(scipy.fft.rfft(passed, length), max(2, length // 300))
    return float(neighbours), float(wave), float(height), length / place


def fast_length(num: int) -> int:
    """A length not much above `num` that is soon transformed; zeros at the end change no spectrum that is looked at.

    4094 = 2 * 23 * 89 takes more than twice as long as 4096, a map of 500 x 256 1.7 times as long as one of 512 x 256
    (scipy.fft's rfft of float64 and rfft2 of float32, Intel Xeon, 2026-11-29).
    """
    power = 1 << (num - 1).bit_length()
    return power if power <= num + num // 16 else int(scipy.fft.next_fast_len(num, real=True))


@kernel
def _profile_peak(transform: np.ndarray, first: int) -> tuple[float, int]:
    """Highest power from a frequency on over the median (dex), and where it is."""
    power = transform.real[first:] ** 2 + transform.imag[first:] ** 2
    middle, place = median(power), int(np.argmax(power))
    return (np.log10(power[place] / middle) if middle > 0 else np.nan), first + place


# Patterns -------------------------------------------------------------------------------------------------------------


def pattern_numbers(context: Binned, whole: Sky) -> dict[str, float]:
    """Structure of the context cells without sources: a peak in the power spectrum, and scatter on several scales."""
    rows, cols = extent(context.mean[1])
    if rows * cols < 64 or whole.noise <= 0:
        return {}
    lengths = fast_length(rows), fast_length(cols)
    flat, bounded = _centred(context.mean[1], rows, cols, lengths)
    number = context.count[1][:rows, :cols]
    spreads = _scatters(flat, number, whole.noise, len(SCALES))
    numbers = {f"scatter_{scale}": float(value) for scale, value in zip(SCALES, spreads, strict=True)}
    height, rate = _pattern_peak(scipy.fft.rfft2(bounded, overwrite_x=True), *lengths)
    numbers["pattern_power"] = float(height)
    numbers["pattern_wavelength"] = context.bin / float(rate) if rate > 0 else math.nan
    return numbers


@kernel
def extent(cells: np.ndarray) -> tuple[int, int]:
    """Rows and columns of the smallest corner that holds all finite cells."""
    rows = cols = 0
    for i in range(cells.shape[0]):
        # The last column of the widest row so far is known in most rows, and so is their first one.
        last = cells.shape[1]
        while last > cols and not np.isfinite(cells[i, last - 1]):
            last -= 1
        cols = max(cols, last)
        first = 0
        while first < last and not np.isfinite(cells[i, first]):
            first += 1
        rows = i + 1 if first < last else rows
    return rows, cols


@kernel
def _centred(cells: np.ndarray, rows: int, cols: int, wide: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells less their median, 0 where unknown; the same within four robust standard deviations, with zeros behind.

    Returns:
        (rows, cols) float32; `wide` float32.
    """
    # A thin sample of a large map is enough to know both to one percent.
    apart = 4 if ((rows + 1) // 2) * ((cols + 1) // 2) >= THIN_FROM else 2
    sample = cells[:rows:apart, :cols:apart].copy().ravel()
    middle = np.float32(median(sample))
    limit = np.float32(4.0 * MAD * median(np.abs(sample - middle)))
    flat, bounded = np.empty((rows, cols), np.float32), np.empty(wide, np.float32)
    bounded[rows:], bounded[:, cols:] = 0, 0
    _centre_rows(cells[:rows, :cols], middle, limit, flat, bounded[:rows, :cols])
    return flat, bounded


@inner_kernel
def _centre_rows(
    cells: np.ndarray, middle: np.float32, limit: np.float32, flat: np.ndarray, bounded: np.ndarray
) -> None:
    for i in range(cells.shape[0]):
        _centre_row(cells[i], middle, limit, flat[i], bounded[i])


@fast_kernel
def _centre_row(
    cells: np.ndarray, middle: np.float32, limit: np.float32, flat: np.ndarray, bounded: np.ndarray
) -> None:
    for j in range(cells.shape[0]):
        less = cells[j] - middle
        less = less if abs(less) < np.float32(np.inf) else np.float32(0)
        flat[j] = less
        less = less if less < limit else limit
        bounded[j] = less if less > -limit else -limit


@kernel
def _scatters(flat: np.ndarray, number: np.ndarray, noise: float, num: int) -> np.ndarray:
    """log10 of the robust scatter of averages over 1, 2, 4... cells over what white noise would give: (num,)."""
    out = np.full(num, np.nan)
    weight = number
    total = flat * weight
    for scale in range(num):
        spread = _robust_spread(total, weight, np.float32(noise))
        out[scale] = np.log10(spread) if spread > 0 else np.nan
        if min(weight.shape) < 2 or scale + 1 == num:
            break
        total, weight = _two_by_two(total), _two_by_two(weight)
    return out


@kernel
def _robust_spread(sums: np.ndarray, behind: np.ndarray, noise: np.float32) -> float:
    """Robust scatter of sums over `behind` pixels in units of their noise; NaN of less than six."""
    cols = sums.shape[1]
    # A few thousand values tell the scatter to one percent; a step without small factors follows no pattern.
    every = max(1, sums.size // 8192)
    every = every + 2 if every > 1 else 1
    enough = np.float32(0.25) * _largest(behind)
    z, numbers = np.empty(sums.size // every + 1, np.float32), np.empty(sums.size // every + 1, np.float32)
    found = 0
    i = j = 0
    for _ in range(0, sums.size, every):
        while j >= cols:
            i, j = i + 1, j - cols
        z[found], numbers[found] = sums[i, j], behind[i, j]
        found += behind[i, j] > enough
        j += every
    if found < 6:
        return np.nan
    z = z[:found]
    _in_noises(z, numbers, noise)
    middle = np.float32(median(z))
    for k in range(found):
        z[k] = abs(z[k] - middle)
    return MAD * median(z)


@fast_kernel
def _in_noises(sums: np.ndarray, behind: np.ndarray, noise: np.float32) -> None:
    for k in range(sums.shape[0]):
        sums[k] = sums[k] / (np.sqrt(behind[k]) * noise)


@kernel
def _largest(counts: np.ndarray) -> np.float32:
    """Of a map of numbers that are not negative, and of which each is one."""
    most = np.float32(0)
    for i in range(counts.shape[0]):
        most = max(most, _largest_in_row(counts[i]))
    return most


@fast_kernel
def _largest_in_row(counts: np.ndarray) -> np.float32:
    # Whole numbers, because the largest of floats takes no vector instructions.
    most = np.int32(0)
    for j in range(counts.shape[0]):
        one = np.int32(counts[j])
        most = most if most > one else one
    return np.float32(most)


@fast_kernel
def _two_by_two(cells: np.ndarray) -> np.ndarray:
    """Sums of 2x2 cells; an odd row or column at the end is left out."""
    out = np.empty((cells.shape[0] // 2, cells.shape[1] // 2), cells.dtype)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            upper = cells[2 * i, 2 * j] + cells[2 * i, 2 * j + 1]
            out[i, j] = upper + cells[2 * i + 1, 2 * j] + cells[2 * i + 1, 2 * j + 1]
    return out


@kernel
def _pattern_peak(transform: np.ndarray, rows: int, cols: int) -> tuple[float, float]:
    """Highest power over the median (dex) and its frequency per cell; low frequencies belong to gradients, ghosts."""
    lowest = (4.0 / min(rows, cols)) ** 2
    across = (np.arange(transform.shape[1]) / cols) ** 2
    power = np.empty(transform.shape[1], np.float32)
    every = max(1, transform.size // 8192)
    sample = np.empty(transform.size // every + transform.shape[0] + 1, np.float32)
    found = skipped = 0
    best, best_rate = np.float32(0), 0.0
    for i in range(transform.shape[0]):
        down = (min(i, rows - i) / rows) ** 2
        _powers(transform[i].view(np.float32), power)
        start = 0
        while start < power.size and down + across[start] <= lowest:
            start += 1
        # Each `every`-th of those that are not left out.
        for j in range(start + skipped, power.size, every):
            sample[found] = power[j]
            found += 1
        skipped = (skipped - (power.size - start)) % every
        if start < power.size and largest_size(power[start:]) > size_bits(best):
            place = start + int(np.argmax(power[start:]))
            best, best_rate = power[place], down + across[place]
    if found == 0:
        return np.nan, 0.0
    middle = median(sample[:found])
    return (np.log10(best / middle) if middle > 0 and best > 0 else np.nan), np.sqrt(best_rate)


@fast_kernel
def _powers(transform: np.ndarray, power: np.ndarray) -> None:
    """Squared sizes of complex numbers, whose real and imaginary parts are side by side."""
    for j in range(power.shape[0]):
        power[j] = transform[2 * j] * transform[2 * j] + transform[2 * j + 1] * transform[2 * j + 1]
