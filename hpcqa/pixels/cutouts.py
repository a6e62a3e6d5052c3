"""The views of one CCD: context and detail, stretched and ready; the background map in ADU, to be scaled later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcqa.config import ViewsConfig
from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.cells import cell_side, cells, joined_cells
from hpcqa.pixels.prefetch import fetch_around
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import Sky
from hpcqa.pixels.stars import Stars, X, Y
from hpcqa.pixels.stretch import stretch, stretch_row

_AHEAD = 4  # stamps whose pixels are fetched before they are wanted


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
    inverse, scale = np.float32(1.0 / _scale(sky.noise, sky.level)), np.float32(1.0 / views.asinh_softening)
    return _context(context.mean[0], context.count[0], np.float32(sky.level), inverse, scale).view(np.float16)


@kernel
def _context(
    mean: np.ndarray, count: np.ndarray, level: np.float32, inverse: np.float32, scale: np.float32
) -> np.ndarray:
    out, room = np.empty(mean.shape, np.uint16), np.empty((2, mean.shape[1]), np.float32)
    _context_rows(mean, count, (level, inverse, scale), room, out)
    return out


@inner_kernel
def _context_rows(
    mean: np.ndarray,
    count: np.ndarray,
    facts: tuple[np.float32, np.float32, np.float32],
    room: np.ndarray,
    out: np.ndarray,
) -> None:
    level, inverse, scale = facts
    z, sizes = room[0], room[1]
    for i in range(mean.shape[0]):
        _in_noises(mean[i], count[i], level, inverse, z)
        stretch_row(z, scale, sizes, out[i])


@fast_kernel
def _in_noises(mean: np.ndarray, count: np.ndarray, level: np.float32, inverse: np.float32, out: np.ndarray) -> None:
    """Means less a level in units of their noise: that of a pixel, 1 / `inverse`, over the root of their number."""
    for j in range(out.shape[0]):
        out[j] = (mean[j] - level) * (np.sqrt(count[j]) * inverse)


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
def _emptiest(
    near: np.ndarray, count: np.ndarray, width: int, scattered: np.ndarray, cols: int, most: int
) -> np.ndarray:
    """Numbers, row by row, of the squares of `width` with the fewest working pixels near a source or not valid: (n,).

    Equally empty squares come in the order that `scattered` names all of them in.
    """
    busy = np.zeros(scattered.size, np.int64)
    _fill_busy(near, count, width, busy.reshape((-1, cols)), np.empty(cols * width, np.float32))
    following = np.zeros(width * width + 2, np.int64)
    # How many squares are less busy.
    for place in range(busy.size):
        following[busy[place] + 1] += 1
    for number in range(width * width):
        following[number + 1] += following[number]
    chosen = np.empty(min(most, busy.size), np.int64)
    for place in scattered:
        rank = following[busy[place]]
        following[busy[place]] += 1
        if rank < chosen.size:
            chosen[rank] = place
    return chosen


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
    chosen = _emptiest(sources.near, scanned.count, width, _scattered(rows * cols), cols, most)
    wide = width * scanned.step
    return np.stack(np.divmod(chosen, cols), axis=1) * wide + wide // 2
