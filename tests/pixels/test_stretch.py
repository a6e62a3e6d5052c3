import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.kernels import kernel
from hpcqa.pixels.floatbits import exponent, significand
from hpcqa.pixels.stretch import _asinh_sizes, _halves, relative_halves, stretch


@kernel
def _taken_apart(number):
    return significand(number), exponent(number)


@given(st.floats(2.0**-126, 2.0**120, width=32))
def test_a_number_is_its_significand_times_a_power_of_two(number):
    rest, power = _taken_apart(np.float32(number))
    assert 0.7071067 <= rest <= 1.4142136
    assert rest * 2.0**power == number


def test_asinh_is_exact_to_float32():
    z = np.concatenate([np.linspace(0, 3, 100001), 10.0 ** np.linspace(-6, 14, 100001)]).astype(np.float32)
    found = np.empty_like(z)
    _asinh_sizes(z, np.float32(1), found)
    expected = np.arcsinh(z.astype(float))
    assert (np.abs(found - expected) <= 1.5e-7 * np.maximum(expected, 1)).all()


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
    sizes = np.array(values, np.float32)
    signs, found = np.full_like(sizes, -1.0 if negative else 1.0), np.empty(sizes.size, np.uint16)
    _halves(sizes, signs, found)
    assert np.array_equal(found, np.copysign(sizes, signs).astype(np.float16).view(np.uint16))


def test_relative_halves_are_numpys():
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, (40, 50)) * 10 ** rng.uniform(-9, 7, (40, 50))).astype(np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, 3.0
    expected = np.clip((values - np.float32(3)) / np.float32(7), -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(relative_halves(values, 3.0, 7.0), expected)
