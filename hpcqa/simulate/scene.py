"""Stars and galaxies of one CCD: where they are, how bright, and drawing them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.kernels import kernel
from hpcqa.simulate.conditions import Conditions
from hpcqa.simulate.optics import GALAXIES, OVERSAMPLING, Stamps

# Stars and galaxies brighter than magnitude 22 on a pixel, as at high galactic latitude; the slopes of their counts.
STARS_TO_22, GALAXIES_TO_22 = 1.6e-4, 1.6e-4
STAR_SLOPE, GALAXY_SLOPE = 0.22, 0.38
# Brighter galaxies would not fit their stamps; the field's one big galaxy is drawn apart.
BRIGHTEST_STAR, BRIGHTEST_GALAXY, FAINTEST = 13.0, 17.0, 24.3
# The aureole of a star: its value at the centre (share of the flux a pixel) and its core in px. It falls as r^-2.5 and
# holds 8 percent of the light.
HALO_PEAK, HALO_CORE = 4e-4, 4.0


@dataclass(frozen=True)
class Sources:
    """One row a source: rows and cols in zero-based pixels, flux in ADU, kind 0 star or 1.. galaxy."""

    rows: np.ndarray
    cols: np.ndarray
    flux: np.ndarray
    kind: np.ndarray


def draw_sources(
    conditions: Conditions, shape: tuple[int, int], margin: int, rng: np.random.Generator, band_shift: float
) -> Sources:
    """Random sources on a CCD and up to `margin` px around it; `band_shift` mag makes all brighter in red bands."""
    area = (shape[0] + 2 * margin) * (shape[1] + 2 * margin)
    stars = _magnitudes(STARS_TO_22 * area * conditions.crowding * conditions.sources, STAR_SLOPE, BRIGHTEST_STAR, rng)
    galaxies = _magnitudes(GALAXIES_TO_22 * area * conditions.sources, GALAXY_SLOPE, BRIGHTEST_GALAXY, rng)
    mags = np.concatenate([stars, galaxies]) - band_shift
    kind = np.concatenate([np.zeros(len(stars), np.int64), 1 + rng.integers(0, len(GALAXIES), len(galaxies))])
    return Sources(
        rng.uniform(-margin, shape[0] + margin, len(mags)),
        rng.uniform(-margin, shape[1] + margin, len(mags)),
        conditions.scale * 10 ** (-0.4 * mags),
        kind,
    )


def _magnitudes(expected_to_22: float, slope: float, brightest: float, rng: np.random.Generator) -> np.ndarray:
    expected = expected_to_22 * 10 ** (slope * (FAINTEST - 22))
    number = rng.poisson(expected)
    # Inverse of counts that grow as 10^(slope m).
    mags = FAINTEST + np.log10(rng.uniform(1e-9, 1, number)) / slope
    return np.maximum(mags, brightest)


def add_sources(image: np.ndarray, sources: Sources, stamps: Stamps, noise: float) -> None:
    """Add every source to a float32 (rows, cols) image; faint ones as far out as they matter beside the noise."""
    _add_stamps(image, sources.rows, sources.cols, sources.flux, sources.kind, stamps.light, 0.03 * noise)


@kernel
def _add_stamps(
    image: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    flux: np.ndarray,
    kind: np.ndarray,
    light: np.ndarray,
    floor: float,
) -> None:
    size = light.shape[-1]
    half = size // 2
    for index in range(rows.size):
        row, col = int(np.floor(rows[index] + 0.5)), int(np.floor(cols[index] + 0.5))
        phase_row = int((rows[index] + 0.5 - row) * OVERSAMPLING)
        phase_col = int((cols[index] + 0.5 - col) * OVERSAMPLING)
        stamp = light[kind[index], min(phase_row, OVERSAMPLING - 1), min(phase_col, OVERSAMPLING - 1)]
        row0, row1 = max(0, row - half), min(image.shape[0], row + half + 1)
        col0, col1 = max(0, col - half), min(image.shape[1], col + half + 1)
        for r in range(row0, row1):
            for c in range(col0, col1):
                value = flux[index] * stamp[r - row + half, c - col + half]
                if value > floor:
                    image[r, c] += value


@kernel
def add_line(
    image: np.ndarray, mask: np.ndarray, line: tuple[float, float, float], width: float, peak: float, code: int
) -> None:
    """A thin straight trail: a Gaussian profile of standard deviation `width` px.

    Args:
        line: a, b, c of the distance a row + b col + c in px.
        code: what the mask says within 2.5 widths; 0 leaves it.
    """
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            distance = abs(line[0] * r + line[1] * c + line[2]) / width
            if distance < 5:
                image[r, c] += peak * np.exp(-0.5 * distance * distance)
                if distance < 2.5 and code > 0:
                    mask[r, c] = code


def add_halos(image: np.ndarray, sources: Sources, stamps: Stamps, noise: float) -> None:
    """The wide light of every source that is bright enough for it to reach beyond its stamp."""
    floor = 0.05 * noise
    for index in np.flatnonzero(_halo_radius(sources.flux, floor) > 0.7 * stamps.half):
        add_halo(image, sources.rows[index], sources.cols[index], sources.flux[index], floor, 20.0)


def _halo_radius(flux: np.ndarray, floor: float) -> np.ndarray:
    return np.asarray(HALO_CORE * np.maximum(HALO_PEAK * flux / floor - 1, 0) ** 0.4)


def add_halo(image: np.ndarray, row: float, col: float, flux: float, floor: float, spikes: float) -> None:
    """The wide light of one bright star, as far out as it exceeds `floor` ADU, spikes of about `spikes` px included."""
    radius = float(_halo_radius(np.asarray(flux), floor))
    reach = max(radius, min(1.5 * radius, 3 * spikes))
    row0, row1 = max(0, int(row - reach)), min(image.shape[0], int(row + reach) + 1)
    col0, col1 = max(0, int(col - reach)), min(image.shape[1], int(col + reach) + 1)
    if row0 < row1 and col0 < col1:
        _fill_halo(image[row0:row1, col0:col1], row - row0, col - col0, flux, floor, spikes)


@kernel
def _fill_halo(image: np.ndarray, row: float, col: float, flux: float, floor: float, spikes: float) -> None:
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            dr, dc = r - row, c - col
            distance = np.sqrt(dr * dr + dc * dc)
            cores = distance / HALO_CORE
            value = HALO_PEAK * flux / (1 + cores * cores * np.sqrt(cores))
            across = min(abs(dr - dc), abs(dr + dc)) * 0.7071
            if across < 3:
                value += 0.3 * HALO_PEAK * flux * np.exp(-distance / spikes - across * across) / (1 + distance / 4)
            if value > floor:
                image[r, c] += value
