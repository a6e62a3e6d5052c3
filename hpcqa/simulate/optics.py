"""Point-spread functions with GalSim: atmosphere, an out-of-focus pupil, the pixel, and the telescope's motion.

Stamps are made once for each exposure and zone of the focal plane, at three places within a pixel along each axis;
stars are scaled copies of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import galsim
import numpy as np
from scipy import fft

from hpcqa.simulate.conditions import Conditions

OVERSAMPLING = 3
SIZES = (41, 65, 129, 257)  # native pixels along a side, odd
# Faster than GalSim's defaults and good to a thousandth, which is below the pixel noise of any star but the brightest.
PARAMETERS = galsim.GSParams(folding_threshold=2e-2, kvalue_accuracy=1e-3, maxk_threshold=5e-3, maximum_fft_size=16384)
# Half-light radius (arcsec), Sersic index, axis ratio, position angle (deg) of the galaxies that are drawn.
GALAXIES = ((0.25, 1.0, 0.7, 20), (0.4, 1.0, 0.4, 130), (0.6, 2.5, 0.8, 70), (0.9, 1.0, 0.5, 100), (1.4, 1.0, 0.35, 40))


@dataclass(frozen=True)
class Stamps:
    """Light of unit flux: float32 (object type, phase row, phase column, n, n); type 0 is a star."""

    light: np.ndarray

    @property
    def half(self) -> int:
        return int(self.light.shape[-1] // 2)


def make_stamps(conditions: Conditions, place: tuple[float, float], pixel_scale: float) -> Stamps:
    """Stars and galaxies as they look at a place of the focal plane (radius units)."""
    size = _size(conditions, pixel_scale)
    psf = _draw(_profile(conditions, place, pixel_scale), size, pixel_scale)
    spectrum = fft.rfft2(fft.ifftshift(psf)) * _motion(conditions, size)
    objects = [spectrum, *(spectrum * galaxy for galaxy in _galaxies(size, pixel_scale))]
    # The arrays are real and as large as the stamps; wrapping around is below what is cut off anyway.
    drawn = fft.irfft2(np.stack(objects), s=psf.shape, axes=(-2, -1))
    return Stamps(_phases((fft.fftshift(drawn, axes=(-2, -1)) * _taper(size)).astype(np.float32)))


@lru_cache(maxsize=8)
def _taper(size: int) -> np.ndarray:
    """A window that falls from 1 to 0 towards the stamp's edge, so that bright stars do not end in squares."""
    side = size * OVERSAMPLING
    place = (np.arange(side) - side // 2) / (side // 2)
    radius = np.hypot(place[:, None], place[None, :])
    return np.asarray(np.cos(np.clip((radius - 0.75) / 0.25, 0, 1) * math.pi / 2) ** 2)


def _size(conditions: Conditions, pixel_scale: float) -> int:
    reach = max(math.hypot(*end) for first, last, _ in conditions.path for end in (first, last))
    needed = 2 * reach + 1.3 * conditions.donut + 6 * conditions.fwhm / pixel_scale
    return next((size for size in SIZES if size >= needed), SIZES[-1])


def _profile(conditions: Conditions, place: tuple[float, float], pixel_scale: float) -> galsim.GSObject:
    radius2 = place[0] ** 2 + place[1] ** 2
    fwhm = conditions.fwhm * (1 + 0.04 * radius2)
    if conditions.beta:
        air = galsim.Moffat(beta=conditions.beta, fwhm=fwhm, gsparams=PARAMETERS)
    else:
        air = galsim.Kolmogorov(fwhm=fwhm, gsparams=PARAMETERS)
    # Astigmatism grows outwards, as on a real wide-field corrector.
    g1 = conditions.shear[0] + 0.015 * (place[0] ** 2 - place[1] ** 2)
    g2 = conditions.shear[1] + 0.03 * place[0] * place[1]
    parts = [air.shear(g1=g1, g2=g2), galsim.Pixel(pixel_scale, gsparams=PARAMETERS)]
    tilt = 1 + conditions.donut_tilt[0] * place[0] + conditions.donut_tilt[1] * place[1]
    if conditions.donut > 0:
        parts.append(_pupil(0.5 * conditions.donut * max(tilt, 0.2) * pixel_scale, conditions))
    return galsim.Convolve(parts, gsparams=PARAMETERS)


def _pupil(radius: float, conditions: Conditions) -> galsim.GSObject:
    """The out-of-focus pupil: a disc with a hole of 0.4, which coma moves aside; three of them for trefoil."""
    hole = 0.4
    disc = galsim.TopHat(radius, gsparams=PARAMETERS)
    dark = galsim.TopHat(hole * radius, flux=hole**2, gsparams=PARAMETERS).shift(conditions.lopsided * radius, 0)
    donut = (disc - dark) / (1 - hole**2)
    if not conditions.trefoil:
        return donut
    aside = conditions.trefoil * radius
    corners = [(aside * math.cos(angle), aside * math.sin(angle)) for angle in (0.5, 2.594, 4.689)]
    return galsim.Sum([donut.shift(*corner) / 3 for corner in corners], gsparams=PARAMETERS)


def _draw(profile: galsim.GSObject, size: int, pixel_scale: float) -> np.ndarray:
    """Samples OVERSAMPLING times finer than the pixels, their sum 1 but for what lies outside."""
    side = size * OVERSAMPLING
    image = galsim.Image(side, side, dtype=np.float64, scale=pixel_scale / OVERSAMPLING)
    profile.drawImage(image, method="no_pixel")
    return np.asarray(image.array)


@lru_cache(maxsize=8)
def _galaxies(size: int, pixel_scale: float) -> tuple[np.ndarray, ...]:
    """Spectra of the galaxies without PSF, on the same grid; as much of their light as falls on the stamp."""
    spectra = []
    for radius, index, ratio, angle in GALAXIES:
        galaxy = galsim.Sersic(index, half_light_radius=radius, gsparams=PARAMETERS)
        galaxy = galaxy.shear(q=ratio, beta=angle * galsim.degrees)
        # A pixel of the fine grid keeps the cusp from dominating its sample.
        fine = galsim.Pixel(pixel_scale / OVERSAMPLING, gsparams=PARAMETERS)
        drawn = _draw(galsim.Convolve([galaxy, fine], gsparams=PARAMETERS), size, pixel_scale)
        spectra.append(fft.rfft2(fft.ifftshift(drawn)))
    return tuple(spectra)


def _motion(conditions: Conditions, size: int) -> np.ndarray:
    """Spectrum of the telescope's path; that of a straight line is a sinc."""
    side = size * OVERSAMPLING
    rows, cols = OVERSAMPLING * fft.fftfreq(side)[:, None], OVERSAMPLING * fft.rfftfreq(side)[None, :]
    total = np.zeros((side, side // 2 + 1), np.complex128)
    for (c0, r0), (c1, r1), share in conditions.path:
        middle = rows * (r0 + r1) / 2 + cols * (c0 + c1) / 2
        total += share * np.exp(-2j * math.pi * middle) * np.sinc(rows * (r1 - r0) + cols * (c1 - c0))
    return total


def _phases(fine: np.ndarray) -> np.ndarray:
    """Native stamps whose centre is 1/3 px before, at and after the middle pixel's: (..., 3, 3, n, n)."""
    native = np.float32(OVERSAMPLING**2)
    size = fine.shape[-1] // OVERSAMPLING
    stamps = np.empty((fine.shape[0], OVERSAMPLING, OVERSAMPLING, size, size), np.float32)
    for row in range(OVERSAMPLING):
        for col in range(OVERSAMPLING):
            stamps[:, row, col] = fine[:, 2 - row :: OVERSAMPLING, 2 - col :: OVERSAMPLING] * native
    return stamps
