import io

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.simulate.compress import compress_floats, compress_integers
from hpcqa.simulate.fitsfile import card, write

SHAPE = (37, 130)


def both(path):
    with fits.open(path) as file:
        by_astropy = file[1].data.copy()
    return by_astropy, fitsio.read(str(path), ext=1)


def noise(seed=1, shape=SHAPE):
    return np.random.default_rng(seed).normal(300, 7, shape).astype(np.float32)


def test_floats_come_back_within_half_a_quantum_in_both_libraries(tmp_path):
    image = noise()
    pixels = compress_floats(image, dither_seed=77)
    write(tmp_path / "a.fits.fz", [], [([("EXTNAME", "N1", "")], pixels)])
    by_astropy, by_fitsio = both(tmp_path / "a.fits.fz")
    quantum = pixels.scale[:, None]
    assert np.all(np.abs(by_astropy - image) <= 0.5001 * quantum + 1e-4)
    np.testing.assert_array_equal(by_astropy, by_fitsio)
    assert np.median(quantum) == pytest.approx(7 / 4, rel=0.1)


def test_same_integers_as_astropy_writes(tmp_path):
    # Reading astropy's own file of the same image must give as good a copy; ours may differ in the noise estimate only.
    image = noise(2)
    pixels = compress_floats(image, dither_seed=5)
    hdu = fits.CompImageHDU(image, compression_type="RICE_1", tile_shape=(1, 130), quantize_level=4, quantize_method=1)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    theirs = fits.open(io.BytesIO(stream.getvalue()), disable_image_compression=True)[1].data["ZSCALE"]
    assert np.median(pixels.scale / theirs) == pytest.approx(1, rel=0.1)


def test_constant_rows_nans_and_huge_values(tmp_path):
    image = noise(3)
    image[4] = 12.5
    image[7, 20:30] = np.nan
    image[9] = np.nan
    image[11, 5] = 3e4
    write(tmp_path / "a.fits.fz", [], [([("EXTNAME", "N1", "")], compress_floats(image))])
    by_astropy, by_fitsio = both(tmp_path / "a.fits.fz")
    np.testing.assert_array_equal(by_astropy[4], image[4])
    np.testing.assert_array_equal(np.isnan(by_astropy), np.isnan(image))
    np.testing.assert_array_equal(np.isnan(by_fitsio), np.isnan(image))
    assert by_astropy[11, 5] == pytest.approx(3e4, abs=10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=9, max_size=100), st.integers(0, 31))
def test_any_integers_come_back_exactly(tmp_path_factory, values, shift):
    image = np.array([values, [value >> shift for value in values]], np.int64).astype(np.int32)
    path = tmp_path_factory.mktemp("rice") / "a.fits.fz"
    write(path, [], [([("EXTNAME", "N1", "")], compress_integers(image))])
    for back in both(path):
        np.testing.assert_array_equal(back, image)


def test_cards():
    assert card("EXPNUM", "123", "x") == b"EXPNUM  = '123     '           / x".ljust(80)
    assert card("A", True) == (b"A       = " + b"T".rjust(20)).ljust(80)
    assert fits.Card.fromstring(card("Q", "it's")).value == "it's"
    assert fits.Card.fromstring(card("F", 2.0)).value == 2.0
    assert fits.Card.fromstring(card("F", 1.5e-7)).value == 1.5e-7
    with pytest.raises(ValueError, match="does not fit"):
        card("LONG", "x" * 90)


def test_compression_is_the_same_every_time():
    assert compress_floats(noise()).heap == compress_floats(noise()).heap
