import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixels_images import make_facts, make_image

from hpcqa.config import ViewsConfig
from hpcqa.pixels.cutouts import _halves, relative_halves, stretch
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


def test_stretch_has_no_nan():
    z = np.array([[np.nan, np.inf, -np.inf, 0.0, 3.0, -3e30]], np.float32)
    out = stretch(z, 3.0)
    assert np.isfinite(out).all()
    assert out[0, 4] == pytest.approx(np.arcsinh(1), rel=1e-3)


def test_the_stretch_is_that_of_numpy_to_a_step_of_float16():
    rng = np.random.default_rng(2)
    sizes = np.concatenate([10.0 ** rng.uniform(-12, 9, 4000), [0, 1e-8, 6e-8, 6.1e-5, 1e30, 3e38]])
    z = (sizes * rng.choice([-1, 1], sizes.size)).astype(np.float32).reshape(-1, 1)
    found, expected = stretch(z, 3.0), np.arcsinh(np.clip(z.astype(float), -1e15, 1e15) / 3.0).astype(np.float16)
    steps = np.abs(found.view(np.int16).astype(int) - expected.view(np.int16).astype(int))
    small = np.abs(z) < 3e15
    assert steps[small].max() <= 1
    assert (steps[small & (np.abs(z) > 1e-3)] > 0).mean() < 0.01
    assert np.isfinite(found).all()


@given(st.lists(st.floats(0, 60000, width=32), min_size=1, max_size=50), st.booleans())
def test_halves_are_rounded_as_numpy_rounds_them(values, negative):
    sizes = np.array([values], np.float32)
    signs = np.full_like(sizes, -1.0 if negative else 1.0)
    assert np.array_equal(_halves(sizes, signs), np.copysign(sizes, signs).astype(np.float16).view(np.uint16))


def test_relative_halves_are_numpys():
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, (40, 50)) * 10 ** rng.uniform(-9, 7, (40, 50))).astype(np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, 3.0
    expected = np.clip((values - np.float32(3)) / np.float32(7), -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(relative_halves(values, 3.0, 7.0), expected)
