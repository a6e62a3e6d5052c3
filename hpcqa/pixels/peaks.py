"""Peaks of the smoothed working image: where stars and other sources are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.background import Sources
from hpcqa.pixels.scan import Scan
from hpcqa.pixels.streaks import Streak

PEAK_SIGMA = 5.0
MOST_PEAKS = 20000


@dataclass(frozen=True)
class Peaks:
    """Local maxima, brightest first.

    Attributes:
        row, col: (n,) float32, native pixels.
        height: (n,) float32, height of the smoothed working image, ADU.
        significance: (n,) float32, height over the noise of the smoothed image.
    """

    row: np.ndarray
    col: np.ndarray
    height: np.ndarray
    significance: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def without(self, streaks: tuple[Streak, ...]) -> Peaks:
        """The peaks that lie on no streak."""
        if not streaks:
            return self
        on = np.logical_or.reduce([streak.covers(self.col, self.row) for streak in streaks])
        return Peaks(self.row[~on], self.col[~on], self.height[~on], self.significance[~on])


@fast_kernel
def _peaks_in(
    above: np.ndarray, row: np.ndarray, below: np.ndarray, threshold: np.float32, is_peak: np.ndarray
) -> None:
    """Which pixels of a row are above a threshold and the largest of nine; the ends have too few beside.

    Of equal neighbours the first in reading order wins.
    """
    for j in range(is_peak.shape[0]):
        value = row[j + 1]
        is_peak[j] = (
            (value > threshold)
            & (value > row[j]) & (value >= row[j + 2])
            & (value > above[j]) & (value > above[j + 1]) & (value > above[j + 2])
            & (value >= below[j]) & (value >= below[j + 1]) & (value >= below[j + 2])
        )  # fmt: skip


@inner_kernel
def _peaks(
    image: np.ndarray,
    threshold: np.float32,
    rows: np.ndarray,
    cols: np.ndarray,
    heights: np.ndarray,
    is_peak: np.ndarray,
) -> int:
    """Peaks into rows, cols and heights until these are full; how many.

    `is_peak` is room for a row, uint8, zeros, a multiple of eight: most of an image is sky, and eight bytes that are
    zero are seen at once.
    """
    num, inside = 0, max(image.shape[1] - 2, 0)
    eights = is_peak.view(np.uint64)
    for i in range(1, image.shape[0] - 1):
        _peaks_in(image[i - 1], image[i], image[i + 1], threshold, is_peak[:inside])
        for k in range(eights.size):
            if eights[k] == 0:
                continue
            for j in range(8 * k, 8 * k + 8):
                if is_peak[j]:
                    if num == rows.shape[0]:
                        return num
                    rows[num], cols[num], heights[num] = i, j + 1, image[i, j + 1]
                    num += 1
    return num


def find_peaks(scanned: Scan, sources: Sources, *, threshold: float = PEAK_SIGMA) -> Peaks:
    """Local maxima of the smoothed working image above `threshold` times its noise."""
    rows, cols = np.empty(MOST_PEAKS, np.int32), np.empty(MOST_PEAKS, np.int32)
    heights = np.empty(MOST_PEAKS, np.float32)
    noise = max(sources.smooth_noise, 1e-12)
    is_peak = np.zeros(-(-sources.smooth.shape[1] // 8) * 8, np.uint8)
    num = _peaks(sources.smooth, np.float32(threshold * noise), rows, cols, heights, is_peak)
    keys = np.sort(_keys(heights[:num]))
    return Peaks(*_ordered(keys, rows, cols, heights, scanned.step, np.float32(noise)))


@kernel
def _keys(heights: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of descending heights (n,), which are positive; of equal ones the first is first.

    numpy sorts these an order faster than it finds the order of floats.
    """
    bits = heights.view(np.int32)
    keys = np.empty(heights.size, np.int64)
    for k in range(keys.size):
        keys[k] = (np.int64(0x7FFFFFFF - bits[k]) << 32) | k
    return keys


@kernel
def _ordered(
    keys: np.ndarray, rows: np.ndarray, cols: np.ndarray, heights: np.ndarray, step: int, noise: np.float32
) -> np.ndarray:
    """The fields of `Peaks` in the order of `_keys`: (4, n) float32."""
    out = np.empty((4, keys.size), np.float32)
    centre = 0.5 * (step - 1)
    for k in range(keys.size):
        place = keys[k] & 0xFFFFFFFF
        out[0, k], out[1, k] = rows[place] * step + centre, cols[place] * step + centre
        out[2, k], out[3, k] = heights[place], heights[place] / noise
    return out
