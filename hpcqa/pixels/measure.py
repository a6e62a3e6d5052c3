"""The measured numbers of one CCD: names, units and meaning, and how each comes about.

NaN means unknown, never bad. Header facts (instruments.base.HEADER_NUMBERS) follow the measured ones in the shard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcqa.instruments.base import HEADER_NUMBERS, Region
from hpcqa.kernels import kernel
from hpcqa.pixels import layout, maps, profiles
from hpcqa.pixels.background import Sources
from hpcqa.pixels.cutouts import Binned
from hpcqa.pixels.medians import median
from hpcqa.pixels.peaks import Peaks
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.sky import Sky
from hpcqa.pixels.stars import (
    DIP,
    E1,
    E2,
    HALF_RADIUS,
    SIGMA,
    SNR,
    STACK_HALF,
    Stars,
    X,
    Y,
)
from hpcqa.pixels.streaks import erase

_AWAY = np.hypot(*np.mgrid[-STACK_HALF : STACK_HALF + 1, -STACK_HALF : STACK_HALF + 1])
_RING = np.floor(_AWAY + 0.5).astype(int)
FWHM_OF_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

MEASURED: tuple[tuple[str, str, str], ...] = (
    ("sky_rate", "ADU/s", "sky level over exposure time"),
    ("sky_ratio", "", "sky rate over the band's typical dark sky"),
    ("sky_level", "ADU", "sky level"),
    ("noise", "ADU", "pixel noise from neighbouring differences"),
    ("noise_ratio", "", "pixel noise over that of sky photons and readout"),
    ("spread_ratio", "", "spread of the sky pixels over the pixel noise; sees gradients"),
    ("tail_above", "", "share of pixels more than 5 noise above the sky"),
    ("tail_below", "", "share of pixels more than 5 noise below the sky"),
    ("amp_noise_left", "", "noise of the first amplifier over the expected"),
    ("amp_noise_right", "", "noise of the second amplifier over the expected"),
    ("amp_step_sky", "sky", "step across the amplifier boundary, gradients taken out"),
    ("amp_step_noise", "noise", "the same in units of the pixel noise"),
    ("amp_difference", "sky", "level of the second amplifier less the first's"),
    ("row_noise", "", "scatter from row to row over the expected"),
    ("row_wave", "", "scatter of rows about their running mean over the expected"),
    ("row_period_power", "dex", "highest peak of the power spectrum of rows over its median"),
    ("row_period", "px", "period of that peak"),
    ("row_amp_correlation", "", "correlation of the two amplifiers' row profiles"),
    ("col_noise", "", "scatter from column to column over the expected"),
    ("col_wave", "", "scatter of columns about their running mean over the expected"),
    ("col_period_power", "dex", "highest peak of the power spectrum of columns over its median"),
    ("col_period", "px", "period of that peak"),
    ("pattern_power", "dex", "highest peak of the two-dimensional power spectrum over its median"),
    ("pattern_wavelength", "px", "wavelength of that peak"),
    ("scatter_1", "dex", "scatter of the context cells without sources over the expected"),
    ("scatter_2", "dex", "the same averaged over 2x2 cells"),
    ("scatter_4", "dex", "the same averaged over 4x4 cells"),
    ("scatter_8", "dex", "the same averaged over 8x8 cells"),
    ("scatter_16", "dex", "the same averaged over 16x16 cells"),
    ("gradient_row", "sky", "change of the background along the rows' numbers across the CCD"),
    ("gradient_col", "sky", "change of the background along the columns' numbers across the CCD"),
    ("gradient", "sky", "size of that change"),
    ("map_rms", "sky", "robust scatter of the background map about a plane"),
    ("map_high", "sky", "highest 3x3-cell mean of the map about a plane"),
    ("map_low", "sky", "lowest 3x3-cell mean of the map about a plane"),
    ("map_curvature", "sky", "centre of the map less its border"),
    ("map_missing", "", "share of cells without background pixels"),
    ("quadrant_spread", "sky", "largest less smallest median of the quadrants"),
    ("edge_excess", "sky", "largest excess of an edge of the CCD over what lies inside of it"),
    ("edge_deficit", "sky", "largest deficit of an edge of the CCD"),
    ("fwhm", "arcsec", "median FWHM of the stars"),
    ("fwhm_px", "px", "the same in pixels"),
    ("fwhm_scatter", "", "robust relative scatter of the stars' FWHM"),
    ("fwhm_slope", "", "relative change of the FWHM across the CCD"),
    ("ring_width", "px", "median half-maximum diameter of the stars' profiles; sees rings"),
    ("ellipticity", "", "median ellipticity of the stars"),
    ("e1", "", "median ellipticity along columns against rows"),
    ("e2", "", "median ellipticity along the diagonals"),
    ("ellipticity_coherence", "", "size of the mean ellipticity over the mean size; 1: all along one axis"),
    ("elongation", "", "axis ratio of the mean star, long over short"),
    ("dip", "", "median central dip of the stars' profiles; donuts"),
    ("stack_dip", "", "central dip of the mean star"),
    ("stack_second", "", "second-highest peak of the mean star over the highest; doubles, lopsided donuts"),
    ("stack_asymmetry", "", "difference of the mean star from itself turned by 180 degrees"),
    ("stack_wings", "", "share of the mean star's light beyond two half-maximum radii"),
    ("trail_coherence", "", "how far the gradients over all sources share one axis"),
    ("trail_length", "px", "length of the mean source along that axis beyond its width"),
    ("pair_excess", "sigma", "excess of pairs of sources with one common displacement; double exposures"),
    ("pair_share", "", "those pairs over the number of sources"),
    ("pair_separation", "px", "length of that displacement"),
    ("line_cover", "", "largest share of a straight line across the CCD that is covered by sources; streaks"),
    ("sources", "dex(1/arcmin2)", "density of sources above 5 sigma"),
    ("bright_sources", "dex(1/arcmin2)", "density of sources above 30 sigma"),
    ("source_excess", "dex", "density of sources less what the depth lets expect, up to a constant"),
    ("star_share", "", "share of the measured sources that have the size of stars"),
    ("galaxy_ratio", "", "measured sources larger than stars over stars"),
    ("sharp_share", "", "peaks sharper than stars over the measured ones; cosmic rays, hot pixels"),
    ("saturated_stars", "1/arcmin2", "density of saturated sources among the brightest"),
    ("source_unevenness", "", "largest relative excess of a quadrant's source count, in units of its Poisson noise"),
    ("empty_share", "", "share of 8x8 parts of the CCD without any source"),
    ("source_area", "", "share of the CCD on detected sources"),
    ("is_crowded", "", "1 if sources would cover more than half of the CCD"),
    ("area_per_source", "px", "detected pixels for each source"),
    ("masked_share", "", "share of masked pixels"),
    ("mask_problem", "", "1 if the mask covers everything and was ignored"),
    ("not_finite_share", "", "share of pixels that are not numbers and not masked"),
    ("saturated_share", "", "share of saturated pixels"),
    ("bleed_columns", "", "share of columns with more than 2 % of their pixels saturated"),
    ("constant_rows", "", "share of rows whose pixels are all equal"),
    ("is_constant", "", "1 if the image has no noise at all"),
    ("depth", "mag", "5-sigma depth for a point source; needs a zero point"),
    ("shallowness", "dex", "noise rate times FWHM: the depth without a zero point"),
    ("zero_point_offset", "mag", "zero point of the CCD less the exposure's"),
    ("zero_point", "mag", "zero point of the CCD, or else of the exposure"),
    ("exptime", "dex(s)", "exposure time"),
)
NUMBERS: tuple[tuple[str, str, str], ...] = MEASURED + HEADER_NUMBERS
NAMES: tuple[str, ...] = tuple(name for name, _, _ in NUMBERS)
_PLACE = {name: place for place, name in enumerate(NAMES)}


@dataclass(frozen=True)
class Facts:
    """What is known of a CCD image beside its pixels; NaN unknown.

    Attributes:
        exptime: s.
        zpt, ccdzpt: zero points of the exposure and of the CCD for 1 ADU/s, mag.
        sky_rate: typical dark sky of the band, ADU/s.
        gain: e/ADU. read_noise: e. saturation: ADU. pixel_scale: arcsec.
        amplifiers: areas of the image that each amplifier reads.
        mask_problem: what is wrong with the mask, in words; empty if nothing.
        header: numbers of the headers by name.
    """

    exptime: float
    zpt: float
    ccdzpt: float
    sky_rate: float
    gain: float
    read_noise: float
    saturation: float
    pixel_scale: float
    amplifiers: Sequence[Region] = ()
    mask_problem: str = ""
    header: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Everything that was found on one image; see the classes of its parts."""

    sky: Sky
    sides: tuple[Sky, Sky]  # left and right of the amplifiers' boundary
    scanned: Scan
    sources: Sources
    peaks: Peaks
    stars: Stars
    context: Binned
    background: np.ndarray  # (H, W) float32 ADU, NaN where unknown


def pack(values: Mapping[str, float]) -> np.ndarray:
    """The numbers in the order of NAMES, float32; NaN where `values` has none.

    Raises:
        KeyError: a name that is not in the table.
    """
    packed = np.full(len(NAMES), np.nan, np.float32)
    for name, value in values.items():
        packed[_PLACE[name]] = value if math.isfinite(value) else np.nan
    return packed


def split_column(amplifiers: Sequence[Region], cols: int) -> int:
    """Column where the second of two amplifiers side by side begins; `cols` where there are none."""
    if len(amplifiers) == 2 and 0 < amplifiers[1].col0 < cols:
        return amplifiers[1].col0
    return cols


def measure(found: Found, facts: Facts) -> dict[str, float]:
    """All numbers of one CCD image by name, from what was found on it and what is known beside."""
    expected = expected_noise(found.sky.level, facts)
    numbers = _sky_numbers(found.sky, expected, facts)
    numbers |= _fraction_numbers(found, facts)
    skies = found.sky, *found.sides
    numbers |= profiles.amplifier_numbers(found.scanned, found.sources, skies, expected, facts.amplifiers)
    numbers |= profiles.stripe_numbers(found.scanned, found.sky.noise)
    numbers |= profiles.pattern_numbers(found.context, found.sky)
    numbers |= maps.map_numbers(found.background, found.sky.level, expected)
    numbers |= maps.edge_numbers(found.scanned, found.sources, found.sky.level, expected)
    numbers |= _star_numbers(found.stars, facts)
    numbers |= _source_numbers(found, facts)
    numbers |= _depth_numbers(found.sky, numbers, facts)
    return numbers | dict(facts.header)


def expected_noise(level: float, facts: Facts) -> float:
    """Noise of sky photons and readout, ADU; sqrt(sky / gain + (read noise / gain)^2)."""
    return math.sqrt(max(level, 0.0) / facts.gain + (facts.read_noise / facts.gain) ** 2)


def _sky_numbers(sky: Sky, expected: float, facts: Facts) -> dict[str, float]:
    rate = sky.level / facts.exptime if facts.exptime > 0 else math.nan
    return {
        "sky_rate": rate,
        "sky_ratio": rate / facts.sky_rate if facts.sky_rate > 0 else math.nan,
        "sky_level": sky.level,
        "noise": sky.noise,
        "noise_ratio": sky.noise / expected,
        "spread_ratio": sky.spread / sky.noise if sky.noise > 0 else math.nan,
        "tail_above": sky.above,
        "tail_below": sky.below,
        "is_constant": float(sky.noise <= 0 and sky.spread <= 0),
        "exptime": math.log10(facts.exptime) if facts.exptime > 0 else math.nan,
    }


def _fraction_numbers(found: Found, facts: Facts) -> dict[str, float]:
    rows, cols = found.scanned.row_mean.shape[1], found.scanned.col_mean.size
    num, num_masked = rows * cols, found.scanned.num_masked
    valid = found.scanned.num_valid
    saturated, bleeding = _saturation(found.scanned.saturated, 0.02 * rows)
    return {
        "masked_share": num_masked / num,
        "mask_problem": float(bool(facts.mask_problem)),
        "not_finite_share": max(0.0, 1.0 - (num_masked + valid) / num),
        "saturated_share": saturated / num,
        "bleed_columns": bleeding / cols,
        "constant_rows": found.scanned.constant_rows / rows,
    }


@kernel
def _saturation(saturated: np.ndarray, many: float) -> tuple[float, int]:
    """Sum over the columns' numbers of saturated pixels, and columns with more than `many` of them."""
    total, columns = 0.0, 0
    for number in saturated:
        total += number
        columns += 1 if number > many else 0
    return total, columns


def _star_numbers(stars: Stars, facts: Facts) -> dict[str, float]:
    num = len(stars.table)
    chosen = stars.table[stars.is_star]
    numbers = {
        "star_share": len(chosen) / num if num else math.nan,
        "galaxy_ratio": _larger(stars.table, stars.is_star) / len(chosen) if len(chosen) else math.nan,
        "sharp_share": stars.num_sharp / (num + stars.num_sharp) if num + stars.num_sharp else math.nan,
    }
    if len(chosen) < 3:
        return numbers
    fwhm, scatter, slope, half_radius, dip, ellipticity, e1, e2, coherence = _typical(np.ascontiguousarray(chosen))
    numbers |= {
        "fwhm": fwhm * facts.pixel_scale,
        "fwhm_px": fwhm,
        "fwhm_scatter": scatter,
        "fwhm_slope": slope,
        "ring_width": 2.0 * half_radius,
        "ellipticity": ellipticity,
        "e1": e1,
        "e2": e2,
        "ellipticity_coherence": coherence,
        "elongation": math.sqrt((1.0 + math.hypot(e1, e2)) / max(1.0 - math.hypot(e1, e2), 1e-3)),
        "dip": dip,
    }
    return numbers | stack_numbers(stars.stack)


@kernel
def _typical(chosen: np.ndarray) -> tuple[float, ...]:
    """Of the shapes of stars: median FWHM (px), its robust relative scatter and relative slope; half-light radius, dip,
    ellipticity and its components; size of the mean ellipticity over the mean size.
    """
    fwhm, size = FWHM_OF_SIGMA * chosen[:, SIGMA], np.hypot(chosen[:, E1], chosen[:, E2])
    middle = median(fwhm)
    scatter = 1.4826 * median(np.abs(fwhm - middle)) / middle
    e1, e2 = chosen[:, E1].copy(), chosen[:, E2].copy()
    coherence = math.hypot(e1.mean(), e2.mean()) / max(size.mean(), 1e-6)
    half_radius, dip = median(chosen[:, HALF_RADIUS].copy()), median(chosen[:, DIP].copy())
    slope = _slope(chosen[:, X], chosen[:, Y], fwhm / middle)
    return middle, scatter, slope, half_radius, dip, median(size), median(e1), median(e2), coherence


@kernel
def _larger(table: np.ndarray, is_star: np.ndarray) -> int:
    """Clearly seen sources that are larger than the stars, of which there is one at least."""
    size = 1.2 * median(table[:, SIGMA][is_star])
    num = 0
    for k in range(is_star.size):
        num += (not is_star[k]) & (table[k, SIGMA] > size) & (table[k, SNR] > 10)
    return num


@kernel
def _slope(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> float:
    """Size of the linear change of values over the stars' positions, across the span of the stars."""
    span_x, span_y = x.max() - x.min(), y.max() - y.min()
    if len(values) < 10 or span_x <= 0 or span_y <= 0:
        return np.nan
    along, down, rest = (x - x.mean()) / span_x, (y - y.mean()) / span_y, values - values.mean()
    xx, xy, yy = (along * along).sum(), (along * down).sum(), (down * down).sum()
    x_rest, y_rest = (along * rest).sum(), (down * rest).sum()
    determinant = xx * yy - xy * xy
    if determinant <= 1e-12 * xx * yy:
        # All on one line: the smallest slopes that fit.
        return float(math.hypot(x_rest, y_rest) / (xx + yy))
    slope_x, slope_y = (yy * x_rest - xy * y_rest) / determinant, (xx * y_rest - xy * x_rest) / determinant
    return float(math.hypot(slope_x, slope_y))


def stack_numbers(stack: np.ndarray) -> dict[str, float]:
    """Numbers of the mean star, a (33, 33) image whose sum is one."""
    if not stack.max() > 0:
        return {}
    return dict(zip(("stack_dip", "stack_second", "stack_asymmetry", "stack_wings"), _of_stack(stack), strict=True))


@kernel
def _of_stack(stack: np.ndarray) -> tuple[float, float, float, float]:
    """Dip, second peak, asymmetry and wings of a mean star whose highest pixel is positive; NaN unknown."""
    side = stack.shape[0]
    total, number = np.zeros(2 * side), np.zeros(2 * side)
    highest, row, col, size, difference = 0.0, 0, 0, 0.0, 0.0
    for i in range(side):
        for j in range(side):
            value = float(stack[i, j])
            total[_RING[i, j]] += value
            number[_RING[i, j]] += 1.0
            size += abs(value)
            difference += abs(value - stack[side - 1 - i, side - 1 - j])
            if value > highest:
                highest, row, col = value, i, j
    rings = total[:STACK_HALF] / number[:STACK_HALF]
    top, half = rings.max(), 1
    for k in range(STACK_HALF):
        half = k + 1 if top > 0 and rings[k] >= 0.5 * top else half
    second, wings = -np.inf, 0.0
    for i in range(side):
        for j in range(side):
            if (i - row) ** 2 + (j - col) ** 2 > (1.5 * half + 2) ** 2:
                second = max(second, stack[i, j])
            wings += stack[i, j] if _AWAY[i, j] > 2 * half else 0.0
    return (
        1.0 - 0.5 * (rings[0] + rings[1]) / top if top > 0 else np.nan,
        second / highest if second > -np.inf else np.nan,
        difference / max(2.0 * size, 1e-12),
        wings,
    )


def _source_numbers(found: Found, facts: Facts) -> dict[str, float]:
    peaks, sources, scanned = found.peaks, found.sources, found.scanned
    area = scanned.num_valid * (facts.pixel_scale / 60.0) ** 2
    # A satellite is no trail of the telescope: line_cover tells of it.
    shapes = erase(sources.found, found.stars.streaks, scanned.step)
    c, s = layout.gradient_coherence(sources.smooth, shapes)
    pairs = layout.common_displacement(peaks)
    num = len(peaks)
    detected = float(np.count_nonzero(sources.found))
    return {
        "sources": math.log10((num + 1) / area) if area > 0 else math.nan,
        "bright_sources": math.log10((np.count_nonzero(peaks.significance > 30) + 1) / area) if area > 0 else math.nan,
        "saturated_stars": found.stars.num_saturated / area if area > 0 else math.nan,
        "trail_coherence": math.hypot(c, s),
        "trail_length": layout.trail_length(shapes, c, s) * scanned.step,
        "pair_excess": pairs.excess,
        "pair_share": pairs.share,
        "pair_separation": pairs.separation,
        "line_cover": layout.line_cover(layout.coarse(sources.found, 128), 30),
        "source_area": detected / sources.found.size,
        "is_crowded": float(sources.crowded),
        "area_per_source": detected * scanned.step**2 / num if num else math.nan,
    } | layout.spread_numbers(peaks.row, peaks.col, scanned.mean.shape, scanned.step)


def _depth_numbers(sky: Sky, numbers: Mapping[str, float], facts: Facts) -> dict[str, float]:
    zero_point = facts.ccdzpt if math.isfinite(facts.ccdzpt) else facts.zpt
    if not math.isfinite(zero_point):
        zero_point = facts.header.get("header_zero_point", math.nan)
    depths = {"zero_point": zero_point, "zero_point_offset": facts.ccdzpt - facts.zpt}
    fwhm = numbers.get("fwhm_px", math.nan)
    if not (sky.noise > 0 and facts.exptime > 0):
        return depths
    # Without a star to measure, sources are compared with what a typical FWHM of 4 pixels would let expect.
    rate = sky.noise / facts.exptime
    shallowness = math.log10(rate * (fwhm if math.isfinite(fwhm) else 4.0))
    # Source counts grow about as 10^(0.3 m) at the depth of survey exposures.
    depths["source_excess"] = numbers["sources"] + 0.3 * 2.5 * shallowness
    if math.isfinite(fwhm):
        depths["shallowness"] = shallowness
        area = 4.0 * math.pi * (fwhm / FWHM_OF_SIGMA) ** 2
        depths["depth"] = zero_point - 2.5 * math.log10(5.0 * rate * math.sqrt(area))
    return depths
