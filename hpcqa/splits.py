"""Splits by night, never by CCD: CCDs of one exposure, and exposures of one night, share weather, focus and faults.

Which side a night falls on depends on the night and the seed alone, so that two stages that see different exposures of
a night agree. Nights are spread evenly: a night's day number times an irrational number, modulo one, so that twelve
nights at 30 % give three or four held out, where hashing would at times give none.
"""

from __future__ import annotations

import math

import numpy as np

from hpcqa.streams import stream_seed

# Two unrelated irrational steps, so that folds are spread evenly over the nights that are not held out.
_GOLDEN = (math.sqrt(5) - 1) / 2
_SILVER = math.sqrt(2) - 1


def _place(night: np.ndarray, step: float, seed: int, purpose: str) -> np.ndarray:
    """Where each night (YYYYMMDD) lies in [0, 1): float64, same shape."""
    night = np.asarray(night, np.int64)
    year, month, day = night // 10000, night // 100 % 100, night % 100
    # Days since an early March 1st: months run on without leap-day cases; odd values such as 0 still give a number.
    year, month = year - (month < 3), (month + 9) % 12
    number = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day
    offset = stream_seed(seed, "split", purpose) / 2.0**63
    return np.asarray((number * step + offset) % 1.0)


def holdout(night: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Which rows are kept out of the fit: bool (N,), the same for all rows of a night.

    Args:
        night: int (N,), local night as YYYYMMDD.
        seed: the run's seed.
        share: of the nights to hold out, 0 to 1.
    """
    return np.asarray(_place(night, _GOLDEN, seed, "holdout") < share)


def night_folds(night: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The cross-validation fold of each row: int64 (N,) in [0, folds), the same for all rows of a night.

    With few nights a fold may be empty; callers skip such folds.
    """
    return np.minimum((_place(night, _SILVER, seed, "folds") * folds).astype(np.int64), folds - 1)
