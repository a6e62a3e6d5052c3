from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.artifacts.labelled import merge
from hpcqa.reasons import BIT


def columns(rows):
    """From (expnum, ccdnum, reasons); 0 reasons is good."""
    return {
        "expnum": np.array([row[0] for row in rows], np.int64),
        "ccdnum": np.array([row[1] for row in rows], np.int32),
        "bad": np.array([row[2] > 0 for row in rows], bool),
        "reasons": np.array([row[2] for row in rows], np.int64),
        "severity": np.full(len(rows), np.nan, np.float32),
    }


GHOST, PSF, OTHER = BIT["ghost"], BIT["psf"], BIT["other"]


def test_bad_wins_and_the_conflict_is_flagged():
    merged = merge(columns([(7, -1, 0), (7, -1, GHOST), (8, -1, 0), (7, -1, PSF)]))
    assert merged.expnum.tolist() == [7, 8]
    assert merged.bad.tolist() == [True, False]
    assert merged.reasons.tolist() == [GHOST | PSF, 0]
    assert merged.conflict.tolist() == [True, False]
    assert (merged.num_bad.tolist(), merged.num_good.tolist()) == ([2, 0], [1, 1])


def test_other_only_where_nothing_better_is_known():
    merged = merge(columns([(1, -1, OTHER), (1, -1, PSF), (2, -1, OTHER)]))
    assert merged.reasons.tolist() == [PSF, OTHER]


def test_nothing_labelled():
    assert len(merge(columns([])).expnum) == 0


def test_severity_is_the_largest_known():
    rows = columns([(1, -1, PSF), (1, -1, PSF), (2, -1, PSF)])
    rows["severity"] = np.array([np.nan, 0.5, np.nan], np.float32)
    severity = merge(rows).severity
    assert severity[0] == 0.5
    assert np.isnan(severity[1])


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(-1, 2), st.sampled_from([0, GHOST, PSF, OTHER])), max_size=25))
def test_merging_loses_no_bad_statement_whatever_the_order(rows):
    merged = merge(columns(rows))
    again = merge(columns(rows[::-1]))
    for first, second in zip(merged, again, strict=True):
        np.testing.assert_array_equal(first, second)
    for expnum, ccdnum, bad, num in zip(merged.expnum, merged.ccdnum, merged.bad, merged.num_bad, strict=True):
        mine = [row for row in rows if row[:2] == (expnum, ccdnum)]
        assert bad == any(row[2] for row in mine)
        assert num == sum(row[2] > 0 for row in mine)
