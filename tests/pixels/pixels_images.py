"""Small images with known content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hpcqa import instruments
from hpcqa.config import Config
from hpcqa.pixels.measure import NAMES, Facts
from hpcqa.pixels.views import look

SHAPE = (512, 256)
LEVEL, GAIN, READ_NOISE = 400.0, 4.0, 7.0


def make_image(seed=1, shape=SHAPE, level=LEVEL, stars=60, sigma=2.0, kernel=None, noise=1.0):
    """Sky, noise of photons and readout, and stars of a Gaussian or a given profile (odd square, peak 1)."""
    rng = np.random.default_rng(seed)
    truth = np.full(shape, level)
    if kernel is None:
        y, x = np.mgrid[-12:13, -12:13]
        kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    half = kernel.shape[0] // 2
    padded = np.pad(truth, half)
    for _ in range(stars):
        row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        height = 10 ** rng.uniform(1.5, 3.8)
        padded[row : row + 2 * half + 1, col : col + 2 * half + 1] += height * kernel
    truth = padded[half : half + shape[0], half : half + shape[1]]
    scatter = np.sqrt(truth / GAIN + (READ_NOISE / GAIN) ** 2) * noise
    return (truth + scatter * rng.standard_normal(shape)).astype(np.float32)


def make_facts(shape=SHAPE, **changes):
    camera = instruments.get("minicam")
    facts = Facts(100.0, 25.0, 25.0, 4.0, GAIN, READ_NOISE, 40000.0, 0.263, camera.amplifiers(shape, 1))
    return replace(facts, **changes)


def numbers_of(image, masked=None, facts=None, config=None):
    """The measured numbers of an image by name."""
    masked = np.zeros(image.shape, bool) if masked is None else masked
    views = (config or Config()).views
    found = look(image, masked, facts or make_facts(image.shape), views)
    return dict(zip(NAMES, found.numbers.tolist(), strict=True))
