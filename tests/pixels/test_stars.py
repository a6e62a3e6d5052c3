import numpy as np
import pytest
from pixels_images import make_image

from hpcqa.pixels import background as bg
from hpcqa.pixels import layout, stars
from hpcqa.pixels.peaks import find_peaks
from hpcqa.pixels.scan import scan
from hpcqa.pixels.sky import sky


def stamp(function, half=30):
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    return function(x, y)


def gaussian(sigma, e1=0.0, e2=0.0):
    """Peak 1, second moments sigma^2 (1 + e1), sigma^2 (1 - e1), sigma^2 e2."""
    inverse = np.linalg.inv(sigma**2 * np.array([[1 + e1, e2], [e2, 1 - e1]]))
    return stamp(
        lambda x, y: np.exp(-0.5 * (inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y))
    )


def find(image, masked=None, saturation=4e4):
    masked = np.zeros(image.shape, bool) if masked is None else masked
    whole = sky(image, masked)
    scanned = scan(image, masked, level=whole.level, noise=whole.noise, split=0, saturation=saturation)
    sources = bg.find_sources(scanned, level=whole.level)
    peaks = find_peaks(scanned, sources)
    found = stars.measure_stars(
        image, masked, peaks, sources, noise=whole.noise, saturation=saturation, step=scanned.step
    )
    return found, peaks, sources


def median(found, column):
    return float(np.median(found.table[found.is_star, column]))


@pytest.mark.parametrize("sigma", [1.2, 1.7, 2.5, 4.0])
def test_size_of_round_stars(sigma):
    found, _, _ = find(make_image(stars=40, kernel=gaussian(sigma)))
    assert median(found, stars.SIGMA) == pytest.approx(sigma, rel=0.05)
    assert median(found, stars.HALF_RADIUS) == pytest.approx(1.1774 * sigma, rel=0.15)
    assert np.hypot(median(found, stars.E1), median(found, stars.E2)) < 0.02


@pytest.mark.parametrize(("e1", "e2"), [(0.2, 0.0), (-0.2, 0.0), (0.0, 0.2), (0.1, -0.15)])
def test_shape_of_elongated_stars(e1, e2):
    found, _, _ = find(make_image(stars=40, kernel=gaussian(2.2, e1, e2)))
    assert median(found, stars.E1) == pytest.approx(e1, abs=0.03)
    assert median(found, stars.E2) == pytest.approx(e2, abs=0.03)


def test_peaks_on_one_galaxy_do_not_pass_for_the_stars():
    """Ten knots in a wide core, all of its size, beside a dozen stars."""
    image = make_image(stars=12)
    i, j = np.mgrid[: image.shape[0], : image.shape[1]]
    core = 900 * np.exp(-0.5 * ((i - 250) ** 2 + (j - 120) ** 2) / 18.0**2)
    for k in range(10):
        core += 40 * np.exp(-0.5 * ((i - 235 - 4 * k) ** 2 + (j - 116 - (k % 3) * 5) ** 2) / 2.0**2)
    found, _, _ = find((image + core).astype(np.float32))
    assert median(found, stars.SIGMA) == pytest.approx(2.0, rel=0.1)
    on_core = np.hypot(found.table[:, stars.X] - 120, found.table[:, stars.Y] - 250) < 25
    assert on_core.sum() <= 3


def test_donuts_have_a_dip():
    ring = stamp(lambda x, y: np.exp(-((np.hypot(x, y) - 7) ** 2) / (2 * 1.5**2)))
    found, _, _ = find(make_image(stars=25, kernel=ring))
    good, _, _ = find(make_image(stars=25))
    assert median(found, stars.DIP) > 0.6 > 0.3 > median(good, stars.DIP)


def test_positions_are_those_of_the_stars():
    image = make_image(stars=0)
    y, x = np.mgrid[0:512, 0:256]
    for row, col in ((100.3, 50.7), (300.0, 200.0)):
        image += (2000 * np.exp(-((y - row) ** 2 + (x - col) ** 2) / 8)).astype(np.float32)
    found, _, _ = find(image)
    order = np.argsort(found.table[:, stars.Y])
    np.testing.assert_allclose(found.table[order][:, [stars.Y, stars.X]], [[100.3, 50.7], [300, 200]], atol=0.05)


def test_cosmic_rays_are_no_stars():
    image = make_image(stars=10)
    rng = np.random.default_rng(5)
    image[rng.integers(20, 490, 30), rng.integers(20, 230, 30)] += 3000
    found, _, _ = find(image)
    assert found.num_sharp >= 20
    assert median(found, stars.SIGMA) == pytest.approx(2.0, rel=0.05)


def test_saturated_and_masked_stars_are_left_out():
    image = make_image(stars=0)
    y, x = np.mgrid[0:512, 0:256]
    image += (60000 * np.exp(-((y - 100) ** 2 + (x - 100) ** 2) / 8)).astype(np.float32)
    image += (6000 * np.exp(-((y - 300) ** 2 + (x - 100) ** 2) / 8)).astype(np.float32)
    masked = np.zeros(image.shape, bool)
    found, _, _ = find(np.minimum(image, 40000))
    assert found.num_saturated >= 1
    assert len(found.table[found.table[:, stars.SNR] > 50]) == 1
    masked[298:303, 98:103] = True
    found, _, _ = find(np.minimum(image, 40000), masked)
    assert not (found.table[:, stars.SNR] > 50).any()


def test_an_empty_image_has_no_stars():
    found, peaks, _ = find(make_image(stars=0))
    assert len(found.table) <= len(peaks) < 10
    assert layout.common_displacement(peaks).excess != layout.common_displacement(peaks).excess or len(peaks) >= 8


def test_galaxies_are_not_of_the_size_of_stars():
    image = make_image(seed=1, stars=30) + make_image(seed=2, stars=8, kernel=gaussian(4.5)) - 400
    found, _, _ = find(image)
    assert median(found, stars.SIGMA) == pytest.approx(2.0, rel=0.08)
    assert (found.table[~found.is_star, stars.SIGMA] > 3).sum() >= 3


def test_double_exposures_share_a_displacement():
    image = make_image(stars=30)
    _, peaks, _ = find(image)
    single = layout.common_displacement(peaks)
    double = image + np.roll(image - 400, (40, 25), (0, 1))
    _, peaks, _ = find(double)
    pairs = layout.common_displacement(peaks)
    assert pairs.excess > 2 * single.excess
    assert pairs.separation == pytest.approx(np.hypot(40, 25), abs=7)
    assert pairs.share > 0.25


def test_trails_share_an_axis():
    trail = np.zeros((61, 61))
    for shift in range(-20, 21):
        trail += np.roll(gaussian(1.8), shift, 1)
    found, _, sources = find(make_image(stars=15, kernel=trail / trail.max()))
    c, s = layout.gradient_coherence(sources.smooth, sources.found)
    assert np.hypot(c, s) > 0.4
    assert layout.trail_length(sources.found, c, s) > 8
    found, _, sources = find(make_image(stars=30))
    c, s = layout.gradient_coherence(sources.smooth, sources.found)
    assert np.hypot(c, s) < 0.15
    assert abs(layout.trail_length(sources.found, c, s)) < 5
    assert found.is_star.any()


@pytest.mark.parametrize(("row", "slope"), [(250, 0.0), (100, 0.9), (400, -0.5)])
def test_a_streak_covers_a_line(row, slope):
    image = make_image(stars=20)
    y, x = np.mgrid[0:512, 0:256]
    streak = image + (60 * np.exp(-((y - row - slope * x) ** 2) / (2 * 3.0**2))).astype(np.float32)
    _, _, without = find(image)
    _, _, sources = find(streak)
    assert layout.line_cover(layout.coarse(sources.found, 128), 36) > 0.6
    assert layout.line_cover(layout.coarse(without.found, 128), 36) < 0.5


def test_coarse_keeps_every_detection():
    found = np.zeros((300, 130), bool)
    found[299, 129] = found[0, 0] = True
    small = layout.coarse(found, 128)
    assert small.shape == (100, 44)
    assert small.sum() == 2


def test_spread_numbers_see_an_empty_half():
    rng = np.random.default_rng(0)
    rows, cols = rng.uniform(0, 512, 400), rng.uniform(0, 256, 400)
    even = layout.spread_numbers(rows, cols, (512, 256), 1)
    half = layout.spread_numbers(rows / 2, cols, (512, 256), 1)
    assert even["empty_share"] < 0.05 < 0.4 < half["empty_share"]
    assert half["source_unevenness"] > 3 * even["source_unevenness"]
