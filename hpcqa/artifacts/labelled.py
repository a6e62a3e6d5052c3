"""From statements to labels: what all lists together say of an exposure or a CCD.

The LABELS artifact keeps one row a statement. Here they are merged: one bad outweighs any good (nobody calls an
exposure bad for nothing), and a contradiction is flagged. What no list names is absent: unknown is not good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hpcqa.reasons import BIT


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
