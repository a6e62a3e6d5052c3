"""The table of defects: what each is called, which reason it has, how common it is and what it changes.

A defect changes the conditions (before anything is drawn), the light that falls on the focal plane, or the readout of
single CCDs. Severity runs from 0 (invisible) over 0.15 (barely visible) to 1 (gross).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcqa.simulate import condition_defects, light, readout
from hpcqa.simulate.condition_defects import ConditionChange
from hpcqa.simulate.light import LightField
from hpcqa.simulate.readout import ReadoutChange
from hpcqa.streams import stream


@dataclass(frozen=True)
class Defect:
    """One defect of one exposure. `ccds` are those it touches (empty: all); `local` ones exist nowhere else."""

    kind: str
    severity: float
    ccds: tuple[int, ...] = ()
    local: bool = False
    key: int = 0

    @property
    def reason(self) -> str:
        return KINDS[self.kind].reason

    def stream(self, seed: int, expnum: int, purpose: str, *more: int) -> np.random.Generator:
        """Random numbers for one purpose: the same on every CCD unless `more` tells them apart."""
        return stream(seed, "simulate", expnum, "defect", self.key, purpose, *more)


@dataclass(frozen=True)
class Kind:
    """One way to be bad. `comment` is what a reviewer would write; `local_share` are touching one or two CCDs only."""

    reason: str
    comment: str
    weight: float = 1.0
    local_share: float = 0.0
    bands: tuple[str, ...] = ()
    conditions: ConditionChange | None = None
    light: LightField | None = None
    readout: ReadoutChange | None = None
    # Readout defects of whole exposures that touch one group of electronics only.
    by_backplane: bool = False


KINDS: dict[str, Kind] = {
    "wcs_failure": Kind("bad_wcs", "no astrometric solution", conditions=condition_defects.wcs_failure),
    "twilight": Kind("saturated", "twilight", conditions=condition_defects.twilight, light=light.twilight),
    "clouds": Kind("clouds", "clouds", 1.5, conditions=condition_defects.clouds, light=light.clouds),
    "seeing": Kind("bad_seeing", "seeing", conditions=condition_defects.seeing),
    "trailed": Kind("psf", "trailed", 1.2, conditions=condition_defects.trailed),
    "shallow": Kind("nonoptimal", "expfactor", conditions=condition_defects.shallow),
    "ghost_disc": Kind("ghost", "ghost", 1.0, 0.5, light=light.ghost_disc),
    "ghost_arc": Kind("ghost", "scattered light", 0.7, 0.5, light=light.ghost_arc),
    "few_sources": Kind("nobjects", "few objects", 0.6, conditions=condition_defects.few_sources),
    "many_sources": Kind("nobjects", "too many objects", 0.4, conditions=condition_defects.many_sources),
    "dead_ccd": Kind("bad_ccd", "CCD dead", 0.35, 1.0, readout=readout.dead),
    "lightbulb": Kind("bad_ccd", "CCD lightbulb", 0.35, 1.0, light=light.lightbulb, readout=readout.glow_charge),
    "gain_step": Kind("bad_ccd", "CCD gain", 0.3, 1.0, readout=readout.wrong_level),
    "stripes": Kind("noise", "stripes", 0.5, 0.5, readout=readout.stripes),
    "hatch": Kind("noise", "hatched lines", 0.3, 0.4, readout=readout.hatch),
    "backplane": Kind("noise", "Backplane", 0.3, 0.0, readout=readout.hatch, by_backplane=True),
    "read_noise": Kind("noise", "high noise", 0.3, 0.5, readout=readout.read_noise),
    "fringes": Kind("fringing", "fringing", bands=("z", "Y"), light=light.fringes),
    "canopus": Kind(
        "bright_star", "bright star in field", conditions=condition_defects.canopus, light=light.reflections
    ),
    "quilt": Kind("wonky", "quilted sky", 0.5, light=light.quilt),
    "waves": Kind("wonky", "wavy sky", 0.5, light=light.waves),
    "double": Kind("telescope_moving", "double images", 0.6, conditions=condition_defects.double),
    "slew": Kind("telescope_moving", "telescope moved", 0.4, conditions=condition_defects.slew),
    "donuts": Kind("out_of_focus", "donuts", 0.7, conditions=condition_defects.donuts),
    "lopsided": Kind("out_of_focus", "out of focus (lopsided)", 0.4, conditions=condition_defects.lopsided),
    "airplane": Kind("streak", "airplane", 0.8, 0.4, light=light.airplane),
    "pupil": Kind("pupil", "pupil ghost", light=light.pupil),
    "illumination": Kind("illumination", "illumination correction", 0.8, light=light.illumination),
    "amplifier": Kind("amplifier", "amplifier offset", 1.0, 0.6, readout=readout.amplifier_offset),
    "edge_glow": Kind("edge_glow", "glowing edges", 0.9, 0.4, light=light.edge_glow),
    "vsub": Kind("processing", "VSUB off", 0.3, conditions=condition_defects.vsub_off, readout=readout.vsub_off),
    "rings": Kind("processing", "ring pattern", 0.4, light=light.rings),
    "scrapers": Kind("processing", "sky scrapers", 0.3, 0.3, readout=readout.scrapers),
}


def kinds_in_turn(number: int, rng: np.random.Generator) -> list[str]:
    """Kinds for so many exposures: each as often as its weight says, rounded at random, in random order."""
    names = list(KINDS)
    weights = np.array([KINDS[name].weight for name in names])
    # Systematic sampling: no kind is missing by chance where its expected number is one or more.
    ends = np.cumsum(weights / weights.sum()) * number
    points = np.arange(number) + rng.random()
    chosen = [names[min(int(place), len(names) - 1)] for place in np.searchsorted(ends, points)]
    return [chosen[place] for place in rng.permutation(number)]
