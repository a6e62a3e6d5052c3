"""Minicam: a small synthetic camera for simulation and tests, with the habits of a real one.

Fourteen CCDs of 512 rows and 256 columns in six rows of 2, 2, 3, 3, 2, 2 on a nearly square focal plane; `x` grows with
the row number of the images, `y` against the column number, as in DECam. Names and numbers run differently on purpose.
"""

from __future__ import annotations

from typing import ClassVar

from hpcqa.instruments.base import Ccd, Instrument
from hpcqa.instruments.community import CommunityCamera

_SHAPE = (512, 256)
_SCALE = 0.263
_GAPS = (12, 16)  # pixels between CCDs along x and along y
# From the top of the focal plane down: the names of each row from left to right, and their backplanes.
_LAYOUT: tuple[tuple[tuple[str, ...], int], ...] = (
    (("S6", "S7"), 1),
    (("S4", "S5"), 1),
    (("S1", "S2", "S3"), 2),
    (("N1", "N2", "N3"), 3),
    (("N4", "N5"), 4),
    (("N6", "N7"), 4),
)


def _ccds() -> tuple[Ccd, ...]:
    step_x = (_SHAPE[0] + _GAPS[0]) * _SCALE / 3600
    step_y = (_SHAPE[1] + _GAPS[1]) * _SCALE / 3600
    ccds: list[Ccd] = []
    for line, (names, backplane) in enumerate(_LAYOUT):
        for place, ccdname in enumerate(names):
            x = (place - (len(names) - 1) / 2) * step_x
            y = ((len(_LAYOUT) - 1) / 2 - line) * step_y
            ccds.append(Ccd(len(ccds) + 1, ccdname, x, y, backplane))
    return tuple(ccds)


class Minicam(CommunityCamera):
    name = "minicam"
    prefix = "mc4"
    cameras: tuple[str, ...] = ("minicam",)
    ccds = _ccds()
    shape = _SHAPE
    pixel_scale = _SCALE
    bands: tuple[str, ...] = ("u", "g", "r", "i", "z", "Y")
    saturation = 40000.0
    gain = 4.0
    read_noise = 7.0
    # As dark as DECam's sky, so that simulated images have the noise of real ones.
    sky_rates: ClassVar[dict[str, float]] = {"u": 0.4, "g": 1.3, "r": 3.8, "i": 9.0, "z": 22.0, "Y": 20.0}


INSTRUMENT: Instrument = Minicam()
