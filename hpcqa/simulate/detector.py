"""What a CCD makes of the light: flat-field residuals, noise, cosmic rays, bad columns, full wells and bleeding."""

from __future__ import annotations

import math

import numpy as np

from hpcqa.instruments.base import Region
from hpcqa.kernels import kernel
from hpcqa.simulate.light import smooth
from hpcqa.streams import stream

# Codes of the Community Pipeline's masks from V3.5.0 on.
BAD, SATURATED, BLEED, COSMIC, STREAK = 1, 3, 4, 5, 8
COSMICS_PER_PIXEL_SECOND = 1.2e-6 / 60
BAD_COLUMNS_PER_COLUMN = 0.004


def flat_residual(seed: int, ccdnum: int, band: str, shape: tuple[int, int]) -> np.ndarray:
    """What flat-fielding leaves, relative to 1, on a grid over the CCD: the same in every exposure of a band."""
    rng = stream(seed, "simulate", "flat", ccdnum, band)
    rows, cols = np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 0.5, shape[1])[None, :]
    broad = smooth(rows, cols, 0.4, rng)
    fine = smooth(rows, cols, 0.08, rng)
    return np.asarray(rng.uniform(0.0005, 0.003) * broad + rng.uniform(0.0002, 0.0012) * fine + rng.normal(0, 0.002))


def amplifier_gains(seed: int, expnum: int, ccdnum: int, band: str, number: int) -> np.ndarray:
    """Small errors of the amplifiers' gains, relative to 1: mostly the CCD's own, a little the exposure's."""
    own = stream(seed, "simulate", "gain", ccdnum, band).normal(0, 0.0008, number)
    return np.asarray(own + stream(seed, "simulate", expnum, "gain", ccdnum).normal(0, 0.0003, number))


@kernel
def enlarge(grid: np.ndarray, step: int, image: np.ndarray, factor: float) -> None:
    """Fill a float32 image with `factor` times a coarse grid (nodes at multiples of `step`), interpolated linearly."""
    for row in range(image.shape[0]):
        above = row // step
        down = (row - above * step) / step
        for col in range(image.shape[1]):
            left = col // step
            right = (col - left * step) / step
            top = grid[above, left] * (1 - right) + grid[above, left + 1] * right
            low = grid[above + 1, left] * (1 - right) + grid[above + 1, left + 1] * right
            image[row, col] = factor * (top * (1 - down) + low * down)


def scale_amplifiers(image: np.ndarray, amplifiers: list[Region], gains: np.ndarray) -> None:
    for region, gain in zip(amplifiers, gains, strict=True):
        image[region.row0 : region.row1, region.col0 : region.col1] *= np.float32(1 + gain)


def add_noise(image: np.ndarray, gain: float, read_noise: float, rng: np.random.Generator) -> None:
    """Photon and read noise; gain in e/ADU, read noise in e."""
    sigma = np.sqrt(np.maximum(image, 0) / np.float32(gain) + np.float32((read_noise / gain) ** 2))
    sigma *= rng.standard_normal(image.shape, np.float32)
    image += sigma


def add_cosmics(image: np.ndarray, mask: np.ndarray, exptime: float, rng: np.random.Generator) -> None:
    """Tracks of 2 to 50 px; the mask names most of them."""
    rows, cols = image.shape
    for _ in range(int(rng.poisson(COSMICS_PER_PIXEL_SECOND * image.size * exptime))):
        length = int(np.clip(rng.lognormal(1.6, 0.8), 2, 50))
        angle, charge = rng.uniform(0, math.pi), rng.lognormal(6.5, 1.0)
        steps = np.arange(length)
        r = np.clip(np.rint(rng.uniform(0, rows) + steps * math.sin(angle)).astype(int), 0, rows - 1)
        c = np.clip(np.rint(rng.uniform(0, cols) + steps * math.cos(angle)).astype(int), 0, cols - 1)
        image[r, c] += np.float32(charge)
        if rng.random() < 0.9:
            mask[r, c] = COSMIC


def add_bad_columns(image: np.ndarray, mask: np.ndarray, seed: int, ccdnum: int) -> None:
    """Columns that never worked, known to the mask."""
    rng = stream(seed, "simulate", "columns", ccdnum)
    rows, cols = image.shape
    for col in rng.integers(0, cols, rng.poisson(BAD_COLUMNS_PER_COLUMN * cols)):
        top = int(rows * rng.uniform(0.1, 1.0))
        image[:top, col] = image[:top, col] * np.float32(rng.uniform(0.5, 1.2))
        mask[:top, col] = BAD


def saturate(image: np.ndarray, mask: np.ndarray, saturation: float) -> tuple[int, int]:
    """Clip at the full well; its surplus bleeds along the columns. Returns saturated pixels and bleed trails."""
    if float(image.max()) <= saturation:
        return 0, 0
    return _bleed(image, mask, float(saturation))


@kernel
def _bleed(image: np.ndarray, mask: np.ndarray, saturation: float) -> tuple[int, int]:
    num_saturated, num_trails = 0, 0
    rows = image.shape[0]
    for col in range(image.shape[1]):
        row = 0
        while row < rows:
            if image[row, col] <= saturation:
                row += 1
                continue
            first, surplus = row, 0.0
            while row < rows and image[row, col] > saturation:
                surplus += image[row, col] - saturation
                image[row, col] = saturation
                mask[row, col] = SATURATED
                num_saturated += 1
                row += 1
            # The surplus fills half a well a pixel, up and down alike, until it is used up.
            reach = int(surplus / saturation)
            num_trails += reach > 4
            for step in range(1, reach + 1):
                for place in (first - step, row - 1 + step):
                    if 0 <= place < rows and image[place, col] <= saturation:
                        image[place, col] = max(image[place, col], saturation * 0.9)
                        mask[place, col] = BLEED
    return num_saturated, num_trails
