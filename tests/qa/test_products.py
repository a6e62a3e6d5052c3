from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.qa import products, select
from hpcqa.qa.products import Products

TYPES = [torch.float32, torch.bfloat16]


def bounds_of(queries: np.ndarray, references: np.ndarray, dtype: torch.dtype, device: str) -> np.ndarray:
    """Bounds of all pairs, by row of the references."""
    centre = references.mean(axis=0, dtype=np.float64).astype("f4")
    made = Products.of(references, centre, device, dtype, products.one_by_one)
    found = made.candidates(queries, len(references), np.zeros((len(queries), 2), np.int64))
    assert np.all(np.diff(found.least, axis=1) >= 0)
    assert np.all(np.isinf(found.limit))
    assert np.array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(len(references)), (len(queries), 1)))
    bounds = np.empty(found.least.shape)
    np.put_along_axis(bounds, found.rows, found.least, axis=1)
    return bounds


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("dtype", TYPES)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 40, 130, 700]), st.floats(-6, 6), st.floats(0, 4))
@settings(max_examples=25, deadline=None)
def test_no_distance_is_below_its_bound(
    dtype: torch.dtype, device: str, seed: int, width: int, scale: float, spread: float
) -> None:
    """Lengths over several decades, copies of one another, and a centre far from the origin."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(75, width)) * 10.0 ** rng.uniform(-spread, 0, (75, 1)) + rng.normal(size=width) * spread
    rows = (rows * 10.0**scale).astype("f4")
    references, queries = rows[:65], np.concatenate([rows[60:], rows[:5] * np.float32(1.0001)])
    squared = np.square(queries[:, None].astype(np.float64) - references[None]).sum(2)
    bounds = bounds_of(queries, references, dtype, device)
    assert np.all(bounds <= squared)
    # The bounds tell something: they are no farther off than rounding allows.
    lengths = np.square(rows.astype(np.float64) - references.mean(axis=0, dtype=np.float64)).sum(1).max()
    share = 1e-5 * width + 1e-4 if dtype == torch.float32 else 0.05
    assert np.all(squared - bounds <= share * lengths + 1e-30)


@pytest.mark.parametrize("dtype", TYPES)
def test_factors_are_those_of_torch(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(50, 37)) * 10.0 ** rng.uniform(-9, 9, (50, 37))).astype("f4")
    centre = rng.normal(size=37).astype("f4")
    made, squares, errors = products._factors(rows, centre, -2.0, dtype)
    centred = rows - centre
    expected = torch.from_numpy(-2 * centred).to(dtype)
    assert torch.equal(made, expected)
    assert np.allclose(squares, np.square(centred, dtype=np.float64).sum(1), rtol=1e-5)
    lost = expected.double().numpy() / -2 - centred
    assert np.allclose(errors, np.square(lost).sum(1), rtol=1e-4)


@pytest.mark.parametrize("rounded", [False, True])
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_smallest_are_taken(rounded: bool, seed: int, width: int, wanted: int) -> None:
    rng = np.random.default_rng(seed)
    exact = torch.from_numpy(rng.normal(size=(4, width)).astype("f4"))
    found = exact.bfloat16().view(torch.uint16).numpy() if rounded else exact.numpy()
    lows, lengths, slopes = rng.random(width, "f4"), rng.random(width, "f4"), rng.random(4, "f4")
    low = rng.integers(0, width + 1, 4)
    ranges = np.stack([low, low + rng.integers(0, 9, 4)], axis=1)
    values, places = np.full((4, wanted), np.inf, "f4"), np.full((4, wanted), -1)
    half = width // 2
    # Columns of queries that nobody asks.
    room = np.pad(found.T, ((0, 0), (0, select.CHUNK - 4)))
    steep = np.pad(slopes, (0, select.CHUNK - 4))
    for part in (slice(0, half), slice(half, width)):
        select.smallest(room[part], lows[part], lengths[part], steep, part.start, ranges, values, places)
    bounds = exact.numpy() + lows - slopes[:, None] * lengths
    columns = np.arange(width)
    free = ~((ranges[:, :1] <= columns) & (columns < ranges[:, 1:]))
    for query in range(4):
        listed = places[query][places[query] >= 0]
        assert len(listed) == min(wanted, free[query].sum())
        assert len(set(listed)) == len(listed)
        assert free[query][listed].all()
        least = values[query, : len(listed)]
        assert np.all(np.diff(least) >= 0)
        if rounded:
            assert np.all(least <= bounds[query, listed] + 1e-6)
            assert np.all(least >= bounds[query, listed] - 2.1 * 2.0**-8 * np.abs(exact.numpy()[query, listed]) - 1e-6)
        else:
            assert np.allclose(least, np.sort(bounds[query][free[query]])[: len(listed)], atol=1e-6)
