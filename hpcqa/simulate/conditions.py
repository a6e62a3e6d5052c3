"""How an exposure is taken: atmosphere, optics, sky and what is in the field. Good exposures vary as real ones do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Instrument

# Zero points for 1 ADU/s, legacypipe's psfzpt_cuts.py; unlisted bands are near the redder ones.
ZERO_POINTS = {"u": 23.20, "g": 25.08, "r": 25.29, "i": 25.26, "z": 24.92, "Y": 23.87}
EXPTIMES = {
    "u": (90, 120, 200),
    "g": (60, 90, 120),
    "r": (50, 75, 90),
    "i": (60, 90),
    "z": (75, 90, 110),
    "Y": (75, 90),
}
# Sky at full moon over dark sky.
MOON = {"u": 5.0, "g": 2.5, "r": 1.2, "i": 0.5, "z": 0.3, "Y": 0.2}

# From and to (columns, rows, in px) in equal time, and the share of the flux.
Segment = tuple[tuple[float, float], tuple[float, float], float]
STILL: Segment = ((0.0, 0.0), (0.0, 0.0), 1.0)


@dataclass(frozen=True)
class Conditions:
    """What the renderer needs to know of an exposure as a whole."""

    exptime: float  # s
    zero_point: float  # mag for 1 ADU/s on a clear night at this airmass
    transparency: float  # 1 clear
    sky_rate: float  # ADU/s/pixel
    fwhm: float  # arcsec at the centre
    beta: float  # of the Moffat profile; 0 for Kolmogorov
    shear: tuple[float, float]  # of the whole field
    donut: float = 0.0  # px, outer diameter of the out-of-focus pupil
    donut_tilt: tuple[float, float] = (0.0, 0.0)  # its relative change across the field
    lopsided: float = 0.0  # offset of the hole in units of the radius
    trefoil: float = 0.0
    path: tuple[Segment, ...] = (STILL,)  # where the telescope pointed while the shutter was open
    crowding: float = 1.0  # density of stars over the usual
    sources: float = 1.0  # share of the sources that are there (failed subtraction takes them away)
    patchy: float = 0.0  # scatter of the extinction across the field, mag
    gradient: tuple[float, float] = (0.0, 0.0)  # of the sky across the focal plane, relative
    bright_star: float = 99.0  # mag of the brightest star in the field
    bright_place: tuple[float, float] = (0.0, 0.0)  # of that star, in radius units of the focal plane
    nebula: float = 0.0  # peak over sky
    galaxy: float = 0.0  # peak over sky
    num_satellites: int = 0
    moon: float = 0.0
    wcs: str = "Successful"
    scampflg: int = 0
    guider: int = 1
    vsub: bool = True
    telstat: str = "Track"
    focus_error: float = 0.0  # um, as the telescope reports
    guide_error: float = 0.03  # arcsec, as the guider reports

    @property
    def sky(self) -> float:
        """Sky in ADU a pixel."""
        return self.sky_rate * self.exptime

    @property
    def scale(self) -> float:
        """ADU of a source of magnitude 0."""
        return self.transparency * self.exptime * 10 ** (0.4 * self.zero_point)

    @staticmethod
    def draw(
        night: np.random.Generator, rng: np.random.Generator, instrument: Instrument, band: str, airmass: float
    ) -> Conditions:
        """Conditions of a good exposure; `night` gives what a night's exposures share."""
        phase, night_seeing = night.random(), night.lognormal(math.log(0.95), 0.15)
        night_clear = 1 - 0.12 * night.random() ** 3
        moon = phase**2 * float(rng.uniform(0.3, 1.0)) * bool(rng.random() < 0.7)
        seeing = float(np.clip(night_seeing * airmass**0.6 * rng.lognormal(0, 0.1), 0.7, 1.62))
        ellipticity, angle = abs(rng.normal(0, 0.018)), rng.uniform(0, math.pi)
        slope, toward = 0.006 * rng.random() + 0.02 * moon, rng.uniform(0, 2 * math.pi)
        bright, nebula, galaxy = rng.random(), rng.random(), rng.random()
        return Conditions(
            exptime=float(rng.choice(EXPTIMES.get(band, (60, 90)))),
            zero_point=ZERO_POINTS.get(band, 24.8) - 0.1 * (airmass - 1) + float(rng.normal(0, 0.03)),
            transparency=float(np.clip(night_clear * (1 - abs(rng.normal(0, 0.02))), 0.8, 1)),
            sky_rate=band_of_sky(instrument, band)
            * airmass**0.5
            * (1 + MOON.get(band, 0.5) * moon)
            * float(rng.lognormal(0, 0.08)),
            fwhm=seeing,
            beta=float(rng.uniform(2.8, 4.5)) if rng.random() < 0.7 else 0.0,
            shear=(ellipticity * math.cos(2 * angle), ellipticity * math.sin(2 * angle)),
            crowding=float(rng.lognormal(0, 0.3) * (rng.uniform(3, 8) if rng.random() < 0.07 else 1)),
            gradient=(slope * math.cos(toward), slope * math.sin(toward)),
            bright_star=float(rng.uniform(7, 11.5)) if bright < 0.3 else 99.0,
            bright_place=(float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6))),
            nebula=float(rng.uniform(0.02, 0.12)) if nebula < 0.06 else 0.0,
            galaxy=float(rng.uniform(0.1, 1.0)) if galaxy < 0.08 else 0.0,
            num_satellites=int(rng.poisson(0.25)),
            moon=moon,
            # V4.8.2a wrote Failed where SCAMP said 0: a trap that real data has, so it is here too.
            wcs="Failed" if rng.random() < 0.04 else ("Successful" if rng.random() < 0.8 else "Success"),
            guider=0 if rng.random() < 0.03 else 1,
            focus_error=float(rng.normal(0, 25)),
            guide_error=float(rng.lognormal(math.log(0.03), 0.5)),
        )


def band_of_sky(instrument: Instrument, band: str) -> float:
    """Dark-sky level in ADU/s/pixel; 0 where the camera's module knows none."""
    rate = instrument.sky_rate(band)
    return rate if math.isfinite(rate) else 0.0
