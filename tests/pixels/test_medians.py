"""Order statistics are exact, whatever the numbers look like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.pixels.medians import dealt, known_median, ranked, select
from hpcqa.pixels.sky import clipped, clipped_level

FAST = settings(max_examples=60, deadline=None)

KINDS = {
    "sky and stars": lambda rng, num: np.where(
        rng.random(num) < 0.02, rng.uniform(0, 1e5, num), rng.normal(300, 9, num)
    ),
    "whole numbers": lambda rng, num: rng.integers(0, 5, num),
    "all equal": lambda _, num: np.full(num, 3.0),
    "far tails": lambda rng, num: rng.standard_cauchy(num),
    "two values": lambda rng, num: np.where(rng.random(num) < 0.5, 0, 1e30),
    "a ramp": lambda _, num: np.arange(num),
    "columns in step": lambda rng, num: np.where(np.arange(num) % 512 == 0, 0, rng.normal(size=num)),
    "steep": lambda rng, num: rng.exponential(size=num) ** 9,
    "mostly zero": lambda rng, num: np.where(rng.random(num) < 0.6, 0, rng.normal(size=num)),
}
any_kind = st.sampled_from(sorted(KINDS))
any_size = st.sampled_from([1, 2, 3, 64, 255, 256, 257, 1000, 8191, 40000])
any_seed = st.integers(0, 2**32 - 1)


@FAST
@given(kind=any_kind, num=any_size, seed=any_seed, dtype=st.sampled_from(["f4", "f8"]), share=st.floats(0, 1))
def test_ranks_are_those_of_the_sorted_numbers(kind, num, seed, dtype, share):
    values = KINDS[kind](np.random.default_rng(seed), num).astype(dtype)
    first = int(share * (num - 1))
    last = min(first + seed % 2, num - 1)
    ordered = np.sort(values)
    assert select(values, first, last) == (ordered[first], ordered[last])


@FAST
@given(kind=any_kind, num=any_size, seed=any_seed, dtype=st.sampled_from(["f4", "f8"]))
def test_many_ranks_of_the_same_numbers(kind, num, seed, dtype):
    rng = np.random.default_rng(seed)
    values = KINDS[kind](rng, num).astype(dtype)
    buckets, starts, is_sorted = dealt(values)
    assert not is_sorted.any()
    assert (starts[0], starts[-1]) == (0, num)
    ordered = np.sort(values)
    for rank in [0, num - 1, *rng.integers(0, num, 20)]:
        assert ranked(buckets, starts, is_sorted, rank) == ordered[rank]


@FAST
@given(num=any_size, seed=any_seed, lost=st.sampled_from([0.01, 0.3, 1.0]), largest=st.sampled_from([1.0, 3e38]))
def test_what_is_no_number_stays_within_bounds(num, seed, lost, largest):
    """An overflow may bring infinity and NaN in: they are dealt somewhere, and nothing is lost."""
    rng = np.random.default_rng(seed)
    values = (rng.choice([-1, 1], num) * largest * rng.random(num)).astype(np.float32)
    odd = rng.random(num) < lost
    values[odd] = rng.choice([np.nan, np.inf, -np.inf], odd.sum())
    buckets, starts, is_sorted = dealt(values)
    assert (np.diff(starts) >= 0).all()
    assert (starts[0], starts[-1]) == (0, num)
    for rank in rng.integers(0, num, 20):
        ranked(buckets, starts, is_sorted, rank)
    np.testing.assert_array_equal(np.sort(buckets), np.sort(values))


@FAST
@given(kind=any_kind, num=any_size, seed=any_seed, lost=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_median_is_that_of_the_finite_numbers(kind, num, seed, lost):
    rng = np.random.default_rng(seed)
    values = KINDS[kind](rng, num).astype(np.float32)
    values[rng.random(num) < lost] = rng.choice([np.nan, np.inf, -np.inf])
    known = values[np.isfinite(values)]
    expected = np.median(known.astype(np.float64)) if known.size else np.nan
    assert known_median(values) == pytest.approx(expected, rel=1e-15, nan_ok=True)
    assert known_median(values[None, ::-1]) == pytest.approx(expected, rel=1e-15, nan_ok=True)


@FAST
@given(kind=any_kind, num=st.sampled_from([8, 300, 9000]), seed=any_seed)
def test_clipping_needs_no_order(kind, num, seed):
    values = KINDS[kind](np.random.default_rng(seed), num).astype(np.float32)
    assert clipped_level(values) == clipped(np.sort(values), num)
