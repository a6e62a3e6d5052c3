from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.splits import holdout, night_folds

DAYS = np.arange(np.datetime64("2012-11-01"), np.datetime64("2026-01-01"))
NIGHTS = np.array([int(str(day).replace("-", "")) for day in DAYS])


@given(st.integers(0, 1000), st.floats(0, 1), st.data())
def test_a_night_falls_on_one_side_whatever_else_is_there(seed, share, data):
    some = data.draw(st.lists(st.sampled_from(NIGHTS.tolist()), min_size=1, max_size=40))
    every = holdout(NIGHTS, seed, share)
    np.testing.assert_array_equal(holdout(np.array(some), seed, share), every[np.searchsorted(NIGHTS, some)])
    folds = night_folds(NIGHTS, 5, seed)
    np.testing.assert_array_equal(night_folds(np.array(some), 5, seed), folds[np.searchsorted(NIGHTS, some)])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_shares_are_kept(share):
    assert abs(holdout(NIGHTS, 3, share).mean() - share) < 0.01


@pytest.mark.parametrize("seed", range(20))
def test_a_dozen_nights_give_three_to_five_of_thirty_percent(seed):
    assert 3 <= holdout(NIGHTS[100:112], seed, 0.3).sum() <= 5


def test_folds_are_even_also_outside_the_holdout():
    rest = NIGHTS[~holdout(NIGHTS, 1, 0.3)]
    counts = np.bincount(night_folds(rest, 5, 1), minlength=5)
    assert counts.min() > 0.17 * len(rest)


def test_seeds_differ_and_odd_nights_do_not_matter():
    assert (holdout(NIGHTS, 1, 0.3) != holdout(NIGHTS, 2, 0.3)).any()
    assert holdout(np.array([0, -1, 99999999]), 1, 0.3).dtype == bool
    assert (night_folds(np.array([0, 20250101]), 2, 1) < 2).all()
    assert len(holdout(np.empty(0, np.int64), 1, 0.3)) == 0
