"""astropy's codecs in a process apart: what kills or holds it is one image's failure."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from astropy.io import fits

from hpcqa.errors import DataError
from hpcqa.pixels import fitsapart
from hpcqa.pixels.fits import open_exposure

PIXELS = np.random.default_rng(1).normal(300, 10, (24, 40)).astype("i4")


@pytest.fixture
def path(tmp_path):
    """Two images that astropy decodes."""
    path = tmp_path / "a.fits"
    images = [fits.CompImageHDU(PIXELS + k, compression_type="HCOMPRESS_1") for k in range(2)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(path)
    return path


def hostile(path):
    """A tile that says of itself that it has no columns, by which astropy divides."""
    raw = bytearray(path.read_bytes())
    with open_exposure(path) as file:
        hdu = file.images[0]
    heap = hdu.data_offset + hdu.header["NAXIS1"] * hdu.header["NAXIS2"]
    assert raw[heap + 6 : heap + 10] == (40).to_bytes(4, "big")
    raw[heap + 6 : heap + 10] = bytes(4)
    path.write_bytes(raw)


def test_a_crash_is_a_damaged_image_and_the_next_is_read(path):
    hostile(path)
    with open_exposure(path) as file:
        for _ in range(2):
            with pytest.raises(DataError, match=r"a\.fits\[1\]: can't be decoded: astropy crashed or did not end"):
                file.read(file.images[0])
            np.testing.assert_array_equal(file.read(file.images[1]), PIXELS + 1)


def test_a_codec_that_does_not_end_is_ended(path, monkeypatch):
    monkeypatch.setattr(fitsapart, "_PATIENCE", 0.0)
    with open_exposure(path) as file, pytest.raises(DataError, match="did not end"):
        file.read(file.images[0])


def test_processes_are_used_again_and_end(path):
    with open_exposure(path) as file:
        file.read(file.images[0])
        idle = list(fitsapart._idle)
        file.read(file.images[1])
        assert fitsapart._idle == idle
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(file.read, [*file.images] * 4))
    np.testing.assert_array_equal(found, [PIXELS, PIXELS + 1] * 4)
    last = fitsapart._idle[-1]._process
    fitsapart._close_idle()
    assert fitsapart._idle == []
    assert last.poll() is not None


def test_an_image_that_cannot_be_read_is_told_in_words(path):
    raw = path.read_bytes().replace(b"'HCOMPRESS_1'", b"'NOSUCH'     ", 1)
    path.write_bytes(raw)
    with open_exposure(path) as file:
        with pytest.raises(DataError, match="NOSUCH"):
            file.read(file.images[0])
        assert fitsapart._idle
        np.testing.assert_array_equal(file.read(file.images[1]), PIXELS + 1)


def test_what_astropy_prints_is_no_answer(path):
    """A process that is asked nothing more ends by itself, and its standard output holds answers only."""
    with open_exposure(path) as file:
        file.read(file.images[0])
    process = fitsapart._idle.pop()._process
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.wait(20) == 0
