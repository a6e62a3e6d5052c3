"""Pictures of an exposure: the CCDs' views laid out at their places on the focal plane. Pure arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Instrument


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


def upright(view: np.ndarray, camera: Instrument) -> np.ndarray:
    """A CCD's view as it lies on the focal plane, x to the right and y up."""
    rows_on_x = camera.rows_along[0] != 0
    turned = view.T if rows_on_x else view
    right, up = (camera.rows_along, camera.cols_along) if rows_on_x else (camera.cols_along, camera.rows_along)
    return turned[:: -1 if up[1] > 0 else 1, :: 1 if right[0] > 0 else -1]


def layout(camera: Instrument, view: tuple[int, int]) -> tuple[Place, ...]:
    """Where each CCD's upright view lies when x grows to the right and y upwards, the whole starting at 0, 0.

    Args:
        camera: its CCDs and their extent.
        view: rows and columns of one CCD's view, which shows the whole CCD.
    """
    rows_on_x = camera.rows_along[0] != 0
    chip = [side * camera.pixel_scale / 3600 for side in camera.shape]
    (width, height), (wide, high) = (view, chip) if rows_on_x else (view[::-1], chip[::-1])
    left = [round(ccd.x * width / wide - width / 2) for ccd in camera.ccds]
    top = [round(-ccd.y * height / high - height / 2) for ccd in camera.ccds]
    first_left, first_top = min(left), min(top)
    return tuple(
        Place(ccd.ccdnum, ccd.ccdname, x - first_left, y - first_top, width, height)
        for ccd, x, y in zip(camera.ccds, left, top, strict=True)
    )


def mosaic(views: Mapping[int, np.ndarray], camera: Instrument, widest: int) -> Mosaic:
    """The views of an exposure's CCDs at their places, shrunk so that the mosaic is at most about `widest` wide.

    Args:
        views: (rows, columns) of equal shape, by CCD number; CCDs without a view stay empty.
        camera: its CCDs.
        widest: pixels.
    """
    some = next(iter(views.values()), np.zeros((64, 32), np.float32))
    full = layout(camera, (some.shape[0], some.shape[1]))
    across = max(place.left + place.width for place in full)
    factor = max(1, math.ceil(across / widest))
    size = (max(1, some.shape[0] // factor), max(1, some.shape[1] // factor))
    places = layout(camera, size)
    rows = max(place.top + place.height for place in places)
    columns = max(place.left + place.width for place in places)
    pixels = np.full((rows, columns), np.nan, np.float32)
    covered = np.zeros((rows, columns), bool)
    for place in places:
        area = (slice(place.top, place.top + place.height), slice(place.left, place.left + place.width))
        covered[area] = True
        if place.ccdnum in views:
            pixels[area] = upright(shrink(views[place.ccdnum], factor)[: size[0], : size[1]], camera)
    return Mosaic(pixels, covered, places)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel as a square of `factor`."""
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
