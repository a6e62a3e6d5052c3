"""One pass over the native pixels of a CCD: the binned working image, the profiles along rows and columns, saturation.

Everything that follows is measured on what this gives; only the stars go back to native pixels. Shapes: R, C native
rows and columns; r, c binned, r = ceil(R / step).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.pixels.scanblocks import AT_ONCE, BLOCK, FOUR
from hpcqa.pixels.scanrows import column_means, masked_in_rows, scan_rows

# The binned image that sources are found on has at most this many pixels along a side: 4x4 binning for a 2k x 4k CCD.
WORKING_SIDE = 1024


@dataclass(frozen=True)
class Scan:
    """What one pass over the native pixels gives.

    Attributes:
        step: native pixels along a side of a binned one.
        mean: (r, c) float32, mean of the valid pixels, ADU; 0 where there is none.
        count: (r, c) uint8 (uint16 where a binned pixel has more than 255), valid pixels.
        row_mean: (2, R) float32, clipped mean of each row less the sky, ADU, left and right of the split.
        row_count: (2, R) float32, pixels behind it.
        col_mean: (C,) float32, clipped mean of each column less the sky, ADU.
        col_count: (C,) float32.
        saturated: (C,) float32, saturated pixels in each column, masked or not; from every `step`-th row.
        constant_rows: rows whose pixels are all equal.
        num_masked, num_valid: masked and valid pixels of the CCD.
    """

    step: int
    mean: np.ndarray
    count: np.ndarray
    row_mean: np.ndarray
    row_count: np.ndarray
    col_mean: np.ndarray
    col_count: np.ndarray
    saturated: np.ndarray
    constant_rows: int
    num_masked: int
    num_valid: int


def working_step(shape: tuple[int, int]) -> int:
    """Native pixels along a side of a pixel of the working image."""
    return max(1, -(-max(shape) // WORKING_SIDE))


@dataclass(frozen=True)
class Sums:
    """A scan under way: what `scan_rows` takes, and adds to.

    Attributes:
        step, split, facts: see `scan_rows`.
        arrays: mean, count, row_mean and row_count as in Scan; (4, C) float32, of each column, of one row of the
            working image: the valid pixels less the sky and their number, and of all rows the same for those within the
            cut; `saturated` as in Scan; (2, blocks) int64, rows of each block left and right of the split that are
            still to be added to the last number; room: (c,) and (2, 2, AT_ONCE) float32; (C,) uint8, a row of which
            all is masked.
        numbers: int64 (3,), constant rows, masked pixels and valid ones.
    """

    step: int
    split: int
    facts: tuple[np.float32, np.float32, np.float32]
    arrays: tuple[np.ndarray, ...]
    numbers: np.ndarray

    @classmethod
    def begin(cls, shape: tuple[int, int], *, level: float, noise: float, split: int, saturation: float) -> Sums:
        """Sums of nothing yet; see `scan`."""
        rows, cols = shape
        step = working_step(shape)
        small = (-(-rows // step), -(-cols // step))
        cut = 5.0 * noise if noise > 0 else 1e-3 * max(abs(level), 1.0)
        facts = (np.float32(level), np.float32(cut), np.float32(saturation))
        # The scan sets what it gives for the rows of the image and of the working image. Small counts, because whatever
        # looks at the working image waits for the memory.
        mean, count = np.empty(small, np.float32), np.empty(small, np.uint8 if step * step < 256 else np.uint16)
        profiles = np.zeros((2, 2, rows), np.float32)
        sums = np.zeros((4, cols), np.float32)
        sums[1] = FOUR
        quiet = np.zeros((2, -(-cols // BLOCK)), np.int64)
        room = np.empty(small[1], np.float32), np.empty((2, 2, AT_ONCE), np.float32), np.ones(cols, np.uint8)
        arrays = (mean, count, *profiles, sums, np.zeros(cols, np.float32), quiet, *room)
        return cls(step, split, facts, arrays, np.zeros(3, np.int64))

    def finish(self) -> Scan:
        """The scan, once all rows are in."""
        mean, count, row_mean, row_count, sums, saturated, quiet, *_ = self.arrays
        columns = *column_means(sums, quiet, self.split), saturated
        return Scan(self.step, mean, count, row_mean, row_count, *columns, *self.numbers.tolist())


def scan(
    pixels: np.ndarray,
    masked: np.ndarray,
    *,
    level: float,
    noise: float,
    split: int,
    saturation: float,
    in_row: np.ndarray | None = None,
) -> Scan:
    """One pass over the native pixels (R, C).

    Args:
        pixels: float32, ADU.
        masked: bool, same shape.
        level: of the sky, ADU.
        noise: of a pixel, ADU; the profiles use pixels within 5 noise of the level.
        split: column where the second amplifier starts; 0 or C when there is none.
        saturation: pixels at or above are saturated, ADU.
        in_row: masked pixels in each row, int32 (R,), if they are counted already.
    """
    rows, cols = pixels.shape
    sums = Sums.begin((rows, cols), level=level, noise=noise, split=split, saturation=saturation)
    hidden = masked.view(np.uint8)
    in_row = masked_in_rows(hidden) if in_row is None else in_row
    scan_rows(pixels, hidden, in_row, 0, rows, sums.step, sums.split, sums.facts, sums.arrays, sums.numbers)
    return sums.finish()
