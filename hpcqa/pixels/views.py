"""One CCD image in, its views and measured numbers out: the pure core of the shard stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpcqa.config import ViewsConfig
from hpcqa.kernels import kernel
from hpcqa.pixels import cutouts
from hpcqa.pixels.background import find_sources
from hpcqa.pixels.failures import BIT
from hpcqa.pixels.measure import Facts, Found, expected_noise, measure, pack, split_column
from hpcqa.pixels.peaks import find_peaks
from hpcqa.pixels.profiles import reference_level
from hpcqa.pixels.scan import Scan, Sums, scan
from hpcqa.pixels.scanrows import masked_in_rows
from hpcqa.pixels.sky import Sky, skies
from hpcqa.pixels.stars import measure_stars

if TYPE_CHECKING:
    from hpcqa.pixels.compressed import Rest


@dataclass(frozen=True)
class CcdViews:
    """What is kept of one CCD.

    Attributes:
        context: (H, W) float16, stretched.
        background: (H, W) float32, mean of each cell in ADU, NaN unknown.
        background_noise: (H, W) float32, its expected noise in ADU.
        detail: (H, W) float16, stretched.
        numbers: float32 in the order of measure.NAMES.
        level: sky, ADU.
        reference: what levels are relative to if the exposure's sky is near zero, ADU.
        context_bin, background_bin: native pixels along a side of a view's pixel.
    """

    context: np.ndarray
    background: np.ndarray
    background_noise: np.ndarray
    detail: np.ndarray
    numbers: np.ndarray
    level: float
    reference: float
    context_bin: int
    background_bin: int


@kernel
def _any_finite(pixels: np.ndarray) -> bool:
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            if np.isfinite(pixels[i, j]):
                return True
    return False


def failure_of(pixels: np.ndarray, min_size: int) -> int:
    """Bits of failures.py for an image that cannot be looked at; 0 if it can. A constant image can."""
    if pixels.ndim != 2 or min(pixels.shape) < min_size:
        return BIT["wrong_shape"]
    if not _any_finite(pixels):
        return BIT["all_not_finite"]
    return 0


def _scanned(
    pixels: np.ndarray,
    masked: np.ndarray,
    in_row: np.ndarray,
    whole: Sky,
    split: int,
    saturation: float,
    rest: Rest | None,
) -> Scan:
    facts = {"level": whole.level, "noise": whole.noise, "saturation": saturation}
    if rest is None:
        return scan(pixels, masked, split=split, in_row=in_row, **facts)
    sums = Sums.begin((pixels.shape[0], pixels.shape[1]), split=split, **facts)
    rest.scan(masked, in_row, sums)
    return sums.finish()


def look(
    pixels: np.ndarray,
    masked: np.ndarray,
    facts: Facts,
    views: ViewsConfig,
    rest: Rest | None = None,
    in_row: np.ndarray | None = None,
) -> CcdViews:
    """Views and numbers of one image that `failure_of` lets pass.

    Args:
        pixels: (R, C) float32, native byte order, ADU; NaN where unknown.
        masked: (R, C) bool; ignored where it leaves no finite pixel.
        facts: what is known beside the pixels.
        views: sizes and stretch.
        rest: the rows that are not decoded yet: others than each `rows_apart`-th.
        in_row: masked pixels in each row, int32 (R,), if they are counted already.

    Raises:
        DataError: these are damaged.
    """
    split = split_column(facts.amplifiers, pixels.shape[1])
    whole, *sides = skies(pixels, masked, split)
    if whole.num == 0:
        if rest is not None:
            rest.read()
        masked, in_row, rest = np.zeros(pixels.shape, np.bool_), None, None
        whole, *sides = skies(pixels, masked, split, samples=pixels.size)
    in_row = masked_in_rows(masked.view(np.uint8)) if in_row is None else in_row
    scanned = _scanned(pixels, masked, in_row, whole, split, 0.98 * facts.saturation, rest)
    # In an order in which each step finds at hand what the ones before it have touched: first all that looks at the
    # working image, then at the native pixels about the stars.
    sources = find_sources(scanned, level=whole.level)
    peaks = find_peaks(scanned, sources)
    context = cutouts.binned(scanned, sources, whole, views.context)
    cells = cutouts.coarser(context, scanned, sources, whole, views.background)
    background, background_noise = cutouts.background_map(cells, whole)
    stars = measure_stars(
        pixels, masked, peaks, sources, noise=whole.noise, saturation=facts.saturation, step=scanned.step
    )
    detail = cutouts.detail_view(pixels, masked, scanned, sources, stars, whole, views)
    peaks = peaks.without(stars.streaks)
    found = Found(whole, (sides[0], sides[1]), scanned, sources, peaks, stars, context, background)
    numbers = measure(found, facts)
    reference = reference_level(0.0, expected_noise(whole.level, facts))
    return CcdViews(
        context=cutouts.context_view(context, whole, views),
        background=background,
        background_noise=background_noise,
        detail=detail,
        numbers=pack(numbers),
        level=whole.level,
        reference=reference,
        context_bin=context.bin,
        background_bin=cells.bin,
    )
