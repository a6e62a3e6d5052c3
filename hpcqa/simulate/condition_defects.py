"""Defects of a whole exposure: weather, focus, tracking, depth. Each returns changed conditions.

Ranges are those that reviewers' lists name: trails of 1 to 20 px, seeing over 2", donuts of 2 to 16 px, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hpcqa.simulate.conditions import Conditions, Segment
from hpcqa.simulate.geometry import FocalPlane

ConditionChange = Callable[[Conditions, float, np.random.Generator, FocalPlane], Conditions]


def span(severity: float, low: float, high: float) -> float:
    """From `low` at severity 0 to `high` at severity 1, equal ratios for equal steps."""
    return float(low * (high / low) ** severity)


def wcs_failure(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Too few stars, or all of them trailed: SCAMP finds no solution."""
    failed = replace(conditions, wcs="Failed", scampflg=int(rng.integers(1, 4)))
    if rng.random() < 0.5:
        return replace(failed, sources=span(severity, 0.7, 0.05))
    return replace(failed, path=line(span(severity, 1.0, 15.0), rng.uniform(0, math.pi)))


def twilight(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """The sky fills the wells."""
    full = 1.02 * plane.instrument.saturation
    level = max(span(severity, 2500.0, full), 2 * conditions.sky)
    return replace(conditions, sky_rate=level / conditions.exptime)


def clouds(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Grey extinction; the moon or the city lights the clouds up."""
    extinction = span(severity, 0.15, 3.0) * rng.uniform(0.8, 1.2)
    brighter = 1 + severity * rng.uniform(0.1, 2.0)
    return replace(
        conditions,
        transparency=conditions.transparency * 10 ** (-0.4 * extinction),
        sky_rate=conditions.sky_rate * brighter,
        patchy=span(severity, 0.02, 0.5) * rng.uniform(0.3, 1.0),
    )


def seeing(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """A broad round PSF."""
    return replace(conditions, fwhm=span(severity, 1.65, 4.8))


def trailed(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Bad guiding: elongated the same way everywhere; wind shakes mostly east-west, along the rows' direction."""
    angle = rng.normal(math.pi / 2, 0.2) if rng.random() < 0.5 else rng.uniform(0, math.pi)
    length = span(severity, 1.4, 20.0)
    lost = rng.random() < 0.2 + 0.6 * severity
    return replace(
        conditions,
        path=line(length, angle),
        guider=int(rng.choice([2, 3])) if lost else conditions.guider,
        guide_error=conditions.guide_error * (1 + length * rng.uniform(0.1, 1)),
    )


def shallow(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Too shallow for its exposure time, or cut short."""
    share = span(severity, 0.75, 0.08)
    if rng.random() < 0.5:
        return replace(conditions, exptime=max(round(conditions.exptime * share, 1), 3.0))
    return replace(conditions, transparency=conditions.transparency * share)


def few_sources(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Sources taken away with the sky, or a frame with hardly any light; the sky stays."""
    return replace(conditions, sources=span(severity, 0.6, 0.01), bright_star=99.0, galaxy=0.0)


def many_sources(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """So crowded that neither sky nor sources can be measured."""
    return replace(conditions, crowding=span(severity, 7.0, 45.0))


def canopus(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """A star of magnitude 7 down to -0.7 in the field."""
    return replace(conditions, bright_star=7.0 - 7.7 * severity)


def double(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """The telescope jumped once or twice while the shutter was open."""
    reach = max(3.0, 1.8 * conditions.fwhm / plane.instrument.pixel_scale)
    distance = reach * rng.uniform(1, 1 + 20 * rng.random())
    # The weaker copy holds 3 to 50 percent of the light.
    share = span(severity, 0.025, 0.5)
    angle = rng.uniform(0, 2 * math.pi)
    second = (distance * math.cos(angle), distance * math.sin(angle))
    path: tuple[Segment, ...] = (((0.0, 0.0), (0.0, 0.0), 1 - share), (second, second, share))
    return replace(conditions, path=path, guide_error=conditions.guide_error * (1 + 5 * rng.random()))


def slew(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """The telescope still moved at the start or the end: a star with a long tail."""
    # Longer tails leave the CCD anyway.
    length = min(span(severity, 6.0, 400.0), 0.35 * min(plane.instrument.shape))
    angle, share = rng.uniform(0, 2 * math.pi), span(severity, 0.15, 0.95)
    end = (length * math.cos(angle), length * math.sin(angle))
    path: tuple[Segment, ...] = (((0.0, 0.0), (0.0, 0.0), 1 - share), ((0.0, 0.0), end, share))
    telstat = "Slew" if rng.random() < 0.3 * severity else "Track"
    return replace(conditions, path=path, telstat=telstat)


def donuts(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """Defocus: 40 um make a donut of 1 px on a f/2.7 camera with 15 um pixels."""
    diameter = span(severity, 2.2, 18.0)
    tilt = rng.normal(0, 0.12, 2)
    sign = rng.choice([-1, 1])
    return replace(
        conditions,
        donut=diameter,
        donut_tilt=(float(tilt[0]), float(tilt[1])),
        focus_error=float(sign * 40.5 * diameter * rng.lognormal(0, 0.3)) if rng.random() < 0.8 else 0.0,
    )


def lopsided(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """The mirrors are out of alignment: one-sided donuts, or three-cornered ones."""
    corners = float(rng.random() < 0.4)
    return replace(
        conditions,
        donut=span(severity, 2.5, 14.0),
        lopsided=(1 - corners) * rng.uniform(0.35, 0.6),
        trefoil=corners * rng.uniform(0.3, 0.6),
    )


def vsub_off(conditions: Conditions, severity: float, rng: np.random.Generator, plane: FocalPlane) -> Conditions:
    """The CCDs' substrate voltage is off: charge spreads; the header says so most times."""
    return replace(conditions, vsub=bool(rng.random() < 0.25), fwhm=conditions.fwhm * span(severity, 1.02, 1.6))


def line(length: float, angle: float) -> tuple[Segment, ...]:
    """A straight trail of `length` px about where the star should be."""
    dc, dr = 0.5 * length * math.cos(angle), 0.5 * length * math.sin(angle)
    return (((-dc, -dr), (dc, dr), 1.0),)
