"""What is drawn for each exposure before any pixel is made: when, where, how good the night, and which defects.

Pure functions of the configuration: every process that asks for an exposure's plan gets the same one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np

from hpcqa.config import Config
from hpcqa.instruments import get
from hpcqa.simulate.conditions import Conditions, band_of_sky
from hpcqa.simulate.defects import KINDS, Defect, kinds_in_turn
from hpcqa.simulate.footprint import affected_ccds
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.streams import stream

MJD_1970 = 40587.0
FIRST_EXPNUM = 1_300_000
EXPNUMS_PER_NIGHT = 1_000
# Share of bad exposures that have a second defect.
SECOND_DEFECT_SHARE = 0.08
BAND_WEIGHTS = {"u": 0.3, "g": 2.5, "r": 2.5, "i": 2.0, "z": 2.0, "Y": 1.0}


@dataclass(frozen=True)
class ExposurePlan:
    """One exposure. Angles in degrees; `conditions` already hold what the defects do to them."""

    expnum: int
    night: str  # date of the evening, YYYYMMDD
    mjd_obs: float
    band: str
    airmass: float
    ra: float
    dec: float
    conditions: Conditions
    defects: tuple[Defect, ...]

    @property
    def bad(self) -> bool:
        return bool(self.defects)

    @property
    def started(self) -> dt.datetime:
        """Start of the exposure, UTC."""
        return dt.datetime(1970, 1, 1) + dt.timedelta(days=self.mjd_obs - MJD_1970)


def plan_survey(config: Config) -> list[ExposurePlan]:
    """Every exposure of the survey, ordered by number."""
    total = config.simulate.exposures
    rng = stream(config.seed, "simulate", "survey")
    num_bad = round(config.simulate.bad_fraction * total)
    kinds = dict(zip(sorted(rng.permutation(total)[:num_bad].tolist()), kinds_in_turn(num_bad, rng), strict=True))
    return [plan_exposure(config, index, kinds.get(index, "")) for index in range(total)]


def plan_exposure(config: Config, index: int, kind: str, severity: float | None = None) -> ExposurePlan:
    """The plan of one exposure; `kind` is its defect's name in KINDS, empty for a good one.

    With `severity` the defect has just that one, and is alone.
    """
    nights = min(config.simulate.nights, config.simulate.exposures)
    per_night = -(-config.simulate.exposures // nights)
    night, place = divmod(index, per_night)
    expnum = FIRST_EXPNUM + max(EXPNUMS_PER_NIGHT, per_night) * night + place
    rng = stream(config.seed, "simulate", expnum)
    plane = FocalPlane(get(config.instrument.name))
    evening = dt.date.fromisoformat(config.simulate.start) + dt.timedelta(days=night)
    # The night goes on from about 0.5 to 9 h UTC of the next day.
    hours = 0.6 + 8.4 * (place + rng.uniform(0.3, 0.7)) / per_night
    mjd_obs = (evening - dt.date(1970, 1, 1)).days + MJD_1970 + 1 + hours / 24
    band = _draw_band(plane, kind, rng)
    airmass = float(1 + rng.exponential(0.2))
    conditions = Conditions.draw(
        stream(config.seed, "simulate", "night", night), rng, plane.instrument, band, min(airmass, 2.2)
    )
    defects = _draw_defects(config, plane, kind, band, rng)
    if severity is not None:
        defects = [replace(defect, severity=severity) for defect in defects[:1]]
    for defect in defects:
        change = KINDS[defect.kind].conditions
        if change is not None:
            conditions = change(conditions, defect.severity, defect.stream(config.seed, expnum, "conditions"), plane)
    touching = tuple(affected_ccds(config.seed, expnum, defect, plane, band) for defect in defects)
    ra, dec = float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-0.9, 0.5))))
    return ExposurePlan(expnum, f"{evening:%Y%m%d}", mjd_obs, band, min(airmass, 2.2), ra, dec, conditions, touching)


def _draw_band(plane: FocalPlane, kind: str, rng: np.random.Generator) -> str:
    wanted = KINDS[kind].bands if kind else ()
    bands = [band for band in plane.instrument.bands if band in (wanted or BAND_WEIGHTS)]
    bands = [band for band in bands if band_of_sky(plane.instrument, band)] or [plane.instrument.bands[0]]
    weights = np.array([BAND_WEIGHTS.get(band, 1.0) for band in bands])
    return str(rng.choice(bands, p=weights / weights.sum()))


def _draw_defects(config: Config, plane: FocalPlane, kind: str, band: str, rng: np.random.Generator) -> list[Defect]:
    if not kind:
        return []
    chosen = [kind]
    others = [name for name, other in KINDS.items() if name != kind and (not other.bands or band in other.bands)]
    if rng.random() < SECOND_DEFECT_SHARE:
        chosen.append(str(rng.choice(others)))
    return [_draw_defect(config, plane, name, key, rng) for key, name in enumerate(chosen)]


def _draw_defect(config: Config, plane: FocalPlane, name: str, key: int, rng: np.random.Generator) -> Defect:
    low = config.simulate.min_severity
    severity = round(float(low + (1 - low) * rng.random()), 3)
    local = bool(rng.random() < KINDS[name].local_share)
    ccds: tuple[int, ...] = ()
    if local:
        numbers = [ccd.ccdnum for ccd in plane.instrument.ccds]
        ccds = tuple(sorted(int(number) for number in rng.choice(numbers, size=int(rng.integers(1, 3)), replace=False)))
    return Defect(name, severity, ccds, local, key)
