"""The views of one CCD: context and detail, stretched and ready; the background map in ADU, to be scaled later."""

from __future__ import annotations

import numba
import numpy as np

from hpcqa.config import ViewsConfig
from hpcqa.pixels.background import Scan, Sky, Sources, cell_side, cells
from hpcqa.pixels.stars import Stars, X, Y


def context_view(scanned: Scan, sky: Sky, views: ViewsConfig) -> tuple[np.ndarray, int]:
    """The whole CCD less its sky, in units of the expected noise of each binned pixel, stretched.

    The mean is stretched, not the stretch averaged: what is faint and wide gains from binning.

    Returns:
        (H, W) float16, 0 where nothing is valid or beyond the image; native pixels along a side of a view pixel.
    """
    shape = (views.context[0], views.context[1])
    side = cell_side(scanned.mean.shape, shape)
    nothing = np.zeros(scanned.mean.shape, np.bool_)
    mean, number = cells(scanned.mean, scanned.count, nothing, side, shape)
    scale = _scale(sky.noise, sky.level)
    z = (mean - np.float32(sky.level)) * (np.sqrt(number) / np.float32(scale))
    return stretch(z, views.asinh_softening), side * scanned.step


def background_cells(
    scanned: Scan, sources: Sources, sky: Sky, views: ViewsConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean of each cell without sources, and its expected noise.

    Returns:
        (H, W) float32 ADU, NaN where nothing is left; (H, W) float32 ADU; native pixels along a side of a cell.
    """
    shape = (views.background[0], views.background[1])
    side = cell_side(scanned.mean.shape, shape)
    mean, number = cells(scanned.mean, scanned.count, sources.near, side, shape)
    # A cell of which little is left sits beside a bright star, and shows its wings.
    mean[number < 0.1 * (side * scanned.step) ** 2] = np.nan
    noise = np.float32(_scale(sky.noise, sky.level)) / np.sqrt(np.maximum(number, 1))
    return mean, np.where(np.isfinite(mean), noise, np.nan).astype(np.float32), side * scanned.step


def _scale(noise: float, level: float) -> float:
    """A noise to divide by; a constant image has none, and then a hundredth of its level serves."""
    return noise if noise > 0 else max(1e-2 * abs(level), 1e-3)


def stretch(z: np.ndarray, softening: float) -> np.ndarray:
    """asinh(z / softening) as float16, 0 where z is not finite."""
    return np.nan_to_num(np.arcsinh(z / np.float32(softening)), nan=0.0, posinf=0.0, neginf=0.0).astype(np.float16)


@numba.njit(cache=True, nogil=True)
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
    places = star_places(stars, down * across - num_sky)
    places += empty_places(scanned, sources, side, down * across - len(places))
    mosaic = np.zeros((down * side, across * side), np.float32)
    for k, (row, col) in enumerate(places):
        a, b = divmod(k, across)
        stamp = mosaic[a * side : (a + 1) * side, b * side : (b + 1) * side]
        small = (
            min(row // scanned.step, sources.local.shape[0] - 1),
            min(col // scanned.step, sources.local.shape[1] - 1),
        )
        _cut(pixels, masked, row, col, float(sources.local[small]), _scale(sky.noise, sky.level), stamp)
    view = np.zeros((views.detail[0], views.detail[1]), np.float16)
    view[: mosaic.shape[0], : mosaic.shape[1]] = stretch(mosaic, views.asinh_softening)
    return view


def star_places(stars: Stars, most: int) -> list[tuple[int, int]]:
    """Centres of the brightest stars, then of the brightest other sources: (row, col) in native pixels."""
    order = np.argsort(~stars.is_star, kind="stable")[:most]
    return [(round(float(stars.table[k, Y])), round(float(stars.table[k, X]))) for k in order]


def empty_places(scanned: Scan, sources: Sources, side: int, most: int) -> list[tuple[int, int]]:
    """Centres of the emptiest squares of `side` native pixels, spread over the CCD: (row, col)."""
    width = max(1, side // scanned.step)
    rows, cols = sources.near.shape[0] // width, sources.near.shape[1] // width
    if rows == 0 or cols == 0 or most <= 0:
        return []
    busy = (sources.near | (scanned.count == 0))[: rows * width, : cols * width]
    share = busy.reshape(rows, width, cols, width).mean(axis=(1, 3)).ravel()
    # Equally empty squares are taken in a scattered order, the golden ratio's multiples, not row by row.
    scattered = np.argsort((np.arange(share.size) * 0.6180339887) % 1.0, kind="stable")
    chosen = scattered[np.argsort(share[scattered], kind="stable")][:most]
    half = width * scanned.step // 2
    return [(int(k // cols) * width * scanned.step + half, int(k % cols) * width * scanned.step + half) for k in chosen]
