"""Which CCDs a defect touches: those whose readout it changes, or where its light is not far below its brightest."""

from __future__ import annotations

import dataclasses

import numpy as np

from hpcqa.instruments.base import Ccd
from hpcqa.simulate.defects import KINDS, Defect
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.light import Where

# A CCD is touched where the light's range is over this share of the range on the CCD that is touched most.
SHARE = 0.2
GRID = 24


def affected_ccds(seed: int, expnum: int, defect: Defect, plane: FocalPlane, band: str) -> Defect:
    """The defect with its CCDs filled in; empty where it touches all."""
    kind = KINDS[defect.kind]
    if defect.local:
        return defect
    ccds = plane.instrument.ccds
    touched = tuple(ccd.ccdnum for ccd in ccds)
    if kind.by_backplane:
        touched = _one_backplane(plane, defect.stream(seed, expnum, "backplane"))
    elif kind.light is not None and kind.conditions is None:
        peaks = np.array([_strength(seed, expnum, defect, plane, ccd, band) for ccd in ccds])
        touched = tuple(ccd.ccdnum for ccd, peak in zip(ccds, peaks, strict=True) if peak >= SHARE * peaks.max())
    return dataclasses.replace(defect, ccds=() if len(touched) == len(ccds) else touched)


def _one_backplane(plane: FocalPlane, rng: np.random.Generator) -> tuple[int, ...]:
    groups = sorted({ccd.backplane for ccd in plane.instrument.ccds if ccd.backplane > 0})
    chosen = int(rng.choice(groups)) if groups else 0
    return tuple(ccd.ccdnum for ccd in plane.instrument.ccds if ccd.backplane == chosen)


def _strength(seed: int, expnum: int, defect: Defect, plane: FocalPlane, ccd: Ccd, band: str) -> float:
    field = KINDS[defect.kind].light
    assert field is not None
    rows, cols = plane.instrument.shape
    steps = np.linspace(0, 1, GRID)
    x, y = plane.coordinates(ccd, steps[:, None] * (rows - 1), steps[None, :] * (cols - 1))
    where = Where(plane, ccd, x, y, band, seed, max(rows, cols) / GRID * plane.pixel, defect.local)
    light = field(where, defect.severity, defect.stream(seed, expnum, "light"))
    return float(np.abs(light).max())
