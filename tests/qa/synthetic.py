"""A small synthetic survey of embeddings with known defects, for the tests of the classifier."""

from __future__ import annotations

import numpy as np

from hpcqa.qa.blocks import NumberScale, Raw
from hpcqa.qa.learn import BAD, GOOD, UNKNOWN, Examples
from hpcqa.reasons import BIT

NUMBERS = 6
WIDTH = 12
KINDS = ("ghost", "clouds", "psf", "noise")


def survey(seed: int = 0, exposures: int = 120, ccds: int = 6, nights: int = 8, bad: float = 0.4) -> Examples:
    """Good exposures scatter around zero; each kind of defect shifts features of its own, in all CCDs or in one."""
    rng = np.random.default_rng(seed)
    expnum = 1000 + np.arange(exposures, dtype=np.int64)
    night = (20250101 + np.sort(rng.integers(0, nights, exposures))).astype(np.int32)
    kind = np.where(rng.random(exposures) < bad, rng.integers(0, len(KINDS), exposures), -1)
    local = (kind >= 0) & (rng.random(exposures) < 0.3)
    weather = rng.normal(size=(exposures, 1, NUMBERS)) * 0.7
    numbers = rng.normal(size=(exposures, ccds, NUMBERS)) * 0.7 + weather
    views = {name: rng.normal(size=(exposures, ccds, WIDTH)) for name in ("context", "background", "detail")}
    hit = np.zeros((exposures, ccds), bool)
    for row in np.flatnonzero(kind >= 0):
        where = rng.integers(0, ccds, 1) if local[row] else np.arange(ccds)
        hit[row, where] = True
        numbers[row, where, kind[row]] += 6.0
        views["background"][row, where, 2 * kind[row]] += 8.0
    starts = np.arange(exposures, dtype=np.int64) * ccds
    blocks = {"numbers": numbers, **views}
    ccd = {name: values.reshape(exposures * ccds, -1).astype(np.float32) for name, values in blocks.items()}
    focal = {"focal_plane": rng.normal(size=(exposures, WIDTH)).astype(np.float32)}
    reasons = np.array([0 if number < 0 else BIT[KINDS[number]] for number in kind], np.int64)
    whole = np.where(kind < 0, GOOD, np.where(local, UNKNOWN, BAD)).astype(np.int8)
    ccd_label = np.where(hit & local[:, None], BAD, UNKNOWN).astype(np.int8).ravel()
    return Examples(
        Raw(starts, ccd, focal),
        expnum,
        night,
        np.tile(np.arange(1, ccds + 1, dtype=np.int32), exposures),
        whole,
        reasons,
        ccd_label,
        np.where(ccd_label == BAD, np.repeat(reasons, ccds), 0),
    )


def number_scale(numbers: int = NUMBERS) -> NumberScale:
    """One pattern for every CCD: numbers already are in units of their scatter."""
    return NumberScale(
        np.array([-1], np.int32), np.array(["g"], object), np.zeros((1, numbers), "f4"), np.ones((1, numbers), "f4")
    )
