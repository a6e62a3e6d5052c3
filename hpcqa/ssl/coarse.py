"""A coarse map of each CCD: where its background deviates from what this CCD usually shows. Evidence, not a feature."""

from __future__ import annotations

import numpy as np

GRID = (8, 4)  # regions down and across: 512 x 512 pixels of a full-size CCD
FEWEST_KNOWN = 0.1  # of a region's cells


def region_edges(cells: int, regions: int) -> np.ndarray:
    """Where the regions of an axis begin and end, in cells of the background view: int64 (regions + 1,)."""
    return np.linspace(0, cells, regions + 1).round().astype(np.int64)


def coarse_maps(images: np.ndarray, softening: float) -> np.ndarray:
    """Mean deviation of each region.

    Args:
        images: float16 (B, H, W), background views, asinh(z / softening); exactly 0 where nothing is known.
        softening: of the stretch.

    Returns:
        float16 (B, *GRID) in units of z, the scatter that is expected of a cell; NaN where hardly a cell is known.
    """
    z = np.float32(softening) * np.sinh(images.astype(np.float32))
    known = images != 0
    total, count = _sums(z * known), _sums(known.astype(np.float32))
    size = _sums(np.ones((1, *images.shape[1:]), np.float32))
    mean = total / np.maximum(count, 1.0)
    largest = float(np.finfo(np.float16).max)
    enough = (count > 0) & (count >= FEWEST_KNOWN * size)
    return np.where(enough, np.clip(mean, -largest, largest), np.nan).astype(np.float16)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums over the regions: float32 (B, *GRID)."""
    for axis, regions in ((1, GRID[0]), (2, GRID[1])):
        edges = region_edges(values.shape[axis], regions)
        # A view with fewer cells than regions has empty ones, which reduceat would fill with a neighbour.
        starts = np.minimum(edges[:-1], values.shape[axis] - 1)
        filled = (np.diff(edges) > 0).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        values = np.add.reduceat(values, starts, axis=axis) * filled
    return values
