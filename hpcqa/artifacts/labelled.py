"""From statements to labels: what all lists together say of an exposure or a CCD.

The LABELS artifact keeps one row a statement. Here they are merged: one bad outweighs any good (nobody calls an
exposure bad for nothing), and a contradiction is flagged. What no list names is absent: unknown is not good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hpcqa.reasons import BIT

WHOLE = -1


class Merged(NamedTuple):
    """One row for each (expnum, ccdnum) that is labelled, sorted; ccdnum -1 is the whole exposure. Arrays (N,)."""

    expnum: np.ndarray
    ccdnum: np.ndarray
    bad: np.ndarray
    reasons: np.ndarray
    conflict: np.ndarray
    num_bad: np.ndarray
    num_good: np.ndarray
    severity: np.ndarray


class ExposureLabels(NamedTuple):
    """One row for each labelled exposure, sorted. Arrays (N,): int64, bool, int64, bool."""

    expnum: np.ndarray
    bad: np.ndarray
    reasons: np.ndarray
    conflict: np.ndarray


def merge(columns: Mapping[str, np.ndarray]) -> Merged:
    """Merge the statements on each exposure and on each CCD.

    Args:
        columns: of the LABELS artifact: at least expnum, ccdnum, bad, reasons; severity if there is one.

    Returns:
        `reasons` joins those of all bad statements; `other` only where there is no better one. `severity` is the
        largest, NaN where unknown. `conflict` where there are good and bad statements.
    """
    expnum, ccdnum = np.asarray(columns["expnum"], np.int64), np.asarray(columns["ccdnum"], np.int64)
    bad = np.asarray(columns["bad"], bool)
    order = np.lexsort((ccdnum, expnum))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(expnum[order]) != 0) | (np.diff(ccdnum[order]) != 0)
    starts = np.flatnonzero(first)
    if not len(starts):
        empty = np.empty(0, np.int64)
        none = np.empty(0, bool)
        return Merged(empty, empty.astype(np.int32), none, empty, none, empty, empty, np.empty(0, np.float32))
    reasons = np.where(bad, np.asarray(columns["reasons"], np.int64), 0)[order]
    num_bad = np.add.reduceat(bad[order].astype(np.int64), starts)
    num_all = np.diff(np.append(starts, len(order)))
    severity = np.asarray(columns.get("severity", np.full(len(order), np.nan)), np.float32)[order]
    return Merged(
        expnum=expnum[order][starts],
        ccdnum=ccdnum[order][starts].astype(np.int32),
        bad=num_bad > 0,
        reasons=without_other(np.bitwise_or.reduceat(reasons, starts)),
        conflict=(num_bad > 0) & (num_bad < num_all),
        num_bad=num_bad,
        num_good=num_all - num_bad,
        severity=np.fmax.reduceat(severity, starts),
    )


def without_other(reasons: np.ndarray) -> np.ndarray:
    """Reasons with `other` taken away where a better one is known."""
    rest = reasons & ~np.int64(BIT["other"])
    return np.where(rest != 0, rest, reasons)


def exposure_labels(columns: Mapping[str, np.ndarray], *, with_ccds: bool = True) -> ExposureLabels:
    """What the lists say of each exposure as a whole.

    Args:
        columns: of the LABELS artifact.
        with_ccds: whether an exposure of which only CCDs are called bad is bad, with their reasons. Good CCDs never
            make an exposure good, and without this flag an exposure known by its CCDs only is left out.
    """
    merged = merge(columns)
    whole = merged.ccdnum == WHOLE
    use = whole | (merged.bad & with_ccds)
    expnum, index = np.unique(merged.expnum[use], return_inverse=True)
    bad = np.zeros(len(expnum), bool)
    conflict = np.zeros(len(expnum), bool)
    reasons = np.zeros(len(expnum), np.int64)
    np.logical_or.at(bad, index, merged.bad[use])
    np.bitwise_or.at(reasons, index, merged.reasons[use])
    np.logical_or.at(conflict, index, merged.conflict[use] & whole[use])
    return ExposureLabels(expnum, bad, without_other(reasons), conflict)


def ccd_labels(columns: Mapping[str, np.ndarray]) -> Merged:
    """What the lists say of single CCDs by themselves."""
    merged = merge(columns)
    single = merged.ccdnum != WHOLE
    return Merged(*(values[single] for values in merged))
