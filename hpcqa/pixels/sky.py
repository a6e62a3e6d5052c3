"""Level and noise of the sky, from a sample of the native pixels.

Pixels are float32 in ADU, `masked` is bool; a pixel counts as valid when it is finite and not masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcqa.kernels import kernel
from hpcqa.pixels import medians

SAMPLES = 1 << 15
_Fields = tuple[float, float, float, float, float, int]
MAD = 1.4826  # standard deviation of a Gaussian over its median absolute deviation


@dataclass(frozen=True)
class Sky:
    """Level and noise of one image, or of a part of it.

    Attributes:
        level: clipped median, ADU.
        noise: standard deviation of a pixel from neighbouring differences, ADU; blind to gradients.
        spread: standard deviation of the pixels about the level, ADU; sees gradients.
        above: share of pixels more than 5 noise above the level.
        below: share of pixels more than 5 noise below the level.
        num: pixels that were looked at.
    """

    level: float
    noise: float
    spread: float
    above: float
    below: float
    num: int


@kernel
def _sample(
    pixels: np.ndarray,
    masked: np.ndarray,
    step_row: int,
    step_col: int,
    split: int,
    values: np.ndarray,
    following: np.ndarray,
) -> tuple[int, int]:
    """Valid pixels of a grid, those left of the split first, and their right-hand neighbours (NaN if not valid).

    Returns:
        How many lie left of the split, and how many there are.
    """
    rows, cols = pixels.shape
    num_rows = -(-rows // step_row)
    left = num = 0
    # Twice over the same rows: the pixels of the second time are at hand from the first.
    for side in range(2):
        for line in range(num_rows):
            i = line * step_row
            # The first column shifts from row to row, so that periodic columns are not sampled in step.
            shift = (line * 7) % step_col
            start = shift if side == 0 else shift + max(0, -(-(split - shift) // step_col)) * step_col
            for j in range(start, min(split, cols) if side == 0 else cols, step_col):
                value = pixels[i, j]
                if masked[i, j] or not np.isfinite(value):
                    continue
                values[num], following[num] = value, np.nan
                if j + 1 < cols and not masked[i, j + 1] and np.isfinite(pixels[i, j + 1]):
                    following[num] = pixels[i, j + 1]
                num += 1
        left = num if side == 0 else left
    return left, num


@kernel
def _difference_noise(values: np.ndarray, following: np.ndarray, limit: np.float32) -> float:
    """Noise from differences of neighbours that both lie below a limit: stars would add theirs; NaN unknown."""
    differences = np.empty(values.size + 1, values.dtype)
    num = 0
    for k in range(values.size):
        differences[num] = abs(following[k] - values[k])
        num += (values[k] <= limit) & (following[k] <= limit)
    scale = MAD / math.sqrt(2.0)
    return scale * float(medians.median(differences[:num]))


@kernel
def clipped(ordered: np.ndarray, num: int) -> tuple[float, float]:
    """Median and one-sided sigma of sorted values, the bright tail clipped at 3 sigma again and again."""
    level, sigma = 0.0, 0.0
    for _ in range(8):
        level = 0.5 * (ordered[(num - 1) // 2] + ordered[num // 2])
        sigma = level - ordered[int(0.15866 * num)]
        kept = np.searchsorted(ordered[:num], level + 3.0 * sigma, side="right")
        if kept >= num or kept < 8:
            break
        num = kept
    return level, sigma


@kernel
def clipped_level(values: np.ndarray) -> tuple[float, float]:
    """As `clipped`, of finite values in any order."""
    level, sigma = 0.0, 0.0
    num = values.size
    dealt, starts, is_sorted = medians.dealt(values)
    for _ in range(8):
        lower = medians.ranked(dealt, starts, is_sorted, (num - 1) // 2)
        level = 0.5 * (lower + medians.ranked(dealt, starts, is_sorted, num // 2))
        sigma = level - medians.ranked(dealt, starts, is_sorted, int(0.15866 * num))
        kept = medians.count(values, 0.0, level + 3.0 * sigma)[1]
        if kept >= num or kept < 8:
            break
        num = kept
    return level, sigma


def _thin(shape: tuple[int, int], samples: int) -> float:
    return float(max(1.0, (shape[0] * shape[1] / samples) ** 0.5))


def rows_apart(shape: tuple[int, int], samples: int = SAMPLES) -> int:
    """`sky` looks at the first row of so many, and no other."""
    return max(1, round(_thin(shape, samples)))


def sky(pixels: np.ndarray, masked: np.ndarray, *, samples: int = SAMPLES) -> Sky:
    """Sky level and noise of an image (R, C) from about `samples` pixels spread over it.

    With 32,768 samples the level is within 2 % and the noise within 2 % of a sigma of the full image's.
    """
    return skies(pixels, masked, pixels.shape[1], samples=samples)[0]


def skies(pixels: np.ndarray, masked: np.ndarray, split: int, *, samples: int = SAMPLES) -> tuple[Sky, Sky, Sky]:
    """As `sky`, of the whole image and of its parts left and right of a column, from the same samples."""
    rows, cols = pixels.shape
    step_row, step_col = rows_apart((rows, cols), samples), max(1, int(_thin((rows, cols), samples)))
    whole, left, right = _skies(pixels, masked, split, step_row, step_col)
    return Sky(*whole), Sky(*left), Sky(*right)


@kernel
def _skies(
    pixels: np.ndarray, masked: np.ndarray, split: int, step_row: int, step_col: int
) -> tuple[_Fields, _Fields, _Fields]:
    """The fields of `Sky`, of the whole image and left and right of the split."""
    room = (pixels.shape[0] // step_row + 1) * (pixels.shape[1] // step_col + 1)
    values, following = np.empty(room, np.float32), np.empty(room, np.float32)
    left, num = _sample(pixels, masked, step_row, step_col, split, values, following)
    values, following = values[:num], following[:num]
    whole = _sky_of(values, following)
    before = whole if left == num else _sky_of(values[:left], following[:left])
    return whole, before, whole if left == 0 else _sky_of(values[left:], following[left:])


@kernel
def _sky_of(values: np.ndarray, following: np.ndarray) -> _Fields:
    """The fields of `Sky`, of some pixels, and their right-hand neighbours."""
    num = values.size
    if num == 0:
        return np.nan, np.nan, np.nan, 0.0, 0.0, 0
    level, spread = clipped_level(values)
    noise = _difference_noise(values, following, np.float32(level + 3.0 * spread))
    noise = noise if np.isfinite(noise) else spread
    below, upto = medians.count(values, level - 5.0 * noise, level + 5.0 * noise)
    return level, noise, spread, 1.0 - upto / num, below / num, num
