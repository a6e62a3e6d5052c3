"""Reading and scanning in one pass gives what both give one after the other."""

import numpy as np
import pytest
from astropy.io import fits

from hpcqa.errors import DataError
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.fitsbytes import Room
from hpcqa.pixels.scan import Sums, scan
from hpcqa.pixels.sky import rows_apart

FACTS = {"level": 300.0, "noise": 10.0, "split": 30, "saturation": 4e4}


def write(path, image, **changes):
    settings = {"compression_type": "RICE_1", "quantize_level": 4, "tile_shape": (1, image.shape[1])} | changes
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, name="S29", **settings)]).writeto(path)
    return path


@pytest.fixture(params=[(4090, 60), (300, 60)])
def image(request):
    rng = np.random.default_rng(1)
    image = rng.normal(300, 10, request.param).astype(np.float32)
    image[rng.integers(0, len(image), 60), rng.integers(0, 60, 60)] += 3000
    image[17] = 5.0  # cannot be quantised: stored in another way
    image[40, 7] = np.nan
    return image


def same(found, expected):
    for name in ("mean", "count", "row_mean", "row_count", "col_mean", "col_count", "saturated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    numbers = ("step", "constant_rows", "num_masked", "num_valid")
    assert [getattr(found, name) for name in numbers] == [getattr(expected, name) for name in numbers]


@pytest.mark.parametrize("every", [2, 3, 16, 5000])
def test_in_one_pass_or_in_two(tmp_path, image, every):
    masked = np.zeros(image.shape, bool)
    masked[100:120, 10:20] = True
    with open_exposure(write(tmp_path / "a.fits.fz", image)) as exposure:
        hdu = exposure.images[0]
        whole = exposure.read(hdu)
        out, room = np.full(image.shape, -1, np.float32), Room()
        pixels, rest = exposure.read_part(hdu, every, out, room)
        assert pixels is out
        np.testing.assert_array_equal(pixels[::every], whole[::every])
        assert (pixels[1] == -1).all()
        sums = Sums.begin(image.shape, **FACTS)
        rest.scan(masked, masked.sum(axis=1, dtype=np.int32), sums)
        np.testing.assert_array_equal(pixels, whole)
        same(sums.finish(), scan(whole, masked, **FACTS))
        pixels[:] = -1
        pixels, rest = exposure.read_part(hdu, every, out, room)
        rest.read()
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("changes", [{"tile_shape": (4, 60)}, {"tile_shape": (1, 20)}, {"compression_type": "GZIP_1"}])
def test_other_tiles_are_read_at_once(tmp_path, image, changes):
    with open_exposure(write(tmp_path / "a.fits.fz", image, **changes)) as exposure:
        pixels, rest = exposure.read_part(exposure.images[0], 16)
        assert rest is None
        np.testing.assert_array_equal(pixels, exposure.read(exposure.images[0]))


def test_nothing_is_left_where_every_row_is_needed(tmp_path, image):
    with open_exposure(write(tmp_path / "a.fits.fz", image)) as exposure:
        assert rows_apart((100, 50)) == 1
        assert exposure.read_part(exposure.images[0], 1)[1] is None


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_damaged_row_is_named(tmp_path, image, place):
    with open_exposure(write(tmp_path / "a.fits.fz", image)) as exposure:
        pixels, rest = exposure.read_part(exposure.images[0], 16)
        start, end, number = rest.coded.tiles[place, :3]
        rest.coded.data[start:end] = 0
        rest.coded.data[start + 4] = 0xFF  # plain values, of which there are not enough
        masked, in_row = np.zeros(pixels.shape, bool), np.zeros(len(pixels), np.int32)
        for work in (rest.read, lambda: rest.scan(masked, in_row, Sums.begin(pixels.shape, **FACTS))):
            with pytest.raises(DataError, match=f"tile {number} can't be decoded"):
                work()
