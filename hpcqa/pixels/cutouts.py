"""The views of one CCD: context and detail, stretched and ready; the background map in ADU, to be scaled later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcqa.config import ViewsConfig
from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.cells import cell_side, cells, joined_cells
from hpcqa.pixels.floatbits import size_bits
from hpcqa.pixels.prefetch import fetch_around
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import Sky
from hpcqa.pixels.stars import Stars, X, Y

_AHEAD = 4  # stamps whose pixels are fetched before they are wanted
_LARGEST = np.float32(np.finfo(np.float32).max)
_LARGEST_HALF = np.float32(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Binned:
    """A CCD in the cells of a view, by means over all pixels and over those without sources.

    Attributes:
        mean: (2, H, W) float32 ADU: all pixels, pixels without sources; NaN unknown.
        count: (2, H, W) float32, native pixels behind each.
        bin: native pixels along a side of a cell.
    """

    mean: np.ndarray
    count: np.ndarray
    bin: int


def binned(scanned: Scan, sources: Sources, sky: Sky, view: list[int]) -> Binned:
    """The working image in the cells of a view of [rows, columns]."""
    side = cell_side(scanned.mean.shape, (view[0], view[1]))
    mean, count = cells(scanned.mean, scanned.count, sources.near, sky.level, side, (view[0], view[1]))
    return Binned(mean, count, side * scanned.step)


def coarser(fine: Binned, scanned: Scan, sources: Sources, sky: Sky, view: list[int]) -> Binned:
    """As `binned`, from a view with cells of which a whole number fits into one of this one's, if they do."""
    side = cell_side(scanned.mean.shape, (view[0], view[1]))
    factor, rest = divmod(side * scanned.step, fine.bin)
    if rest:
        return binned(scanned, sources, sky, view)
    mean, count = joined_cells(fine.mean, fine.count, sky.level, factor, (view[0], view[1]))
    return Binned(mean, count, fine.bin * factor)


def context_view(context: Binned, sky: Sky, views: ViewsConfig) -> np.ndarray:
    """The whole CCD less its sky, in units of the expected noise of each binned pixel, stretched.

    The mean is stretched, not the stretch averaged: what is faint and wide gains from binning.

    Returns:
        (H, W) float16, 0 where nothing is valid or beyond the image.
    """
    scale = np.float32(_scale(sky.noise, sky.level))
    return stretch(_in_noises(context.mean[0], context.count[0], np.float32(sky.level), scale), views.asinh_softening)


@fast_kernel
def _in_noises(mean: np.ndarray, count: np.ndarray, level: np.float32, noise: np.float32) -> np.ndarray:
    """Means less a level in units of their noise, which is that of a pixel over the root of their number."""
    out = np.empty(mean.shape, np.float32)
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            out[i, j] = (mean[i, j] - level) * (np.sqrt(count[i, j]) / noise)
    return out


def background_map(background: Binned, sky: Sky) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each cell without sources, and its expected noise.

    Returns:
        (H, W) float32 ADU, NaN where nothing is left; (H, W) float32 ADU.
    """
    # A cell of which little is left sits beside a bright star, and shows its wings.
    enough = np.float32(0.1 * background.bin**2)
    return _well_known(background.mean[1], background.count[1], enough, np.float32(_scale(sky.noise, sky.level)))


@kernel
def _well_known(
    mean: np.ndarray, number: np.ndarray, enough: np.float32, noise: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Means with enough pixels behind them, and their noise from that of a pixel; NaN for the others."""
    known, noises = np.empty(mean.shape, np.float32), np.empty(mean.shape, np.float32)
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            good = (number[i, j] >= enough) & (mean[i, j] == mean[i, j])
            known[i, j] = mean[i, j] if good else np.float32(np.nan)
            noises[i, j] = noise / np.sqrt(max(number[i, j], np.float32(1))) if good else np.float32(np.nan)
    return known, noises


def _scale(noise: float, level: float) -> float:
    """A noise to divide by; a constant image has none, and then a hundredth of its level serves."""
    return noise if noise > 0 else max(1e-2 * abs(level), 1e-3)


def stretch(z: np.ndarray, softening: float) -> np.ndarray:
    """asinh(z / softening) of a float32 image as float16, 0 where z is not finite."""
    # asinh by a logarithm, which numpy has in vector form; exact to 1e-7, far below float16's steps.
    argument = _asinh_argument(z, np.float32(1.0 / softening))
    return _halves(np.log(argument), z).view(np.float16)


@fast_kernel
def _asinh_argument(z: np.ndarray, scale: np.float32) -> np.ndarray:
    """|x| + sqrt(x^2 + 1) for x = z scale; 1 where z is not finite."""
    rows, cols = z.shape
    out = np.empty((rows, cols), np.float32)
    for i in range(rows):
        for j in range(cols):
            size = min(abs(z[i, j]), _LARGEST) * scale if abs(z[i, j]) <= _LARGEST else np.float32(0)
            size = min(size, np.float32(1e15))
            out[i, j] = size + np.sqrt(size * size + np.float32(1))
    return out


def relative_halves(values: np.ndarray, level: float, reference: float) -> np.ndarray:
    """(values - level) / reference of a float32 map as float16, within its range; NaN stays NaN."""
    sizes, relative = _relative(values, np.float32(level), np.float32(reference))
    return _halves(sizes, relative).view(np.float16)


@fast_kernel
def _relative(values: np.ndarray, level: np.float32, reference: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and signs for `_halves`."""
    sizes, relative = np.empty_like(values), np.empty_like(values)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            value = (values[i, j] - level) / reference
            relative[i, j] = value
            sizes[i, j] = min(abs(value), _LARGEST_HALF) if abs(value) >= np.float32(0) else np.float32(np.nan)
    return sizes, relative


@kernel
def _halves(sizes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The bits of float16 numbers, uint16: sizes from 0 to 65,504 with the signs of other numbers, rounded to even.

    NaN stays NaN.

    Unlike numpy's conversion this takes vector instructions.
    """
    rows, cols = sizes.shape
    out = np.empty((rows, cols), np.uint16)
    bits, sign = sizes.view(np.uint32), signs.view(np.uint32)
    for i in range(rows):
        for j in range(cols):
            # Adding 0.5 rounds a number below 2^-14 to a multiple of 2^-24, as float16 has them there.
            tiny = np.uint32(size_bits(sizes[i, j] + np.float32(0.5))) - np.uint32(0x3F000000)
            word = bits[i, j]
            usual = (
                word - np.uint32(0x38000000) + np.uint32(0xFFF) + ((word >> np.uint32(13)) & np.uint32(1))
            ) >> np.uint32(13)
            half = tiny if word < np.uint32(0x38800000) else usual
            half = half if word <= np.uint32(0x7F800000) else np.uint32(0x7E00)
            out[i, j] = np.uint16(half | ((sign[i, j] >> np.uint32(16)) & np.uint32(0x8000)))
    return out


@inner_kernel
def _mosaic(
    pixels: np.ndarray,
    masked: np.ndarray,
    places: np.ndarray,
    levels: np.ndarray,
    scale: float,
    out: np.ndarray,
    side: int,
) -> None:
    """Stamps about some places (n, 2), row and column, less a level each, side by side from the top left."""
    across = out.shape[1] // side
    for k in range(places.shape[0]):
        if k + _AHEAD < places.shape[0]:
            fetch_around(pixels, places[k + _AHEAD, 0], places[k + _AHEAD, 1], side // 2)
            fetch_around(masked, places[k + _AHEAD, 0], places[k + _AHEAD, 1], side // 2)
        row, col = k // across * side, k % across * side
        stamp = out[row : row + side, col : col + side]
        _cut(pixels, masked, places[k, 0], places[k, 1], levels[k], scale, stamp)


@inner_kernel
def _cut(
    pixels: np.ndarray, masked: np.ndarray, row: int, col: int, level: float, scale: float, out: np.ndarray
) -> None:
    """One stamp about (row, col) in units of the noise; 0 where invalid or beyond the image."""
    side = out.shape[0]
    for a in range(side):
        i = row - side // 2 + a
        for b in range(side):
            j = col - side // 2 + b
            inside = 0 <= i < pixels.shape[0] and 0 <= j < pixels.shape[1]
            if inside and not masked[i, j] and np.isfinite(pixels[i, j]):
                out[a, b] = (pixels[i, j] - level) / scale
            else:
                out[a, b] = 0.0


def detail_view(
    pixels: np.ndarray, masked: np.ndarray, scanned: Scan, sources: Sources, stars: Stars, sky: Sky, views: ViewsConfig
) -> np.ndarray:
    """A mosaic of native-resolution stamps: the brightest unsaturated stars in order, then empty sky.

    Args:
        pixels: (R, C) float32, ADU.
        masked: (R, C) bool.
        scanned, sources, stars, sky: what was found on them.
        views: sizes and stretch.

    Returns:
        (H, W) float16; each stamp less its local background in units of the noise, stretched.
    """
    side = views.stamp
    down, across = views.detail[0] // side, views.detail[1] // side
    num_sky = round(views.sky_share * down * across)
    of_stars = star_places(stars, down * across - num_sky)
    where = np.concatenate([of_stars, empty_places(scanned, sources, side, down * across - len(of_stars))])
    mosaic = np.zeros((views.detail[0], views.detail[1]), np.float32)
    levels = sources.local(where[:, 0] // scanned.step, where[:, 1] // scanned.step)
    _mosaic(pixels, masked, where, levels, _scale(sky.noise, sky.level), mosaic, side)
    return stretch(mosaic, views.asinh_softening)


def star_places(stars: Stars, most: int) -> np.ndarray:
    """Centres of the brightest stars, then of the brightest other sources: (n, 2) int64, native rows and columns."""
    return _star_places(stars.table, stars.is_star, most)


@kernel
def _star_places(table: np.ndarray, is_star: np.ndarray, most: int) -> np.ndarray:
    places = np.empty((min(most, is_star.size), 2), np.int64)
    num = 0
    for wanted in (True, False):
        for k in range(is_star.size):
            if num < len(places) and is_star[k] == wanted:
                places[num, 0], places[num, 1] = round(table[k, Y]), round(table[k, X])
                num += 1
    return places


@kernel
def _busy(near: np.ndarray, count: np.ndarray, width: int, rows: int, cols: int) -> np.ndarray:
    """Working pixels near a source or not valid in each square of `width`: (rows * cols,)."""
    busy = np.zeros(rows * cols, np.int64)
    _fill_busy(near, count, width, busy.reshape((rows, cols)), np.empty(cols * width, np.float32))
    return busy


@inner_kernel
def _fill_busy(near: np.ndarray, count: np.ndarray, width: int, busy: np.ndarray, line: np.ndarray) -> None:
    rows, cols = busy.shape
    for i in range(rows):
        line[:] = 0
        for k in range(i * width, (i + 1) * width):
            _add_busy(near[k], count[k], line)
        for j in range(cols):
            total = np.float32(0)
            for m in range(j * width, (j + 1) * width):
                total += line[m]
            busy[i, j] = int(total)


@fast_kernel
def _add_busy(near: np.ndarray, count: np.ndarray, line: np.ndarray) -> None:
    for j in range(line.size):
        line[j] += np.float32(0) if (near[j] == 0) & (count[j] > 0) else np.float32(1)


@lru_cache(maxsize=8)
def _scattered(num: int) -> np.ndarray:
    """The numbers below `num` in a scattered order: by the fractions of the golden ratio's multiples."""
    return np.argsort((np.arange(num) * 0.6180339887) % 1.0, kind="stable")


def empty_places(scanned: Scan, sources: Sources, side: int, most: int) -> np.ndarray:
    """Centres of the emptiest squares of `side` native pixels, spread over the CCD: (n, 2) int64, rows and columns."""
    width = max(1, side // scanned.step)
    rows, cols = sources.near.shape[0] // width, sources.near.shape[1] // width
    if rows == 0 or cols == 0 or most <= 0:
        return np.empty((0, 2), np.int64)
    share = _busy(sources.near, scanned.count, width, rows, cols)
    # Equally empty squares are taken in a scattered order, not row by row. The sort of small integers is by radix.
    scattered = _scattered(share.size)
    chosen = scattered[np.argsort(np.minimum(share, 65535)[scattered].astype(np.uint16), kind="stable")][:most]
    wide = width * scanned.step
    return np.stack(np.divmod(chosen, cols), axis=1) * wide + wide // 2
