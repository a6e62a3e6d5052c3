"""Defects of CCDs and of what reads them out; each changes an image in place. Amplitudes are in units of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Region
from hpcqa.simulate.condition_defects import span


@dataclass(frozen=True)
class Chip:
    """What a readout defect must know of the CCD: levels in ADU."""

    ccdnum: int
    amplifiers: tuple[Region, ...]
    sky: float
    noise: float  # standard deviation of the sky
    read_noise: float
    saturation: float


# Image (float32, changed in place), the chip, severity, random numbers of the exposure and of the CCD.
ReadoutChange = Callable[[np.ndarray, Chip, float, np.random.Generator, np.random.Generator], None]


def dead(image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator) -> None:
    """No light arrives: part of the signal is left, or the whole frame is one constant."""
    if severity > 0.9 and own.random() < 0.4:
        image[:] = np.float32(own.choice([0.0, chip.sky]))
        return
    kept = 1 - min(1.0, span(severity, 0.003, 1.1))
    image *= np.float32(kept)
    image += own.standard_normal(image.shape, np.float32) * np.float32(chip.read_noise * (1 - kept))


def glow_charge(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """Charge of the shining spot leaks along its columns."""
    width = max(2, image.shape[1] // 60)
    first = int(own.integers(0, image.shape[1] - width))
    image[:, first : first + width] += np.float32(chip.noise * span(severity, 0.1, 6.0))


def wrong_level(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """One amplifier, or the CCD, has a wrong gain; stars are wrong with the sky."""
    sign = own.choice([-1, 1])
    factor = 1 + sign * span(severity, 0.005, 0.7)
    region = chip.amplifiers[int(own.integers(len(chip.amplifiers)))]
    part = image if own.random() < 0.4 else image[region.row0 : region.row1, region.col0 : region.col1]
    part *= np.float32(factor)


def stripes(image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator) -> None:
    """Horizontal or vertical stripes: a sine, or rows that each have an offset of their own."""
    amplitude = chip.noise * span(severity, 0.1, 5.0)
    axis = int(rng.random() < 0.3)
    length = image.shape[axis]
    if rng.random() < 0.5:
        period = math.exp(rng.uniform(math.log(4), math.log(length / 4)))
        profile = np.sin(2 * math.pi * np.arange(length) / period + own.uniform(0, 6.3))
    else:
        profile = np.repeat(own.normal(0, 0.7, length), 1)
    profile = (amplitude * profile).astype(np.float32)
    image += profile[:, None] if axis == 0 else profile[None, :]


def hatch(image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator) -> None:
    """Slanting lines: pick-up that is not in step with the readout. Both amplifiers mirror each other."""
    amplitude = chip.noise * span(severity, 0.1, 4.0)
    period, slope = rng.uniform(5, 40), rng.uniform(0.2, 1.5)
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    phase = own.uniform(0, 6.3)
    for number, region in enumerate(chip.amplifiers):
        cols = np.arange(region.col1 - region.col0, dtype=np.float32)[None, :]
        if number % 2:
            cols = cols[:, ::-1]
        waves = np.sin(np.float32(2 * math.pi / period) * (rows[region.row0 : region.row1] + slope * cols) + phase)
        image[region.row0 : region.row1, region.col0 : region.col1] += (amplitude * waves).astype(np.float32)


def read_noise(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """Much more read noise, as a rule on one amplifier."""
    extra = chip.noise * span(severity, 0.35, 4.0)
    region = chip.amplifiers[int(own.integers(len(chip.amplifiers)))]
    part = image[region.row0 : region.row1, region.col0 : region.col1]
    part += own.standard_normal(part.shape, np.float32) * np.float32(extra)


def amplifier_offset(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """A step of the sky between the amplifiers."""
    step = chip.sky * span(severity, 0.003, 0.08) * own.choice([-1, 1])
    for number, region in enumerate(chip.amplifiers):
        image[region.row0 : region.row1, region.col0 : region.col1] += np.float32(step * (0.5 - number % 2))


def vsub_off(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """Charge that is not confined: glow towards the rows read last, and columns that fill up."""
    rows = np.linspace(0, 1, image.shape[0], dtype=np.float32)[:, None]
    image += np.float32(chip.sky * span(severity, 0.01, 0.8)) * rows**4
    count = max(2, image.shape[1] // 20)
    columns = own.choice(image.shape[1], size=count, replace=False)
    image[:, columns] += np.float32(chip.noise * span(severity, 0.3, 10.0)) * rows


def scrapers(
    image: np.ndarray, chip: Chip, severity: float, rng: np.random.Generator, own: np.random.Generator
) -> None:
    """Blocks of columns of several heights, like a skyline: overscan that was fitted badly."""
    start = 0
    while start < image.shape[1]:
        width = int(own.integers(max(3, image.shape[1] // 60), max(5, image.shape[1] // 12)))
        top = int(image.shape[0] * own.uniform(0.1, 0.9))
        image[:top, start : start + width] += np.float32(chip.noise * span(severity, 0.08, 3.0) * own.normal())
        start += width
