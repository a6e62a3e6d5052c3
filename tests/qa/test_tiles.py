from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.qa import knn, products, tiles
from hpcqa.qa.products import Products
from tests.qa.test_knn import brute


def test_tiles_hold_what_they_are_made_from_and_nothing_near() -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(tiles.TILE + 5, 6)).astype("f4")
    lows, lengths = rng.random(len(factors)).astype("f4"), rng.random(len(factors)).astype("f4")
    made = tiles.tiled(factors, lows, lengths)
    assert made.shape == (2, 8 + 2, tiles.TILE)
    assert made.flags.c_contiguous
    lines = np.concatenate(list(made), axis=1)
    assert np.array_equal(lines[:6, : len(factors)].T, factors)
    assert np.array_equal(lines[8, : len(factors)], lows)
    assert np.array_equal(lines[9, : len(factors)], lengths)
    assert not lines[6:8].any()
    assert np.isinf(lines[8, len(factors) :]).all()


@pytest.mark.parametrize("width", [1, 4, 7, products.TILED_WIDTH - 1])
@pytest.mark.parametrize("queries", [1, 4, 6])
def test_the_smallest_bounds_are_taken(width: int, queries: int) -> None:
    rng = np.random.default_rng(width)
    factors, asked = rng.integers(-3, 4, (300, width)).astype("f4"), rng.integers(-3, 4, (queries, width)).astype("f4")
    lows, lengths = rng.permutation(300).astype("f4") / 512, rng.integers(0, 4, 300).astype("f4")
    slopes = rng.integers(1, 4, queries).astype("f4")
    start = rng.integers(0, 290, queries)
    ranges = np.stack([start, start + 40], axis=1) + 1000
    values, places = np.full((queries, 5), np.inf, "f4"), np.full((queries, 5), -1, "i8")
    made = tiles.tiled(factors, lows, lengths)
    tiles.smallest(tiles.padded(asked), made, slopes, 1000, ranges, values, places)
    bounds = asked @ factors.T + (lows - slopes[:, None] * lengths)
    for row, (low, high) in enumerate(ranges - 1000):
        bounds[row, low:high] = np.inf
    # Different lows make all bounds different, and small integers make them exact.
    expected = np.argsort(bounds, axis=1)[:, :5]
    assert np.array_equal(places, expected + 1000)
    assert np.array_equal(values, np.take_along_axis(bounds, expected, 1))


@given(st.integers(0, 10**6), st.integers(1, products.TILED_WIDTH - 1), st.floats(-6, 6), st.floats(-4, 4))
@settings(max_examples=60, deadline=None)
def test_bounds_never_exceed_the_distances(seed: int, width: int, scale: float, away: float) -> None:
    rng = np.random.default_rng(seed)
    references = (
        10.0**scale * (rng.normal(size=(200, width)) * rng.choice([1e-3, 1, 30], (200, 1)) + 10.0**away)
    ).astype("f4")
    asked = np.concatenate([references[:5], references[5:10] * np.float32(1.0001)])
    centre = references.mean(axis=0, dtype=np.float64).astype("f4")
    made = Products.of(references, centre, "cpu", torch.float32, products.one_by_one)
    assert made.is_tiled
    found = made.candidates(asked, 200, np.zeros((len(asked), 2), np.int64))
    assert np.array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(200), (len(asked), 1)))
    exact = np.square(asked[:, None].astype("f8") - references[found.rows].astype("f8")).sum(2)
    assert np.all(found.least <= exact)
    # Close to them all the same: rounding is small beside the lengths.
    size = (
        np.square(asked.astype("f8") - centre).sum(1)[:, None]
        + np.square(references.astype("f8") - centre).sum(1).max()
    )
    assert np.all(exact - found.least <= 1e-4 * size)


def test_references_too_many_to_keep_are_arranged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "KEPT_BYTES", 0)
    monkeypatch.setattr(products, "REFERENCE_ROWS", 200)
    rng = np.random.default_rng(5)
    references, asked = rng.normal(size=(700, 13)).astype("f4"), rng.normal(size=(7, 13)).astype("f4")
    found = knn.nearest(asked, references, 4)
    distance, index = brute(asked, references, 4)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)
