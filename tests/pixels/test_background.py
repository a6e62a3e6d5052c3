import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixels_images import make_image
from scipy import ndimage

from hpcqa.pixels import background as bg
from hpcqa.pixels.scan import scan, working_step
from hpcqa.pixels.sky import skies, sky

NO_MASK = np.zeros((512, 256), bool)


def scanned(image, masked=None, **changes):
    masked = np.zeros(image.shape, bool) if masked is None else masked
    found = sky(image, masked)
    facts = {"level": found.level, "noise": found.noise, "split": image.shape[1] // 2, "saturation": 4e4} | changes
    return scan(image, masked, **facts)


@pytest.mark.parametrize("seed", range(4))
def test_sky_and_noise_of_pure_noise(seed):
    image = (300 + 9 * np.random.default_rng(seed).standard_normal((1024, 512))).astype(np.float32)
    found = sky(image, np.zeros(image.shape, bool))
    assert found.level == pytest.approx(300, abs=0.02 * 9)
    assert found.noise == pytest.approx(9, rel=0.02)
    assert found.spread == pytest.approx(9, rel=0.03)


def test_the_sides_of_an_image_have_skies_of_their_own():
    image = make_image(stars=0)
    image[:, 100:] = 400 + 2 * (image[:, 100:] - 400) + 50
    whole, left, right = skies(image, NO_MASK, 100)
    assert (left.level, right.level) == (pytest.approx(400, abs=0.5), pytest.approx(450, abs=1.0))
    assert right.noise == pytest.approx(2 * left.noise, rel=0.04)
    assert whole.num == left.num + right.num
    assert whole == sky(image, NO_MASK)
    undivided = skies(image, NO_MASK, 256)
    assert undivided[1] == undivided[0] == whole
    assert undivided[2].num == 0


def test_stars_hardly_move_the_sky():
    found = sky(make_image(stars=150), NO_MASK)
    assert found.level == pytest.approx(400, abs=1.0)
    assert found.noise == pytest.approx(np.sqrt(100 + 49 / 16), rel=0.05)


def test_noise_is_blind_to_a_gradient_and_the_spread_sees_it():
    image = make_image(stars=0) + np.linspace(0, 100, 256, dtype=np.float32)
    found = sky(image, NO_MASK)
    assert found.noise == pytest.approx(10.15, rel=0.03)
    assert found.spread > 2 * found.noise


def test_masked_and_missing_pixels_do_not_count():
    image, masked = make_image(stars=0), NO_MASK.copy()
    image[:100], image[100:200] = np.nan, 1e9
    masked[100:200] = True
    assert sky(image, masked).level == pytest.approx(400, abs=0.5)


def test_nothing_valid_gives_no_sky():
    found = sky(make_image(), ~NO_MASK)
    assert found.num == 0
    assert np.isnan(found.level)


def test_constant_image_has_level_and_no_noise():
    found = sky(np.full((64, 64), 5, np.float32), np.zeros((64, 64), bool))
    assert (found.level, found.noise, found.spread) == (5, 0, 0)


@given(rows=st.integers(16, 70), cols=st.integers(16, 70), seed=st.integers(0, 99))
def test_scan_counts_and_means_any_shape(rows, cols, seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 5, (rows, cols)).astype(np.float32)
    masked = rng.random((rows, cols)) < 0.1
    image[rng.random((rows, cols)) < 0.1] = np.nan
    found = scan(image, masked, level=100.0, noise=5.0, split=cols // 3, saturation=112.0)
    good = np.isfinite(image) & ~masked
    assert found.count.sum() == good.sum()
    np.testing.assert_allclose(found.mean[good], image[good], rtol=1e-5)
    inside = good & (np.abs(image - 100) <= 25)
    assert found.row_count.sum() == inside.sum() == found.col_count.sum()
    expected = np.where(inside, image - 100, 0).sum(0) / np.maximum(inside.sum(0), 1)
    np.testing.assert_allclose(found.col_mean, expected, atol=1e-3)
    assert found.saturated.sum() == (image >= 112).sum()


@pytest.mark.parametrize("shape", [(2048, 1024), (1030, 517), (4094, 300)])
def test_scan_bins_large_images(shape):
    image = np.random.default_rng(1).normal(50, 3, shape).astype(np.float32)
    found = scanned(image)
    step = working_step(shape)
    assert found.step == step > 1
    assert found.mean.shape == (-(-shape[0] // step), -(-shape[1] // step))
    assert found.count.sum() == image.size
    np.testing.assert_allclose(found.mean[3, 5], image[3 * step : 4 * step, 5 * step : 6 * step].mean(), rtol=1e-5)
    last = image[(found.mean.shape[0] - 1) * step :, (found.mean.shape[1] - 1) * step :]
    np.testing.assert_allclose(found.mean[-1, -1], last.mean(), rtol=1e-5)


@pytest.mark.parametrize("split", [0, 141, 300])
def test_scan_of_a_large_image_with_stars_faults_and_a_mask(split):
    rng = np.random.default_rng(2)
    image, masked = rng.normal(100, 5, (3100, 300)).astype(np.float32), np.zeros((3100, 300), bool)
    image[rng.integers(0, 3100, 400), rng.integers(0, 300, 400)] += 1e4
    image[40, 3], image[81, 160], image[202, 299] = np.nan, np.inf, -np.inf
    masked[1000:1003, 30:60], masked[2500] = True, True
    found = scan(image, masked, level=100.0, noise=5.0, split=split, saturation=9000.0)
    assert found.step == 4
    good = np.isfinite(image) & ~masked
    assert (found.num_valid, found.num_masked) == (good.sum(), masked.sum())
    cells = [
        np.where(good, values, 0).reshape(775, 4, 75, 4).sum(axis=(1, 3)) for values in (image, np.ones(image.shape))
    ]
    np.testing.assert_array_equal(found.count, cells[1])
    np.testing.assert_allclose(found.mean, cells[0] / cells[1], rtol=1e-5)
    inside = good & (np.abs(image - 100) <= 25)
    less = np.where(inside, image - 100, 0)
    np.testing.assert_array_equal(found.col_count, inside.sum(0))
    np.testing.assert_allclose(found.col_mean, less.sum(0) / inside.sum(0), atol=1e-4)
    for side, part in ((0, slice(0, split)), (1, slice(split, None))):
        np.testing.assert_array_equal(found.row_count[side], inside[:, part].sum(1))
        means = less[:, part].sum(1) / np.maximum(inside[:, part].sum(1), 1)
        np.testing.assert_allclose(found.row_mean[side], means, atol=1e-4)
    np.testing.assert_array_equal(found.saturated, 4 * (image[::4] >= 9000).sum(0))


def test_scan_counts_constant_rows():
    image = make_image(stars=0)
    image[10:13] = 7.0
    assert scanned(image).constant_rows == 3


@pytest.mark.parametrize("radius", [1, 2])
def test_what_is_smoothed_is_the_image_less_the_interpolated_mesh(radius):
    rng = np.random.default_rng(0)
    image, count = rng.normal(0, 1, (40, 30)).astype(np.float32), (rng.random((40, 30)) < 0.9).astype(np.float32)
    mesh = rng.normal(0, 1, (5, 4)).astype(np.float32)
    found = bg.Sources(image, 1.0, image > 0, image > 0, False, mesh)
    assert np.allclose(found.local(np.array([0, 500]), np.array([0, 500])), [mesh[0, 0], mesh[-1, -1]])
    rows, cols = np.indices(image.shape)
    local = bg._local_at(mesh, 8, rows.ravel(), cols.ravel()).reshape(image.shape)
    # Linear between the centres of the cells, constant beyond the outermost ones.
    places = [np.clip((np.arange(n) + 0.5) / 8 - 0.5, 0, m - 1) for n, m in zip(image.shape, mesh.shape, strict=True)]
    expected = ndimage.map_coordinates(mesh, np.meshgrid(*places, indexing="ij"), order=1)
    np.testing.assert_allclose(local, expected, atol=1e-5)
    residual = np.where(count > 0, image - expected, 0)
    smooth = bg._smooth_residual(image, count, mesh, 8, radius)
    np.testing.assert_allclose(smooth, ndimage.uniform_filter(residual, 2 * radius + 1, mode="constant"), atol=1e-5)


@given(seed=st.integers(0, 200), radius=st.integers(1, 5), share=st.floats(0, 0.3))
def test_grow_is_a_maximum_filter(seed, radius, share):
    mask = np.random.default_rng(seed).random((23, 31)) < share
    expected = ndimage.maximum_filter(mask, 2 * radius + 1, mode="constant")
    assert np.array_equal(bg.grow(mask, radius), expected)


def add_glow(image, height):
    y, x = np.mgrid[0:512, 0:256]
    return image + (height * np.exp(-((y - 250) ** 2 + (x - 120) ** 2) / (2 * 90**2))).astype(np.float32)


def test_a_wide_glow_is_background_and_not_a_source():
    found = bg.find_sources(scanned(add_glow(make_image(stars=0), 30)), level=400)
    assert found.found.mean() < 0.004
    assert found.local(np.array([250]), np.array([120]))[0] == pytest.approx(430, abs=2.5)


def test_sources_cover_the_stars():
    image = make_image(stars=20)
    found = bg.find_sources(scanned(image), level=400)
    bright = image > 400 + 8 * 10.15
    assert found.found[bright].mean() > 0.97
    assert found.near[bright].all()
    assert found.near.mean() < 0.35
    assert not found.crowded


@pytest.mark.parametrize("stars", [130, 150])
def test_a_mask_over_half_the_image_is_grown_less_far_or_ignored(stars):
    found = bg.find_sources(scanned(make_image(stars=stars)), level=400)
    assert found.crowded
    assert found.near[found.found].all()
    assert found.found.mean() <= found.near.mean() <= 0.5
    half = np.where(np.arange(256) % 32 < 18, 900, 400).astype(np.float32) + make_image(stars=0) - 400
    found = bg.find_sources(scanned(half), level=400)
    assert found.near.mean() <= 0.6
