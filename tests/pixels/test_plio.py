"""The line lists of masks: against astropy's C functions, and hostile ones."""

import warnings

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.hdu.compressed._compression import compress_plio_1_c, decompress_plio_1_c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.pixels import plio
from hpcqa.pixels.fits import open_exposure

FAST = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GUARD = 77


def encode(values):
    """The big-endian words of a list, as they stand in a file.

    Zeros follow the values: astropy's encoder writes some lists beyond its own buffer, which grows with their number.
    """
    padded = np.concatenate([values, np.zeros(8 * values.size + 64, values.dtype)]).astype("i4")
    return np.frombuffer(compress_plio_1_c(padded.tobytes(), padded.size), "<i2").astype(">i2").tobytes()


def decode(words, num, before=b"", after=b""):
    data = np.frombuffer(before + words + after, np.uint8)
    out = np.full(num + 8, GUARD, np.int32)
    good = plio.decode_tile(data, len(before), len(before) + len(words), num, out)
    assert (out[num:] == GUARD).all(), "written behind the end"
    return good, out[:num]


def runs(seed, num, top):
    """Values in runs, as masks have them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, rng.choice([2, 5, 60]), num)
    values = np.repeat(np.where(rng.random(num) < 0.5, 0, rng.integers(0, top + 1, num)), lengths)
    return values[:num].astype(np.int32)


@FAST
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 400), top=st.sampled_from([1, 8, 4095, 4096, 40000, 2**23]))
def test_what_was_encoded_is_decoded(seed, num, top):
    values = runs(seed, num, top)
    good, found = decode(encode(values), num, before=b"\xff" * 3, after=b"\xff" * 5)
    assert good
    assert np.array_equal(found, values)
    native = np.frombuffer(encode(values), ">i2").astype("<i2").tobytes()
    assert np.array_equal(found, np.frombuffer(decompress_plio_1_c(native, num), "i4"))


@FAST
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 400), share=st.floats(0, 1))
def test_the_first_values_alone(seed, num, share):
    values, some = runs(seed, num, 9), int(share * num)
    good, found = decode(encode(values), some)
    assert good
    assert np.array_equal(found, values[:some])


@pytest.mark.parametrize("num", [4095, 4096, 9000])
def test_runs_longer_than_an_instruction(num):
    for value in (0, 3):
        good, found = decode(encode(np.full(num, value)), num)
        assert good
        assert (found == value).all()


def test_lists_with_the_old_header():
    """Before IRAF 2.12 the third word held the length, and instructions began at the fourth."""
    words = np.array([0, 0, 6, 3, 4 << 12 | 2, 6 << 12 | 4], ">i2").tobytes()
    good, found = decode(words, 7)
    assert good
    assert found.tolist() == [0, 0, 0, 1, 1, 5, 0]


@FAST
@given(noise=st.binary(max_size=200), num=st.integers(0, 300))
def test_noise_is_decoded_or_refused(noise, num):
    decode(noise, num, after=b"\x11" * 3)


@FAST
@given(words=st.lists(st.integers(-(2**15), 2**15 - 1), max_size=60), num=st.integers(0, 300))
def test_hostile_lists_stay_inside(words, num):
    """Instructions of every kind behind a header that is right."""
    length = len(words) + 7
    header = [0, 7, -100, length & 0x7FFF, length >> 15, 0, 0]
    decode(np.array(header + words, ">i2").tobytes(), num)


@pytest.mark.parametrize(
    "header",
    [
        [],
        [0, 0],
        [0, 7, -100],
        [0, 7, -100, 9, 0, 0, 0],
        [0, 7, -100, 7, 1, 0, 0],
        [0, -5, -100, 7, 0, 0, 0],
        [0, 9, -100, 8, 0, 0, 0, 0],
        [0, 0, 100],
        [0, 7, -100, 8, 0, 0, 0, 1 << 12],
    ],
)
def test_lists_that_contradict_themselves_are_refused(header):
    assert not decode(np.array(header, ">i2").tobytes(), 5)[0]


def write_mask(path, pixels, tile=None):
    path.unlink(missing_ok=True)
    with fitsio.FITS(str(path), "rw") as file:
        file.write(pixels, extname="N1", compress="PLIO", tile_dims=tile)


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 30),
    cols=st.integers(1, 90),
    kind=st.sampled_from(["u1", "i2", "i4"]),
    tile=st.sampled_from([None, (1, 20), (5, 9), (30, 90)]),
)
def test_files_are_read_as_astropy_reads_them(tmp_path, seed, rows, cols, kind, tile):
    pixels = runs(seed, rows * cols, 100 if kind == "u1" else 5000).reshape(rows, cols).astype(kind)
    path = tmp_path / "a.fits.fz"
    write_mask(path, pixels, tile and (min(tile[0], rows), min(tile[1], cols)))
    with open_exposure(path) as exposure, fits.open(path) as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdu = exposure.images[0]
        assert hdus[1].compression_type == "PLIO_1"
        found = exposure.read_integer(hdu)
        assert np.array_equal(found, hdus[1].data)
        assert np.array_equal(found, pixels)
        assert np.array_equal(exposure.read(hdu), pixels.astype(np.float32))


def test_masks_never_go_through_astropy(tmp_path, monkeypatch):
    pixels = runs(1, 600, 8).reshape(20, 30)
    write_mask(tmp_path / "a.fits.fz", pixels)
    monkeypatch.setattr("hpcqa.pixels.fits.read_with_astropy", None)
    with open_exposure(tmp_path / "a.fits.fz") as exposure:
        assert np.array_equal(exposure.read_integer(exposure.images[0]), pixels)


@FAST
@given(data=st.data())
def test_damaged_files_are_told_or_read(tmp_path, data):
    path = tmp_path / "a.fits.fz"
    write_mask(path, runs(3, 2000, 8).reshape(40, 50))
    raw = bytearray(path.read_bytes())
    with open_exposure(path) as exposure:
        start = exposure.images[0].data_offset
    for _ in range(data.draw(st.integers(1, 40))):
        raw[data.draw(st.integers(start, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with open_exposure(path) as exposure:
            assert exposure.read_integer(exposure.images[0]).shape == (40, 50)
    except DataError as problem:
        told = str(problem)
    else:
        told = path.name
    assert path.name in told
