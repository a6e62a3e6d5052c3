import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixels_images import make_facts, make_image

from hpcqa.config import ViewsConfig
from hpcqa.pixels import cutouts
from hpcqa.pixels.views import look


def views_of(image, masked=None, **settings):
    masked = np.zeros(image.shape, bool) if masked is None else masked
    return look(image, masked, make_facts(image.shape), ViewsConfig(**settings))


def test_shapes_and_bins():
    found = views_of(make_image())
    assert found.context.shape == (128, 64)
    assert found.background.shape == found.background_noise.shape == (32, 16)
    assert found.detail.shape == (128, 128)
    assert (found.context_bin, found.background_bin) == (4, 16)
    assert found.context.dtype == found.detail.dtype == np.float16


def test_context_is_in_units_of_the_noise():
    context = views_of(make_image(stars=0)).context.astype(float)
    z = 3.0 * np.sinh(context)
    assert z.mean() == pytest.approx(0, abs=0.1)
    assert z.std() == pytest.approx(1, abs=0.05)


def test_context_shows_a_faint_disc():
    image = make_image(stars=0)
    y, x = np.mgrid[0:512, 0:256]
    disc = np.hypot(y - 256, x - 128) < 60
    context = views_of(image + np.where(disc, 6, 0).astype(np.float32)).context.astype(float)
    inside = disc[2::4, 2::4]
    assert context[inside].mean() - context[~inside].mean() > 0.5


def test_views_beyond_a_small_image_are_empty():
    found = views_of(make_image(shape=(60, 60), stars=2))
    assert found.context_bin == 1
    assert not found.context[60:].any()
    assert found.context[:60, :60].any()
    assert np.isnan(found.background[15:]).all()
    assert found.background_bin == 4


def test_background_is_free_of_stars():
    clean, crowded = views_of(make_image(stars=0)), views_of(make_image(stars=40))
    known = np.isfinite(crowded.background)
    assert known.mean() > 0.8
    difference = (crowded.background - 400)[known] / crowded.background_noise[known]
    assert abs(np.median(difference)) < 1.0
    assert np.percentile(np.abs(difference), 95) < 5
    assert np.nanstd((clean.background - 400) / clean.background_noise) == pytest.approx(1, abs=0.15)


def test_masked_pixels_enter_nothing():
    image, masked = make_image(stars=10), np.zeros((512, 256), bool)
    masked[100:180, 60:120] = True
    without = views_of(image, masked)
    image[masked] = 1e5
    again = views_of(image, masked)
    for name in ("context", "background", "detail", "numbers"):
        np.testing.assert_array_equal(getattr(without, name)[..., :-80], getattr(again, name)[..., :-80])
    assert not again.context[26:44, 16:29].any()


def test_detail_begins_with_the_brightest_stars_and_ends_with_sky():
    detail = views_of(make_image(stars=60)).detail.astype(float)
    stamps = detail.reshape(4, 32, 4, 32).swapaxes(1, 2).reshape(16, 32, 32)
    centres = stamps[:, 14:19, 14:19].max(axis=(1, 2))
    assert (centres[:12] > 1.5).all()
    assert np.all(np.diff(centres[:12]) < 0.4)
    assert np.abs(stamps[12:].mean(axis=(1, 2))).max() < 0.5


def test_detail_of_an_empty_image_is_all_sky():
    detail = views_of(make_image(stars=0)).detail.astype(float)
    assert detail.std() == pytest.approx(0.33, abs=0.05)
    assert (detail == 0).mean() < 0.02


def test_share_of_sky_stamps_is_a_setting():
    detail = views_of(make_image(stars=60), sky_share=1.0).detail.astype(float)
    assert detail.max() < views_of(make_image(stars=60), sky_share=0.0).detail.max()


def test_sizes_are_settings():
    found = views_of(make_image(), context=[64, 64], background=[16, 16], detail=[96, 64], stamp=16)
    assert found.context.shape == (64, 64)
    assert found.context_bin == 8
    assert not found.context[:, 32:].any()
    assert found.detail.shape == (96, 64)


def test_the_same_image_gives_the_same_views():
    first, second = views_of(make_image(3)), views_of(make_image(3))
    for name in ("context", "background", "background_noise", "detail", "numbers"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_constant_image_has_plain_views():
    found = views_of(np.full((512, 256), 400, np.float32))
    assert not found.context.any()
    assert np.nanmax(np.abs(found.background - 400)) < 1e-2


@given(seed=st.integers(0, 100), shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), width=st.integers(1, 7))
def test_the_emptiest_squares_come_first_and_equal_ones_in_the_given_order(seed, shape, width):
    rng = np.random.default_rng(seed)
    near, count = rng.random(shape) < 0.2, (rng.random(shape) < 0.8).astype(np.uint8)
    rows, cols = shape[0] // width, shape[1] // width
    if rows == 0 or cols == 0:
        return
    part = (near | (count == 0))[: rows * width, : cols * width]
    busy = part.reshape(rows, width, cols, width).sum(axis=(1, 3)).ravel()
    scattered = rng.permutation(rows * cols)
    for most in (1, 5, rows * cols + 3):
        expected = scattered[np.argsort(busy[scattered], kind="stable")][:most]
        assert np.array_equal(cutouts._emptiest(near, count, width, scattered, cols, most), expected)
