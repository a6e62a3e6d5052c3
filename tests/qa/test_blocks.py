from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.qa import blocks
from hpcqa.qa.blocks import NumberScale, Pca, Raw, Robust, Tails, rarest
from hpcqa.qa.exposure import top_mean


def test_robust_scale_ignores_outliers_and_squashes_them() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(5, 2, (2000, 1))
    good[:20] = 1e6
    scale = Robust.fit(good, good)
    assert scale.centre[0] == pytest.approx(5, abs=0.2)
    assert scale.scale[0] == pytest.approx(2, rel=0.15)
    assert 10 < scale.apply(np.array([[1e6]]))[0, 0] < 40


def test_a_flag_that_no_good_example_has_stands_out() -> None:
    everything = np.zeros((50, 1))
    everything[7] = 1.0
    scale = Robust.fit(np.zeros((40, 1)), everything)
    assert scale.apply(np.array([[1.0]]))[0, 0] > 4
    constant = Robust.fit(np.ones((5, 2)), np.ones((5, 2)))
    assert not constant.apply(np.ones((3, 2))).any()


def test_unknown_values_are_unremarkable() -> None:
    assert blocks.squash(np.array([np.nan, np.inf, -np.inf])).tolist() == [0.0, 60.0, -60.0]


def test_pca_keeps_distances_and_scales_good_ones_to_unity() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 20))
    projection = Pca.fit(rows, rows, 8)
    projected = projection.apply(rows)
    assert np.mean(np.square(projected).sum(1)) == pytest.approx(1.0, rel=1e-3)
    plain = np.linalg.norm(rows[0] - rows[1:50], axis=1)
    reduced = np.linalg.norm(projected[0] - projected[1:50], axis=1)
    assert np.allclose(reduced / plain, reduced[0] / plain[0], rtol=1e-4)


def test_pca_of_one_row_or_fewer_features_than_asked() -> None:
    one = np.ones((1, 4))
    assert np.isfinite(Pca.fit(one, one, 32).apply(one)).all()
    assert Pca.fit(np.eye(3), np.eye(3), 32).components.shape == (3, 3)


def test_numbers_are_compared_with_their_ccd_and_band() -> None:
    scale = NumberScale(
        np.array([1, 2, 1]), np.array(["g", "g", "z"], object), np.array([[10.0], [20.0], [90.0]]), np.ones((3, 1)) * 2
    )
    numbers = np.array([[14.0], [14.0], [94.0], [15.0], [np.nan]], "f4")
    found = scale.apply(numbers, np.array([1, 2, 1, 9, 1]), np.array(["g", "g", "z", "g", "g"], object))
    assert found[:4, 0].tolist() == [2.0, -3.0, 2.0, 0.0]  # the unknown CCD 9 takes its band's median, 15
    assert np.isnan(found[4, 0])
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    other = scale.apply(np.array([[20.0]], "f4"), np.array([1]), np.array(["Y"], object))
    assert other[0, 0] == 0.0  # no pattern of this band: the median of all


def test_a_scale_from_the_numbers_themselves() -> None:
    rng = np.random.default_rng(2)
    numbers = np.concatenate([rng.normal(0, 1, (500, 1)), rng.normal(50, 5, (500, 1))]).astype("f4")
    band = np.repeat(np.array(["g", "z"], object), 500)
    found = NumberScale.of_numbers(numbers, band).apply(numbers, np.ones(1000, int), band)
    assert np.std(found[:500, 0]) == pytest.approx(1, rel=0.15)
    assert np.std(found[500:, 0]) == pytest.approx(1, rel=0.15)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_statistics_of_segments(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(sum(sizes), 2)).astype("f4")
    starts = np.cumsum([0, *sizes[:-1]])
    found = blocks.per_exposure(values, starts, ("mean", "spread", "max", "min"))
    difference = blocks.contrast(values, starts)
    for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        part = values[start : start + size]
        expected = np.concatenate([part.mean(0), part.std(0), part.max(0), part.min(0)])
        assert np.allclose(found[row], expected, atol=1e-5)
        squashed = blocks.squash(part)
        assert np.allclose(difference[start : start + size], squashed - np.median(squashed, 0), atol=1e-5)
        top = np.sort(part[:, 0])[::-1][:2].mean()
        assert top_mean(values[:, 0], starts, 2)[row] == pytest.approx(top, abs=1e-5)


def test_selected_exposures_keep_their_ccds_together() -> None:
    raw = Raw(np.array([0, 2, 5]), {"numbers": np.arange(6.0)[:, None]}, {"focal_plane": np.arange(3.0)[:, None]})
    chosen = raw.select(np.array([2, 0]))
    assert chosen.ccd["numbers"][:, 0].tolist() == [5, 0, 1]
    assert chosen.starts.tolist() == [0, 1]
    assert chosen.exposure["focal_plane"][:, 0].tolist() == [2, 0]
    assert raw.select(np.zeros(0, int)).num_ccds == 0


def test_rarity_follows_the_tail_that_good_examples_have() -> None:
    """Exponential tails of two lengths, and one on one side only: rarity is the logarithm of how rare a value is."""
    rng = np.random.default_rng(3)
    long, short = rng.exponential(4.0, 50000) + 1.0, rng.exponential(0.5, 50000) + 1.0
    signs = rng.choice([-1.0, 1.0], 50000)
    tails = Tails.fit(np.stack([long * signs, short * signs, np.maximum(long * signs, -1.0)], axis=1))
    found = tails.rarity(np.array([[13.0, 13.0, -13.0], [0.5, -0.5, 0.0]]))
    # Where the tail begins 1 of 10 lies beyond on either side; it falls by e in its own length.
    start = tails.start[0, 0]
    assert found[0, 0] == pytest.approx((13.0 - start) / 4.0, rel=0.05)
    assert found[0, 1] > 5 * found[0, 0]
    assert found[0, 2] > 5 * found[0, 0]
    assert not found[1].any()


def test_few_good_examples_make_nothing_endlessly_rare() -> None:
    tails = Tails.fit(np.zeros((0, 2)))
    assert np.isfinite(tails.rarity(np.array([[60.0, -60.0]]))).all()
    still = Tails.fit(np.zeros((500, 1)))
    assert 20 < still.rarity(np.array([[15.0]]))[0, 0] < 60


def test_the_rarest_numbers_count_and_the_others_do_not() -> None:
    rarity = np.zeros((2, 100), np.float32)
    rarity[0, [5, 70]] = 8.0, 4.0
    assert rarest(rarity).tolist() == [6.0, 0.0]
    assert rarest(rarity[:, :1]).tolist() == [0.0, 0.0]
    assert rarest(rarity[:, :0]).tolist() == [0.0, 0.0]
