"""Where pixels lie on the focal plane, in units of the focal plane's radius, for any camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcqa.instruments.base import Ccd, Instrument


@dataclass(frozen=True)
class FocalPlane:
    """The camera's CCDs on the unit disc: 1 is the distance of the farthest corner from the centre."""

    instrument: Instrument

    @cached_property
    def radius(self) -> float:
        """Distance of the farthest CCD corner from the centre in degrees."""
        half = np.hypot(*self.instrument.shape) / 2 * self.degrees_per_pixel
        return float(max(np.hypot(ccd.x, ccd.y) for ccd in self.instrument.ccds) + half)

    @property
    def degrees_per_pixel(self) -> float:
        return self.instrument.pixel_scale / 3600

    @cached_property
    def pixel(self) -> float:
        """Side of a pixel in units of the radius."""
        return self.degrees_per_pixel / self.radius

    def centre(self, ccd: Ccd) -> tuple[float, float]:
        return ccd.x / self.radius, ccd.y / self.radius

    def coordinates(self, ccd: Ccd, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Focal-plane x, y (radius units) of zero-based pixel rows and columns, which broadcast."""
        num_rows, num_cols = self.instrument.shape
        up, right = self.instrument.rows_along, self.instrument.cols_along
        dr, dc = (rows - (num_rows - 1) / 2) * self.pixel, (cols - (num_cols - 1) / 2) * self.pixel
        x0, y0 = self.centre(ccd)
        return x0 + up[0] * dr + right[0] * dc, y0 + up[1] * dr + right[1] * dc

    def pixels(self, ccd: Ccd, x: float, y: float) -> tuple[float, float]:
        """Row and column (zero-based, fractional, perhaps off the CCD) of a place in radius units."""
        num_rows, num_cols = self.instrument.shape
        up, right = self.instrument.rows_along, self.instrument.cols_along
        x0, y0 = self.centre(ccd)
        dx, dy = (x - x0) / self.pixel, (y - y0) / self.pixel
        return (num_rows - 1) / 2 + up[0] * dx + up[1] * dy, (num_cols - 1) / 2 + right[0] * dx + right[1] * dy

    def grid(self, ccd: Ccd, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of a coarse grid's nodes, `step` pixels apart from pixel 0 on, covering the CCD: (gy, gx) each."""
        num_rows, num_cols = self.instrument.shape
        rows = np.arange(num_rows // step + 2, dtype=np.float64) * step
        cols = np.arange(num_cols // step + 2, dtype=np.float64) * step
        return self.coordinates(ccd, rows[:, None], cols[None, :])
