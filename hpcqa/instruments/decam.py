"""DECam, the Dark Energy Camera on the Blanco 4-m telescope: 62 CCDs, and what must be known of them.

On the focal plane `x` grows to the east and `y` to the north; the images' rows run along +x and their columns against
y (CD1_2 > 0, CD2_1 < 0 in every Community Pipeline header seen). Sources are named beside each fact.
"""

from __future__ import annotations

import math
from typing import ClassVar

from hpcqa.instruments.base import Ccd, CcdContext, Instrument, Region
from hpcqa.instruments.community import CommunityCamera, parse_version

# A chip with its gap is 2048+201 by 4096+153 pixels of 15 um. The two steps in degrees are fitted to the mean centres
# of the chips in Legacy Surveys images, and reproduce them to 0.002 degrees (the optics' distortion).
_STEP_X, _STEP_Y = 0.3106, 0.1644
# CCDNUM 1 to 62 from north to south and from west to east: the CCDs' names in each row.
_ROWS: tuple[tuple[str, ...], ...] = (
    ("S29", "S30", "S31"),
    ("S25", "S26", "S27", "S28"),
    ("S20", "S21", "S22", "S23", "S24"),
    ("S14", "S15", "S16", "S17", "S18", "S19"),
    ("S8", "S9", "S10", "S11", "S12", "S13"),
    ("S1", "S2", "S3", "S4", "S5", "S6", "S7"),
    ("N1", "N2", "N3", "N4", "N5", "N6", "N7"),
    ("N8", "N9", "N10", "N11", "N12", "N13"),
    ("N14", "N15", "N16", "N17", "N18", "N19"),
    ("N20", "N21", "N22", "N23", "N24"),
    ("N25", "N26", "N27", "N28"),
    ("N29", "N30", "N31"),
)
# The noise list of DELVE names these chips together as backplane 4; header FPA of S6 agrees ('DECAM_BKP4').
_BACKPLANE_4 = frozenset({28, 29, 30, 31, 35, 36, 37, 38})

# Damaged on 2012-11-07; its last good flats are near this exposure (Fermilab's DECam notes).
N30_LAST_GOOD = 148416
# Not functional from November 2013 to the end of December 2016 (NOIRLab's DECam page: "2014-2016"; the exclude lists of
# DELVE still name it for exposures 603667-605094 of 2016-12-22 to -28). The first date is known to the month only.
S30_DEAD_MJD = (56618.0, 57751.0)
S30_UNRELIABLE = (603667, 605094)
# A light-emitting defect ("lightbulb") from 2017-11-10 on, cured by new clock voltages (DELVE's ccd46-y05).
N15_LIGHTBULB = (694885, 703268)
# DELVE exclude lists, ccd41-y06 (August to October 2018).
N10_BAD = ((767395, 769284), (771163, 774555), (785517, 785524))
# Early r-band images glow along the edges that face the middle of the focal plane's long sides (legacypipe).
GLOW_LAST, GLOW_WIDTH = 298250, 100
# Amplifier B of S7 changes its gain: only the first 1023 columns are of use (legacypipe, DES).
S7_GOOD_COLUMNS = 1023
# Bad columns of S17 below row 3888 that the masks miss (Legacy Surveys).
S17_BAD = Region(0, 3888, 537, 544)
# S19 saturates earlier than its header says until V4.9.0 put that right (legacypipe).
S19_SATURATION, S19_FIXED = 46000.0, (4, 9, 0)


def _ccds() -> tuple[Ccd, ...]:
    ccds: list[Ccd] = []
    for line, names in enumerate(_ROWS):
        for place, ccdname in enumerate(names):
            x = (place - (len(names) - 1) / 2) * _STEP_X
            y = ((len(_ROWS) - 1) / 2 - line) * _STEP_Y
            ccdnum = len(ccds) + 1
            ccds.append(Ccd(ccdnum, ccdname, x, y, 4 if ccdnum in _BACKPLANE_4 else 0))
    return tuple(ccds)


_CCDS = _ccds()
_NAMES = {ccd.ccdnum: ccd.ccdname for ccd in _CCDS}
_WINDOWS = {"N15": (N15_LIGHTBULB,), "N10": N10_BAD, "S30": (S30_UNRELIABLE,)}


class Decam(CommunityCamera):
    name = "decam"
    prefix = "c4d"
    cameras: tuple[str, ...] = ("decam",)
    ccds = _CCDS
    shape = (4094, 2046)
    pixel_scale = 0.2637
    bands: tuple[str, ...] = (
        *("u", "g", "r", "i", "z", "Y", "VR"),
        *("N395", "N419", "N501", "N540", "N662", "N673", "N708", "N964"),
        *("M411", "M438", "M464", "M490", "M517"),
    )
    saturation = 44000.0
    gain = 4.0
    read_noise = 6.5
    # g, r, z: what twenty Community Pipeline images show on dark nights; the others are estimates.
    sky_rates: ClassVar[dict[str, float]] = {
        **{"u": 0.4, "g": 1.3, "r": 3.8, "i": 9.0, "z": 22.0, "Y": 20.0, "VR": 6.0},
    }

    def bad_regions(self, context: CcdContext, shape: tuple[int, int]) -> list[Region]:
        """S7's right half, early glowing edges and S17's columns; a cut-out has lost its place, so it gets none."""
        rows, cols = shape
        if abs(rows - self.shape[0]) > 2 or abs(cols - self.shape[1]) > 2:
            return []
        ccdname = _NAMES.get(context.ccdnum, "")
        regions = []
        if ccdname == "S7":
            regions.append(Region(0, rows, S7_GOOD_COLUMNS, cols))
        if ccdname == "S17":
            regions.append(S17_BAD)
        if ccdname and context.band == "r" and 0 < context.expnum <= GLOW_LAST:
            first = 0 if ccdname.startswith("N") else rows - GLOW_WIDTH
            regions.append(Region(first, first + GLOW_WIDTH, 0, cols))
        return regions

    def is_dead(self, context: CcdContext) -> str:
        ccdname = _NAMES.get(context.ccdnum, "")
        if ccdname == "N30" and context.expnum > N30_LAST_GOOD:
            return "N30 was damaged on 2012-11-07"
        if ccdname == "S30" and S30_DEAD_MJD[0] <= context.mjd_obs < S30_DEAD_MJD[1]:
            return "S30 did not work from November 2013 to December 2016"
        for first, last in _WINDOWS.get(ccdname, ()):
            if first <= context.expnum <= last:
                return f"{ccdname} is known bad for exposures {first} to {last}"
        return ""

    def saturation_of(self, context: CcdContext) -> float:
        early = (parse_version(context.plver) or S19_FIXED) < S19_FIXED
        return S19_SATURATION if early and _NAMES.get(context.ccdnum) == "S19" else math.inf


INSTRUMENT: Instrument = Decam()
