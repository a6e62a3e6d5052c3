"""Laying the background maps of all CCDs out as on the sky, one small image for each exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Instrument

SUBSAMPLES = 2  # points along a side of a cell, so that no pixel between two cells stays empty


@dataclass(frozen=True)
class FocalPlane:
    """Where each cell of each CCD falls.

    Attributes:
        shape: of the image, (rows, columns); columns grow with the focal plane's x, rows against its y, as on the sky.
        ccdnums: (n,) the CCDs that have a place.
        pixels: (n, H * W * SUBSAMPLES^2) int64, the flat image pixel of each point; one past the last for none.
    """

    shape: tuple[int, int]
    ccdnums: np.ndarray
    pixels: np.ndarray

    def assemble(self, maps: np.ndarray, places: np.ndarray, ccdnums: np.ndarray, num: int) -> np.ndarray:
        """Images of `num` exposures.

        Args:
            maps: (k, H, W) float, NaN where unknown.
            places: (k,) which image each map belongs to.
            ccdnums: (k,) which CCD each map is of; CCDs without a place are left out.

        Returns:
            (num, rows, columns) float32, the mean of what falls on a pixel, 0 where nothing does.
        """
        area = self.shape[0] * self.shape[1]
        where = np.searchsorted(self.ccdnums, ccdnums)
        where = np.minimum(where, len(self.ccdnums) - 1)
        known = self.ccdnums[where] == ccdnums
        maps, places, where = maps[known], places[known], where[known]
        values = maps.astype(np.float64).repeat(SUBSAMPLES, axis=1).repeat(SUBSAMPLES, axis=2).reshape(len(maps), -1)
        target = places[:, None].astype(np.int64) * (area + 1) + self.pixels[where]
        good = np.isfinite(values)
        size = num * (area + 1)
        total = np.bincount(target[good], values[good], minlength=size)
        number = np.bincount(target[good], minlength=size)
        image = np.where(number > 0, total / np.maximum(number, 1), 0.0).reshape(num, area + 1)[:, :area]
        return image.reshape(num, *self.shape).astype(np.float32)


def focal_plane(instrument: Instrument, shape: tuple[int, int], cells: tuple[int, int], side: int) -> FocalPlane:
    """Prepare the layout of a camera.

    Args:
        instrument: the camera.
        shape: of the focal-plane image.
        cells: (H, W) of a background map.
        side: native pixels along a side of a cell.
    """
    ordered = sorted(instrument.ccds, key=lambda ccd: ccd.ccdnum)
    scale = instrument.pixel_scale / 3600.0
    fine = side / SUBSAMPLES
    rows = (np.arange(cells[0] * SUBSAMPLES) + 0.5) * fine
    cols = (np.arange(cells[1] * SUBSAMPLES) + 0.5) * fine
    on_chip = (rows < instrument.shape[0])[:, None] & (cols < instrument.shape[1])[None, :]
    down, across = (rows - instrument.shape[0] / 2) * scale, (cols - instrument.shape[1] / 2) * scale
    offsets = [
        (down[:, None] * instrument.rows_along[axis] + across[None, :] * instrument.cols_along[axis]).ravel()
        for axis in range(2)
    ]
    centres = np.array([[ccd.x, ccd.y] for ccd in ordered])
    along = [centres[:, axis, None] + offsets[axis][None, :] for axis in range(2)]
    points = [-along[1], along[0]]
    # One scale for both axes keeps rings round; the camera is centred in the image.
    low = [float(values[:, on_chip.ravel()].min()) for values in points]
    high = [float(values[:, on_chip.ravel()].max()) for values in points]
    pixel = max((high[axis] - low[axis]) / shape[axis] for axis in range(2)) * (1 + 1e-9)
    place = [
        np.floor((points[axis] - 0.5 * (low[axis] + high[axis])) / pixel + 0.5 * shape[axis]).astype(np.int64)
        for axis in range(2)
    ]
    inside = (
        on_chip.ravel()[None, :] & (place[0] >= 0) & (place[0] < shape[0]) & (place[1] >= 0) & (place[1] < shape[1])
    )
    pixels = np.where(inside, place[0] * shape[1] + place[1], shape[0] * shape[1])
    return FocalPlane(shape, np.array([ccd.ccdnum for ccd in ordered]), pixels)
