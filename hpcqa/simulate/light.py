"""Light on the focal plane that the sky does not explain: ghosts, clouds, glow, fringes, nebulae.

A field is a function of place (radius units of the focal plane) that gives light relative to the sky. It is evaluated
on a coarse grid of each CCD; the same random numbers on every CCD make one picture across them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Ccd
from hpcqa.simulate.condition_defects import span
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.streams import stream


@dataclass(frozen=True)
class Where:
    """One CCD's places: x, y (gy, gx) in radius units, and the frame of a defect that is confined to CCDs.

    `finest` is the finest detail that the grid can show, in radius units.
    """

    plane: FocalPlane
    ccd: Ccd
    x: np.ndarray
    y: np.ndarray
    band: str
    seed: int
    finest: float
    local: bool
    bright_place: tuple[float, float] = (0.0, 0.0)  # of the brightest star

    def ccd_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates from -1 to 1 along rows and columns of this CCD."""
        rows, cols = self.plane.instrument.shape
        up, right = self.plane.instrument.rows_along, self.plane.instrument.cols_along
        x0, y0 = self.plane.centre(self.ccd)
        dx, dy = (self.x - x0) / self.plane.pixel, (self.y - y0) / self.plane.pixel
        return (up[0] * dx + up[1] * dy) * 2 / rows, (right[0] * dx + right[1] * dy) * 2 / cols

    def frame(self, rng: np.random.Generator, size: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in units of an object's radius: `size` at a random place, or within this CCD if local."""
        rows, cols = self.plane.instrument.shape
        place, spread = rng.uniform(-1, 1, 2), rng.uniform(0.35, 0.75)
        if not self.local:
            return (self.x - 0.7 * place[0]) / size, (self.y - 0.7 * place[1]) / size
        x0, y0 = self.plane.centre(self.ccd)
        reach = min(rows, cols) / 2 * self.plane.pixel
        return (self.x - x0 - 0.4 * reach * place[0]) / (spread * reach), (self.y - y0 - 0.4 * reach * place[1]) / (
            spread * reach
        )


LightField = Callable[[Where, float, np.random.Generator], np.ndarray]


def smooth(x: np.ndarray, y: np.ndarray, scale: float, rng: np.random.Generator, modes: int = 16) -> np.ndarray:
    """A Gaussian random field of standard deviation 1 with structure of about `scale`."""
    waves = rng.normal(0, 1 / scale, (modes, 2))
    phases = rng.uniform(0, 2 * math.pi, modes)
    total = np.zeros(np.broadcast(x, y).shape)
    for (kx, ky), phase in zip(waves, phases, strict=True):
        total += np.cos(kx * x + ky * y + phase)
    return np.asarray(total * math.sqrt(2 / modes))


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where distance is well below 0, 0 well above, over `width`."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / width, -30, 30))))


def twilight(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return np.asarray(0.08 * severity * (math.cos(angle) * where.x + math.sin(angle) * where.y))


def clouds(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Patchy light of moonlit clouds."""
    patches = smooth(where.x, where.y, rng.uniform(0.15, 0.6), rng)
    return np.asarray(span(severity, 0.004, 0.12) * patches)


def ghost_disc(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The pupil out of focus: a disc with a dark middle and the spider's arms."""
    size, hole = rng.uniform(0.12, 0.45), rng.uniform(0.33, 0.5)
    u, v = where.frame(rng, size)
    stretch, angle = rng.uniform(0.75, 1.0), rng.uniform(0, 2 * math.pi)
    u, v = u * math.cos(angle) + v * math.sin(angle), (v * math.cos(angle) - u * math.sin(angle)) / stretch
    radius = np.hypot(u, v)
    shape = edge(radius - 1, 0.03) - edge(np.hypot(u - rng.uniform(-0.2, 0.2), v) - hole, 0.03)
    arms = np.exp(-((u / 0.06) ** 2)) + np.exp(-((v / 0.06) ** 2))
    shape = np.clip(shape, 0, 1) * (1 - 0.7 * np.clip(arms, 0, 1))
    return np.asarray(span(severity, 0.004, 0.4) * shape * (1 + 0.3 * radius))


def ghost_arc(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Light scattered off a rim: arcs and sprays."""
    size = rng.uniform(0.3, 0.9)
    u, v = where.frame(rng, size)
    angle = rng.uniform(0, 2 * math.pi)
    along = np.arctan2(v, u) - angle
    along = (along + math.pi) % (2 * math.pi) - math.pi
    total = np.zeros_like(u)
    for _ in range(int(rng.integers(1, 4))):
        middle, width, half = rng.uniform(0.5, 1.0), rng.uniform(0.03, 0.12), rng.uniform(0.3, 0.9)
        total += np.exp(-(((np.hypot(u, v) - middle) / width) ** 2)) * np.exp(-((along / half) ** 4))
    return np.asarray(span(severity, 0.005, 0.4) * total)


def lightbulb(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A spot of the CCD shines."""
    along, across = where.ccd_frame()
    row, col, size = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.35)
    rows, cols = where.plane.instrument.shape
    distance = np.hypot(along - row, (across - col) * cols / rows)
    return np.asarray(span(severity, 0.008, 8.0) * np.exp(-distance / size))


def fringes(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Thin-film interference of night-sky lines: each CCD has its own pattern, the night its strength."""
    own = stream(where.seed, "simulate", "fringes", where.ccd.ccdnum)
    along, across = where.ccd_frame()
    # Thickness contours: many round a few hills, 1/40 to 1/8 of the long side apart.
    bent = along + 0.25 * smooth(along, across / 2, 0.7, own)
    height = own.uniform(4, 8) * (smooth(bent, across / 2, 0.8, own) + 0.5 * smooth(bent, across / 2, 0.3, own))
    strong = 2.0 if where.band == "Y" else 1.0
    return np.asarray(strong * span(severity, 0.001, 0.02) * np.sin(height * 2))


def reflections(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A very bright star lights up the whole field, and the optics mirror it to the other side."""
    place = where.bright_place
    wide = np.exp(-np.hypot(where.x - place[0], where.y - place[1]) / 0.5)
    radius = np.hypot(where.x + place[0], where.y + place[1]) / rng.uniform(0.3, 0.6)
    ring = edge(radius - 1, 0.05) - edge(radius - 0.4, 0.05)
    return np.asarray(span(severity, 0.01, 0.6) * (wide + 0.25 * ring))


def quilt(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The sky subtraction's own squares: 8 by 4 blocks on a CCD at levels of their own."""
    along, across = where.ccd_frame()
    own = np.random.default_rng([int(rng.integers(2**31)), where.ccd.ccdnum])
    levels = own.normal(0, 1, (10, 6))
    rows = np.clip(np.floor((along + 1) * 4), 0, 7).astype(int)
    cols = np.clip(np.floor((across + 1) * 2), 0, 3).astype(int)
    return np.asarray(span(severity, 0.002, 0.03) * levels[rows, cols])


def waves(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A wavy sky across the whole field."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.08, 0.3)
    along = math.cos(angle) * where.x + math.sin(angle) * where.y
    bent = along + 0.1 * smooth(where.x, where.y, 0.5, rng)
    return np.asarray(span(severity, 0.002, 0.03) * np.sin(2 * math.pi * bent / period))


def airplane(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A wide bright band: lamps out of focus, sometimes two; on one CCD only, a meteor's or a tumbling piece's end."""
    angle, offset = rng.uniform(0, math.pi), rng.uniform(-0.6, 0.6)
    rows, cols = where.plane.instrument.shape
    x, y = where.x, where.y
    if where.local:
        x0, y0 = where.plane.centre(where.ccd)
        x, y, offset = x - x0, y - y0, offset * min(rows, cols) / 3 * where.plane.pixel
    across = -math.sin(angle) * x + math.cos(angle) * y - offset
    # 2 to 8 percent of a CCD's width to either side: 60 to 250 px on a CCD of 2048.
    half = max(rng.uniform(0.015, 0.06) * cols * where.plane.pixel, where.finest)
    profile = edge(np.abs(across) - half, half / 4)
    if rng.random() < 0.4:
        profile = profile + 0.6 * edge(np.abs(across - 4 * half) - half / 2, half / 4)
    return np.asarray(span(severity, 0.008, 3.0) * profile)


def pupil(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Light between filter and window: a huge ring about the centre of the field."""
    x0, y0 = rng.normal(0, 0.04, 2)
    radius = np.hypot(where.x - x0, where.y - y0)
    inner, outer = rng.uniform(0.15, 0.25), rng.uniform(0.5, 0.7)
    ring = edge(radius - outer, 0.04) - edge(radius - inner, 0.03)
    return np.asarray(span(severity, 0.003, 0.12) * ring)


def illumination(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A wrong flat field: every CCD at its own level, and a tilt."""
    own = np.random.default_rng([int(rng.integers(2**31)), where.ccd.ccdnum])
    angle = rng.uniform(0, 2 * math.pi)
    tilt = math.cos(angle) * where.x + math.sin(angle) * where.y
    bowl = where.x**2 + where.y**2
    return np.asarray(span(severity, 0.003, 0.06) * (own.normal(0, 0.7) + tilt + rng.normal(0, 0.7) * bowl))


def edge_glow(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The edge of a CCD shines; on many CCDs always the same edge."""
    along, across = where.ccd_frame()
    side, length = int(rng.integers(4)), rng.uniform(0.06, 0.25)
    distance = (1 - along, 1 + along, 1 - across, 1 + across)[side]
    return np.asarray(span(severity, 0.006, 0.5) * np.exp(-np.clip(distance, 0, None) / length))


def rings(where: Where, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Circles about the middle of the field that a wrong sky template left."""
    radius = np.hypot(where.x, where.y)
    period = max(rng.uniform(0.06, 0.2), 4 * where.finest)
    return np.asarray(span(severity, 0.0015, 0.025) * np.cos(2 * math.pi * radius / period + rng.uniform(0, 6.3)))


def nebula(where: Where, peak: float, rng: np.random.Generator) -> np.ndarray:
    """Wisps of a nebula: a smooth field, only its upper half, bent by another."""
    x = where.x + 0.1 * smooth(where.x, where.y, 0.2, rng)
    wisps = smooth(x, where.y, 0.15, rng) + 0.5 * smooth(x, where.y, 0.05, rng)
    return np.asarray(peak * np.clip(wisps, 0, None) / 1.5)


def galaxy(where: Where, peak: float, rng: np.random.Generator) -> np.ndarray:
    """One big galaxy somewhere in the field: an inclined disc with a bulge."""
    place, angle = rng.uniform(-0.7, 0.7, 2), rng.uniform(0, math.pi)
    size, ratio = rng.uniform(0.02, 0.06), rng.uniform(0.3, 1)
    dx, dy = where.x - place[0], where.y - place[1]
    u, v = dx * math.cos(angle) + dy * math.sin(angle), (dy * math.cos(angle) - dx * math.sin(angle)) / ratio
    radius = np.hypot(u, v) / size
    return np.asarray(peak * (0.7 * np.exp(-radius) + 2 * np.exp(-5 * radius)))
