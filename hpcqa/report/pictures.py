"""Pictures of an exposure: the CCDs' views laid out at their places on the focal plane. Pure arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Ccd


@dataclass(frozen=True)
class Place:
    """Where a CCD lies in a mosaic, in its pixels, from the top left."""

    ccdnum: int
    ccdname: str
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Mosaic:
    """All CCDs of an exposure. Pixels that no CCD covers are NaN and not `covered`."""

    pixels: np.ndarray  # float32 (rows, columns)
    covered: np.ndarray  # bool (rows, columns)
    places: tuple[Place, ...]

    def place(self, ccdnum: int) -> Place | None:
        return next((place for place in self.places if place.ccdnum == ccdnum), None)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over squares of `factor` pixels; rows and columns that don't fill a square at the end are left out."""
    if factor <= 1:
        return image.astype(np.float32)
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    cut = image[: rows * factor, : columns * factor].astype(np.float32)
    mean: np.ndarray = cut.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    return mean


def layout(ccds: Sequence[Ccd], view: tuple[int, int], chip: tuple[float, float]) -> tuple[Place, ...]:
    """Where each CCD's view lies when north is up: images' rows run along +x, their columns against y.

    Args:
        ccds: the camera's CCDs.
        view: rows and columns of one CCD's view.
        chip: extent of a CCD along its rows and along its columns, in degrees, as `view` covers it.

    Returns:
        A place for each CCD, `view` transposed in size, the whole starting at 0, 0.
    """
    width, height = view
    per_x, per_y = view[0] / chip[0], view[1] / chip[1]
    left = [round(ccd.x * per_x - width / 2) for ccd in ccds]
    top = [round(-ccd.y * per_y - height / 2) for ccd in ccds]
    first_left, first_top = min(left), min(top)
    return tuple(
        Place(ccd.ccdnum, ccd.ccdname, x - first_left, y - first_top, width, height)
        for ccd, x, y in zip(ccds, left, top, strict=True)
    )


def mosaic(
    views: Mapping[int, np.ndarray], ccds: Sequence[Ccd], shape: tuple[int, int], pixel_scale: float, widest: int
) -> Mosaic:
    """The views of an exposure's CCDs at their places, shrunk so that the mosaic is at most about `widest` wide.

    Args:
        views: (rows, columns) of equal shape, by CCD number; CCDs without a view stay empty.
        ccds: the camera's CCDs.
        shape: rows and columns of a full CCD in native pixels.
        pixel_scale: arcsec.
        widest: pixels.
    """
    some = next(iter(views.values()), np.zeros((64, 32), np.float32))
    chip = (shape[0] * pixel_scale / 3600, shape[1] * pixel_scale / 3600)
    full = layout(ccds, (some.shape[0], some.shape[1]), chip)
    across = max(place.left + place.width for place in full)
    factor = max(1, math.ceil(across / widest))
    size = (max(1, some.shape[0] // factor), max(1, some.shape[1] // factor))
    places = layout(ccds, size, chip)
    rows = max(place.top + place.height for place in places)
    columns = max(place.left + place.width for place in places)
    pixels = np.full((rows, columns), np.nan, np.float32)
    covered = np.zeros((rows, columns), bool)
    for place in places:
        area = (slice(place.top, place.top + place.height), slice(place.left, place.left + place.width))
        covered[area] = True
        if place.ccdnum in views:
            pixels[area] = shrink(views[place.ccdnum], factor)[: size[0], : size[1]].T
    return Mosaic(pixels, covered, places)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel as a square of `factor`."""
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)

