"""Damaged and hostile files: the reader gives pixels or a DataError, never anything else, and always soon."""

import time
import warnings

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.pixels.fits import open_exposure

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def whole_file(path, kind):
    rng = np.random.default_rng(2)
    pixels = rng.normal(300, 10, (24, 40)).astype("f4")
    pixels[3] = 1.0
    pixels[5, 5] = np.nan
    hdus = {
        "rice": fits.CompImageHDU(pixels, quantize_level=4, name="N1"),
        "integers": fits.CompImageHDU(rng.integers(0, 9, (24, 40)).astype("i2"), name="N1"),
        "gzip": fits.CompImageHDU(pixels, compression_type="GZIP_1", quantize_level=0, name="N1"),
        "hcompress": fits.CompImageHDU(pixels, compression_type="HCOMPRESS_1", name="N1"),
        "unsigned": fits.CompImageHDU(rng.integers(0, 9, (24, 40)).astype("u2"), name="N1"),
        "plain": fits.ImageHDU(pixels, name="N1"),
    }
    fits.HDUList([fits.PrimaryHDU(), hdus[kind], fits.ImageHDU(pixels)]).writeto(path, overwrite=True)
    return bytearray(path.read_bytes())


def read_all(path):
    """Every way of reading every image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_exposure(path) as exposure:
            for hdu in exposure.images:
                assert exposure.read(hdu).shape == hdu.shape
                assert exposure.read_binned(hdu, 4).dtype == np.float32
                if hdu.integer:
                    exposure.read_integer(hdu)
                    exposure.read_codes(hdu)


def survives(path, raw):
    path.write_bytes(raw)
    start = time.monotonic()
    try:
        read_all(path)
        found = ""
    except DataError as problem:
        found = str(problem)
        assert path.name in found
        assert "\n" not in found
    assert time.monotonic() - start < 20
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    kinds = ("rice", "integers", "gzip", "hcompress", "unsigned", "plain")
    return {kind: bytes(whole_file(folder / f"{kind}.fits", kind)) for kind in kinds}


@MANY
@given(data=st.data(), kind=st.sampled_from(["rice", "integers", "gzip", "plain"]))
def test_flipped_bits(tmp_path, files, data, kind):
    raw = bytearray(files[kind])
    for _ in range(data.draw(st.integers(1, 30))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    survives(tmp_path / "a.fits", raw)


@MANY
@given(data=st.data(), kind=st.sampled_from(["rice", "integers", "gzip", "hcompress", "unsigned"]))
def test_damage_in_the_compressed_data(tmp_path, files, data, kind):
    """Most bits are in headers: here all damage is done to the tiles and their table."""
    raw = bytearray(files[kind])
    path = tmp_path / "a.fits"
    path.write_bytes(raw)
    with open_exposure(path) as exposure:
        hdu = exposure.images[0]
    for _ in range(data.draw(st.integers(1, 40))):
        raw[hdu.data_offset + data.draw(st.integers(0, hdu.data_size - 1))] = data.draw(st.integers(0, 255))
    survives(path, raw)


@MANY
@given(data=st.data(), kind=st.sampled_from(["rice", "plain", "gzip"]))
def test_pieces_lost_or_doubled(tmp_path, files, data, kind):
    raw = files[kind]
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    survives(tmp_path / "a.fits", raw[:first] + raw[last:])
    survives(tmp_path / "a.fits", raw[:last] + raw[first:])


HOSTILE = [
    ("ZNAXIS1", 2**31 - 1),
    ("ZNAXIS1", 10**15),
    ("ZNAXIS2", 10**9),
    ("ZNAXIS1", 0),
    ("ZNAXIS1", -5),
    ("ZNAXIS2", 23),
    ("ZTILE1", 0),
    ("ZTILE1", 1),
    ("ZTILE2", 10**12),
    ("ZBITPIX", 7),
    ("ZBITPIX", 16),
    ("ZVAL1", 0),
    ("ZVAL1", -32),
    ("ZVAL1", 10**9),
    ("ZVAL2", 8),
    ("ZVAL2", 3),
    ("ZDITHER0", 0),
    ("ZDITHER0", -7),
    ("ZDITHER0", 10**15),
    ("NAXIS1", 1),
    ("NAXIS1", 10**12),
    ("NAXIS2", 10**12),
    ("NAXIS2", 0),
    ("PCOUNT", 10**15),
    ("PCOUNT", 3),
    ("THEAP", 10**15),
    ("THEAP", -1),
    ("TFIELDS", 10**9),
    ("TFIELDS", 0),
    ("TFORM1", "'1PB(999)'"),
    ("TFORM1", "'9999999999PB'"),
    ("TFORM1", "'E'"),
    ("TTYPE1", "'NOTHING'"),
    ("ZCMPTYPE", "'NOSUCH'"),
    ("ZCMPTYPE", "'GZIP_1'"),
    ("ZQUANTIZ", "'ODD'"),
    ("ZBLANK", 10**20),
    ("BITPIX", 0),
    ("NAXIS", 10**6),
    ("NAXIS", -1),
    ("GCOUNT", 10**9),
    ("BSCALE", "'x'"),
    ("EXTNAME", 5),
    ("CCDNUM", "1E400"),
    ("NAXIS3", 10**9),
    ("ZNAXIS", 3),
    ("ZNAXIS", 10**12),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
@pytest.mark.parametrize("kind", ["rice", "integers"])
def test_hostile_headers(tmp_path, files, kind, key, value):
    raw = bytearray(files[kind])
    card = f"{key:<8}= {value:>20}".ljust(80)[:80].encode()
    start = raw.index(b"XTENSION")
    place = raw.find(f"{key:<8}=".encode(), start)
    if place < 0 or place > start + 5 * 2880:
        place = raw.index(b"END".ljust(80), start)
        raw[place + 80 : place + 160] = b"END".ljust(80)
    raw[place : place + 80] = card
    survives(tmp_path / "a.fits", raw)


def test_random_bytes_with_a_fits_beginning(tmp_path):
    rng = np.random.default_rng(5)
    for _ in range(50):
        raw = b"SIMPLE  =                    T".ljust(80) + rng.integers(0, 256, 9000, dtype=np.uint8).tobytes()
        assert "END" in survives(tmp_path / "a.fits", raw)


def test_descriptors_outside_the_heap_are_told(tmp_path, files):
    path = tmp_path / "a.fits"
    path.write_bytes(files["rice"])
    with open_exposure(path) as exposure:
        place = exposure.images[0].data_offset
    for size, offset in [(2**31 - 1, 0), (10, 2**31 - 1), (-5, 0), (5, -1), (2**31 - 1, 2**31 - 1)]:
        raw = bytearray(files["rice"])
        raw[place : place + 8] = np.array([size, offset], ">i4").tobytes()
        assert "outside the compressed data" in survives(path, raw)


def test_a_gzip_bomb_in_a_tile_is_refused(tmp_path):
    import gzip

    path = tmp_path / "a.fits"
    raw = whole_file(path, "rice")
    bomb = gzip.compress(bytes(200_000))
    with open_exposure(path) as exposure:
        hdu = exposure.images[0]
        names = [hdu.header[f"TTYPE{i}"] for i in range(1, hdu.header["TFIELDS"] + 1)]
        line = hdu.header["NAXIS1"]
        heap = hdu.data_offset + line * 24
    assert names[:2] == ["COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"]
    assert len(bomb) < hdu.data_size - line * 24
    raw[heap : heap + len(bomb)] = bomb
    first = hdu.data_offset
    raw[first : first + 16] = np.array([0, 0, len(bomb), 0], ">i4").tobytes()
    assert "more than an image can hold" in survives(path, raw)
