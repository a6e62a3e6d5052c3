"""Level and noise of the sky, from a sample of the native pixels.

Pixels are float32 in ADU, `masked` is bool; a pixel counts as valid when it is finite and not masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcqa.pixels import medians
from hpcqa.pixels.kernels import kernel

SAMPLES = 1 << 15
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
    pixels: np.ndarray, masked: np.ndarray, step_row: int, step_col: int, values: np.ndarray, following: np.ndarray
) -> int:
    """Valid pixels of a grid, and their right-hand neighbours (NaN where these are not valid)."""
    num = 0
    rows, cols = pixels.shape
    for i in range(0, rows, step_row):
        # The first column shifts from row to row, so that periodic columns are not sampled in step.
        for j in range((i // step_row * 7) % step_col, cols, step_col):
            value = pixels[i, j]
            if masked[i, j] or not np.isfinite(value):
                continue
            values[num], following[num] = value, np.nan
            if j + 1 < cols and not masked[i, j + 1] and np.isfinite(pixels[i, j + 1]):
                following[num] = pixels[i, j + 1]
            num += 1
    return num


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


def sky(pixels: np.ndarray, masked: np.ndarray, *, samples: int = SAMPLES) -> Sky:
    """Sky level and noise of an image (R, C) from about `samples` pixels spread over it.

    With 32,768 samples the level is within 2 % and the noise within 2 % of a sigma of the full image's.
    """
    rows, cols = pixels.shape
    thin = max(1.0, (rows * cols / samples) ** 0.5)
    step_row, step_col = max(1, round(thin)), max(1, int(thin))
    room = (rows // step_row + 1) * (cols // step_col + 1)
    values, following = np.empty(room, np.float32), np.empty(room, np.float32)
    num = _sample(pixels, masked, step_row, step_col, values, following)
    if num == 0:
        return Sky(np.nan, np.nan, np.nan, 0.0, 0.0, 0)
    values, following = values[:num], following[:num]
    level, spread = clipped_level(values)
    noise = _difference_noise(values, following, np.float32(level + 3.0 * spread))
    noise = noise if math.isfinite(noise) else spread
    below, upto = medians.count(values, level - 5.0 * noise, level + 5.0 * noise)
    return Sky(level, noise, spread, 1.0 - upto / num, below / num, num)
