import dataclasses
import math

import numpy as np
import pytest
from astropy.io import fits
from pixels_images import make_facts, make_image, numbers_of

from hpcqa.instruments.base import HEADER_NUMBERS, Region
from hpcqa.pixels import measure
from hpcqa.pixels.failures import BIT
from hpcqa.pixels.views import failure_of


@pytest.fixture(scope="module")
def good():
    """Numbers of six good images, and their scatter."""
    found = [numbers_of(make_image(seed)) for seed in range(6)]
    return {
        name: (np.nanmean([one[name] for one in found]), np.nanstd([one[name] for one in found]))
        for name, _, _ in measure.MEASURED
    }


def stands_out(numbers, good, name, sign=1, sigmas=5):
    middle, scatter = good[name]
    return sign * (numbers[name] - middle) > sigmas * max(scatter, 1e-6)


def test_names_are_unique_and_documented():
    assert len(set(measure.NAMES)) == len(measure.NAMES) == len(measure.NUMBERS)
    assert all(doc for _, _, doc in measure.NUMBERS)
    assert measure.NUMBERS[-len(HEADER_NUMBERS) :] == HEADER_NUMBERS


def test_pack_puts_numbers_in_their_place():
    packed = measure.pack({"fwhm": 1.25, "noise": math.inf})
    assert packed.dtype == np.float32
    assert packed[measure.NAMES.index("fwhm")] == np.float32(1.25)
    assert np.isnan(packed).sum() == len(packed) - 1


def test_pack_refuses_unknown_names():
    with pytest.raises(KeyError):
        measure.pack({"no_such_number": 1.0})


def test_a_good_image_has_every_measured_number():
    numbers = numbers_of(make_image())
    unknown = [name for name, _, _ in measure.MEASURED if not math.isfinite(numbers[name])]
    assert unknown == []


def test_values_of_a_good_image(good):
    expected = {
        "sky_rate": (4.0, 0.02),
        "sky_ratio": (1.0, 0.01),
        "noise": (10.15, 0.3),
        "noise_ratio": (1.0, 0.03),
        "fwhm_px": (4.71, 0.1),
        "fwhm": (4.71 * 0.263, 0.03),
        "row_noise": (1.0, 0.12),
        "col_noise": (1.0, 0.12),
        "amp_noise_left": (1.0, 0.05),
        "exptime": (2.0, 1e-5),
        "zero_point_offset": (0.0, 1e-6),
        "depth": (25 - 2.5 * math.log10(5 * 0.1015 * math.sqrt(4 * math.pi) * 2), 0.05),
        "masked_share": (0.0, 0.0),
    }
    for name, (value, tolerance) in expected.items():
        assert good[name][0] == pytest.approx(value, abs=tolerance + 1e-9), name


def half_step(image):
    image[:, 128:] += 3
    return image


def stripes(image):
    return image + (4 * np.sin(2 * np.pi * np.arange(512) / 20)).astype(np.float32)[:, None]


def column_stripes(image):
    return image + (4 * np.sin(2 * np.pi * np.arange(256) / 12)).astype(np.float32)[None, :]


def hatch(image):
    y, x = np.mgrid[0:512, 0:256]
    return image + (3 * np.sin(2 * np.pi * (x + y) / 30)).astype(np.float32)


def row_jitter(image):
    return image + np.random.default_rng(3).normal(0, 4, (512, 1)).astype(np.float32)


def glowing_edge(image):
    return image + (30 * np.exp(-np.arange(256) / 12)).astype(np.float32)[None, :]


def dark_edge(image):
    return image - (30 * np.exp(-np.arange(512) / 12)).astype(np.float32)[:, None]


def ghost(image):
    y, x = np.mgrid[0:512, 0:256]
    return image + np.where(np.hypot(y - 200, x - 100) < 70, 8, 0).astype(np.float32)


def mottle(image):
    y, x = np.mgrid[0:512, 0:256]
    return image + (5 * np.sin(2 * np.pi * x / 120) * np.sin(2 * np.pi * y / 150)).astype(np.float32)


def slope(image):
    return image + np.linspace(-6, 6, 512, dtype=np.float32)[:, None]


def column_slope(image):
    return image + np.linspace(-6, 6, 256, dtype=np.float32)[None, :]


def hot_pixels(image):
    image.ravel()[::50] += 500
    return image


def cold_pixels(image):
    image.ravel()[::50] -= 300
    return image


def bleed(image):
    image[:, 100:104] = 45000
    return image


def dead_rows(image):
    image[:40] = 400
    return image


def unknown_pixels(image):
    image[:50] = np.nan
    return image


@pytest.mark.parametrize(
    ("defect", "name", "sign"),
    [
        (half_step, "amp_step_sky", 1),
        (half_step, "amp_difference", 1),
        (half_step, "amp_step_noise", 1),
        (stripes, "row_period_power", 1),
        (stripes, "row_amp_correlation", 1),
        (stripes, "row_wave", 1),
        (column_stripes, "col_period_power", 1),
        (column_stripes, "col_wave", 1),
        (hatch, "pattern_power", 1),
        (row_jitter, "row_noise", 1),
        (glowing_edge, "edge_excess", 1),
        (dark_edge, "edge_deficit", -1),
        (ghost, "map_high", 1),
        (mottle, "scatter_8", 1),
        (mottle, "map_rms", 1),
        (slope, "gradient_row", 1),
        (slope, "gradient", 1),
        (column_slope, "gradient_col", 1),
        (slope, "quadrant_spread", 1),
        (hot_pixels, "tail_above", 1),
        (cold_pixels, "tail_below", 1),
        (bleed, "bleed_columns", 1),
        (bleed, "saturated_share", 1),
        (dead_rows, "constant_rows", 1),
        (unknown_pixels, "not_finite_share", 1),
    ],
)
def test_a_defect_moves_its_number(good, defect, name, sign):
    numbers = numbers_of(defect(make_image(11)))
    assert stands_out(numbers, good, name, sign), (numbers[name], good[name])


def test_periods_are_those_of_the_stripes():
    assert numbers_of(stripes(make_image(11)))["row_period"] == pytest.approx(20, rel=0.05)
    assert numbers_of(column_stripes(make_image(11)))["col_period"] == pytest.approx(12, rel=0.05)
    assert numbers_of(hatch(make_image(11)))["pattern_wavelength"] == pytest.approx(30 / math.sqrt(2), rel=0.1)


def test_sky_and_noise_against_expectation(good):
    numbers = numbers_of(make_image(11, level=2000.0))
    assert numbers["sky_ratio"] == pytest.approx(5, rel=0.01)
    assert numbers["noise_ratio"] == pytest.approx(1, abs=0.04)
    assert numbers_of(make_image(11, noise=1.5))["noise_ratio"] == pytest.approx(1.5, abs=0.06)


def test_one_noisy_amplifier():
    image = make_image(11, stars=0)
    image[:, 128:] += np.random.default_rng(1).normal(0, 15, (512, 128)).astype(np.float32)
    numbers = numbers_of(image)
    assert numbers["amp_noise_left"] == pytest.approx(1, abs=0.06)
    assert numbers["amp_noise_right"] > 1.6


def test_clouds_lower_the_source_count(good):
    numbers = numbers_of(make_image(11, stars=6))
    for name in ("sources", "bright_sources", "source_excess"):
        assert stands_out(numbers, good, name, -1), name
    assert stands_out(numbers, good, "empty_share", 1, 3)


def test_bad_seeing_is_shallow(good):
    numbers = numbers_of(make_image(11, sigma=4.0))
    assert numbers["fwhm"] == pytest.approx(4.0 * 2.355 * 0.263, rel=0.06)
    assert stands_out(numbers, good, "shallowness", 1)
    assert stands_out(numbers, good, "depth", -1)


def test_masked_share_and_mask_problem():
    masked = np.zeros((512, 256), bool)
    masked[:128] = True
    numbers = numbers_of(make_image(), masked, make_facts(mask_problem="everything masked"))
    assert numbers["masked_share"] == pytest.approx(0.25)
    assert numbers["mask_problem"] == 1


def test_a_mask_over_everything_is_not_believed():
    numbers = numbers_of(make_image(), np.ones((512, 256), bool))
    assert numbers["sky_rate"] == pytest.approx(4, rel=0.01)
    assert math.isfinite(numbers["fwhm"])


@pytest.mark.parametrize("value", [0.0, 400.0, -3.0, 65000.0])
def test_a_constant_frame_is_measured(value):
    numbers = numbers_of(np.full((512, 256), value, np.float32))
    assert numbers["is_constant"] == 1
    assert numbers["constant_rows"] == 1
    assert numbers["noise"] == 0
    assert failure_of(np.full((512, 256), value, np.float32), 16) == 0


def test_one_finite_pixel_is_enough_not_to_crash():
    image = np.full((64, 48), np.nan, np.float32)
    image[30, 20] = 7.0
    assert failure_of(image, 16) == 0
    assert numbers_of(image)["sky_level"] == 7.0


@pytest.mark.parametrize("fill", [1e30, -1e30, 3e38])
def test_absurd_values_do_not_crash(fill):
    image = make_image(shape=(80, 60), stars=3)
    image[::7, ::5] = fill
    assert numbers_of(image)["sky_level"] == pytest.approx(400, abs=3)


@pytest.mark.parametrize("shape", [(16, 16), (30, 30), (51, 41), (375, 280), (100, 2000), (2100, 40)])
def test_any_size_is_measured(shape):
    numbers = numbers_of(make_image(shape=shape, stars=4))
    assert numbers["sky_level"] == pytest.approx(400, abs=6)
    assert numbers["noise_ratio"] == pytest.approx(1, abs=0.25)


def test_unknown_facts_leave_numbers_unknown():
    facts = make_facts(exptime=math.nan, zpt=math.nan, ccdzpt=math.nan, sky_rate=math.nan, amplifiers=())
    numbers = numbers_of(make_image(), facts=facts)
    for name in ("sky_rate", "sky_ratio", "depth", "zero_point", "amp_step_sky", "exptime"):
        assert math.isnan(numbers[name]), name
    assert math.isfinite(numbers["fwhm"])


def test_header_zero_point_serves_when_the_table_has_none():
    facts = make_facts(zpt=math.nan, ccdzpt=math.nan, header={"header_zero_point": 26.0})
    assert numbers_of(make_image(), facts=facts)["zero_point"] == 26.0


def test_sky_subtracted_images_stay_finite():
    numbers = numbers_of(make_image(stars=20) - 400)
    assert abs(numbers["gradient"]) < 0.1
    assert abs(numbers["amp_step_sky"]) < 0.1


def test_turning_the_image_swaps_rows_and_columns():
    image = slope(make_image(5))
    facts = make_facts(amplifiers=())
    straight, turned = numbers_of(image, facts=facts), numbers_of(np.ascontiguousarray(image.T), facts=facts)
    assert straight["gradient_row"] == pytest.approx(turned["gradient_col"], abs=2e-3)
    assert straight["fwhm"] == pytest.approx(turned["fwhm"], rel=0.02)
    assert straight["e1"] == pytest.approx(-turned["e1"], abs=0.01)


def test_split_column():
    two = [Region(0, 10, 0, 6), Region(0, 10, 6, 12)]
    assert measure.split_column(two, 12) == 6
    assert measure.split_column(two[:1], 12) == 12
    assert measure.split_column([], 12) == 12


@pytest.mark.parametrize(
    ("image", "failure"),
    [
        (np.zeros((10, 100), np.float32), "wrong_shape"),
        (np.zeros((100, 15), np.float32), "wrong_shape"),
        (np.full((50, 50), np.nan, np.float32), "all_not_finite"),
        (np.full((50, 50), np.inf, np.float32), "all_not_finite"),
    ],
)
def test_images_that_cannot_be_looked_at(image, failure):
    assert failure_of(image, 16) == BIT[failure]


def test_real_cutouts_are_measured(shared_data):
    """Good real exposures (README there): FWHM of 0.7 to 1.6 arcsec, noise near the expected."""
    paths = sorted((shared_data / "real" / "legacypipe_tests").rglob("*oo[ik]*.fits*"))
    assert len(paths) >= 10
    seen = []
    for path in paths:
        with fits.open(path) as hdus:
            for hdu in hdus:
                if hdu.data is None or getattr(hdu.data, "ndim", 0) != 2 or hdu.data.dtype.names:
                    continue
                image = np.ascontiguousarray(hdu.data, np.float32)
                facts = dataclasses.replace(make_facts(image.shape), exptime=math.nan, amplifiers=())
                seen.append(numbers_of(image, facts=facts))
    assert all(math.isfinite(one["sky_level"]) and math.isfinite(one["noise"]) for one in seen)
    widths = np.array([one["fwhm"] for one in seen])
    # Most of the cut-outs are too small to hold three stars.
    assert np.isfinite(widths).sum() >= 4
    assert 0.6 < np.nanmedian(widths) < 2.0
