"""The physics: flux, sky, noise, PSF width, places and masks are what they should be."""

import dataclasses
import math

import numpy as np
import pytest

from hpcqa.instruments import get
from hpcqa.simulate import detector, scene
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.optics import make_stamps
from hpcqa.simulate.plan import plan_exposure
from hpcqa.simulate.render import Renderer
from tests.simulate.conftest import small_config

PLANE = FocalPlane(get("minicam"))
CONFIG = small_config(exposures=50)
GOOD = plan_exposure(CONFIG, 7, "")
QUIET = dataclasses.replace(GOOD.conditions, nebula=0.0, galaxy=0.0, bright_star=99.0, num_satellites=0, crowding=0.3)


def fwhm_of(stamp):
    """From the stamp's area above half its peak."""
    return 2 * math.sqrt((stamp > stamp.max() / 2).sum() / math.pi)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_stars_have_unit_flux_and_the_width_asked_for(beta):
    conditions = dataclasses.replace(QUIET, fwhm=1.5, beta=beta, shear=(0.0, 0.0))
    stamps = make_stamps(conditions, (0.0, 0.0), 0.263).light
    np.testing.assert_allclose(stamps[0].sum((-2, -1)), 1, atol=0.02)
    assert fwhm_of(stamps[0, 1, 1]) == pytest.approx(1.5 / 0.263, rel=0.08)


def test_phases_move_the_star_by_a_third_of_a_pixel():
    stamps = make_stamps(QUIET, (0.0, 0.0), 0.263).light[0]
    rows, cols = np.indices(stamps.shape[-2:]) - stamps.shape[-1] // 2
    for phase in range(3):
        stamp = stamps[phase, 1]
        assert (stamp * rows).sum() / stamp.sum() == pytest.approx((phase - 1) / 3, abs=0.03)
        stamp = stamps[1, phase]
        assert (stamp * cols).sum() / stamp.sum() == pytest.approx((phase - 1) / 3, abs=0.03)


def test_trails_and_doubles_are_as_long_as_asked():
    trail = dataclasses.replace(QUIET, path=(((-10.0, 0.0), (10.0, 0.0), 1.0),))
    stamp = make_stamps(trail, (0.0, 0.0), 0.263).light[0, 1, 1]
    half = stamp.shape[0] // 2
    assert (stamp[half] > stamp.max() / 2).sum() == pytest.approx(20, abs=2)
    double = dataclasses.replace(QUIET, path=(((0.0, 0.0), (0.0, 0.0), 0.6), ((0.0, 12.0), (0.0, 12.0), 0.4)))
    stamp = make_stamps(double, (0.0, 0.0), 0.263).light[0, 1, 1]
    half = stamp.shape[0] // 2
    assert stamp[half + 12, half] / stamp[half, half] == pytest.approx(0.4 / 0.6, rel=0.02)


def test_donuts_have_holes():
    stamp = make_stamps(dataclasses.replace(QUIET, donut=20.0), (0.0, 0.0), 0.263).light[0, 1, 1]
    half = stamp.shape[0] // 2
    assert stamp[half, half] < 0.6 * stamp.max()


def test_a_star_lands_where_and_as_bright_as_it_should():
    image = np.zeros((80, 90), np.float32)
    stamps = make_stamps(QUIET, (0.0, 0.0), 0.263)
    one = scene.Sources(np.array([40.3]), np.array([50.0]), np.array([1e5]), np.array([0]))
    scene.add_sources(image, one, stamps, 1.0)
    rows, cols = np.indices(image.shape)
    assert image.sum() == pytest.approx(1e5, rel=0.02)
    assert (image * rows).sum() / image.sum() == pytest.approx(40.33, abs=0.05)
    assert (image * cols).sum() / image.sum() == pytest.approx(50.0, abs=0.05)


def test_sky_and_noise_of_a_good_ccd():
    plan = dataclasses.replace(GOOD, conditions=QUIET)
    drawn = Renderer(CONFIG.seed, PLANE, plan).render(PLANE.instrument.ccds[0])
    camera = PLANE.instrument
    expected = math.sqrt(QUIET.sky / camera.gain + (camera.read_noise / camera.gain) ** 2)
    assert drawn.facts["sky"] == pytest.approx(QUIET.sky, rel=0.03)
    assert drawn.facts["sigma"] == pytest.approx(expected, rel=0.15)
    assert drawn.image.dtype == np.float32
    assert drawn.mask.dtype == np.int32


def test_a_grid_is_enlarged_linearly():
    rows, cols = np.arange(6)[:, None] * 4.0, np.arange(5)[None, :] * 4.0
    image = np.empty((16, 12), np.float32)
    detector.enlarge(np.asarray(2 * rows + 3 * cols, np.float32), 4, image, 10.0)
    np.testing.assert_allclose(image, 10 * (2 * np.arange(16)[:, None] + 3 * np.arange(12)[None, :]), rtol=1e-5)


def test_bleeding_goes_both_ways_along_the_column():
    image, mask = np.full((60, 5), 100, np.float32), np.zeros((60, 5), np.int32)
    image[30, 2] = 11_000
    assert detector.saturate(image, mask, 1000.0) == (1, 1)
    assert mask[30, 2] == detector.SATURATED
    assert (mask[:, 2] == detector.BLEED).sum() == 20
    assert mask[20, 2] == mask[40, 2] == detector.BLEED
    assert not mask[:, [0, 1, 3, 4]].any()


def test_pixels_and_coordinates_are_inverse_and_follow_the_camera():
    for name in ("minicam", "decam"):
        plane = FocalPlane(get(name))
        ccd = plane.instrument.ccds[3]
        x, y = plane.coordinates(ccd, np.array(100.0), np.array(20.0))
        assert plane.pixels(ccd, float(x), float(y)) == pytest.approx((100, 20))
        x0, y0 = plane.coordinates(ccd, np.array(0.0), np.array(0.0))
        x1, y1 = plane.coordinates(ccd, np.array(1.0), np.array(0.0))
        assert (x1 - x0, y1 - y0) == pytest.approx(np.array(plane.instrument.rows_along) * plane.pixel)
        corners = [plane.centre(one) for one in plane.instrument.ccds]
        assert max(math.hypot(*place) for place in corners) < 1


def test_a_thin_trail_is_one_line_across_the_ccds():
    clean = dataclasses.replace(GOOD, conditions=QUIET)
    crossed = dataclasses.replace(GOOD, conditions=dataclasses.replace(QUIET, num_satellites=1))
    places = []
    for ccd in PLANE.instrument.ccds:
        one, other = (Renderer(CONFIG.seed, PLANE, plan).render(ccd).image for plan in (clean, crossed))
        rows, cols = np.nonzero(np.abs(other - one) > 2)
        places.append(np.stack(PLANE.coordinates(ccd, rows, cols), axis=1) / PLANE.pixel)
    assert sum(len(place) > 0 for place in places) >= 2
    around = np.concatenate(places) - np.concatenate(places).mean(0)
    widths = np.linalg.svd(around, compute_uv=False) / math.sqrt(len(around))
    assert widths[1] < 5 < 100 < widths[0]
