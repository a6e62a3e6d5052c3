"""The reader against astropy and fitsio: every format that a survey may hold, bit for bit."""

import warnings

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.pixels.fits import bin_image, open_exposure

FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(found, expected):
    """Bit for bit, with any NaN equal to any other."""
    expected = np.asarray(expected).astype(np.float32)
    assert found.dtype == np.float32
    assert found.dtype.isnative
    assert found.shape == expected.shape
    both_nan = np.isnan(found) & np.isnan(expected)
    assert np.array_equal(np.where(both_nan, 0, found.view(np.int32)), np.where(both_nan, 0, expected.view(np.int32)))


def write(path, *hdus):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)


def check(path, index=1):
    with open_exposure(path) as exposure, fits.open(path) as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = hdus[index].data
        hdu = exposure.find(index)
        same(exposure.read(hdu), expected)
        return exposure.read(hdu)


def image(seed, rows, cols, kind):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(300, 12, (rows, cols)).astype(np.float32)
    if "star" in kind:
        pixels[rng.integers(rows), rng.integers(cols)] = 4.0e4
    if "nan" in kind:
        pixels[rng.random((rows, cols)) < 0.1] = np.nan
    if "zero" in kind:
        pixels[rng.random((rows, cols)) < 0.1] = 0.0
    if "constant" in kind:
        pixels[rng.integers(rows)] = 7.5
    return pixels


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 40),
    cols=st.integers(1, 90),
    kind=st.sets(st.sampled_from(["star", "nan", "zero", "constant"])),
    method=st.sampled_from([-1, 1, 2]),
    level=st.sampled_from([16.0, 4.0, 0.5, -0.01]),
    dither=st.sampled_from([1, 77, 9999, 10000]),
    tile=st.sampled_from([None, (1, 20), (7, 9), (16, 1000)]),
)
def test_quantised_floats_written_by_astropy(tmp_path, seed, rows, cols, kind, method, level, dither, tile):
    pixels = image(seed, rows, cols, kind)
    shape = None if tile is None else (min(tile[0], rows), min(tile[1], cols))
    hdu = fits.CompImageHDU(
        pixels,
        compression_type="RICE_1",
        quantize_level=level,
        quantize_method=method,
        dither_seed=dither,
        tile_shape=shape,
        name="N1",
    )
    write(tmp_path / "a.fits.fz", hdu)
    found = check(tmp_path / "a.fits.fz")
    with open_exposure(tmp_path / "a.fits.fz") as exposure:
        hdu = exposure.images[0]
        for step in (1, 3, 8):
            expected = bin_image(found, step)
            assert np.array_equal(exposure.read_binned(hdu, step), expected, equal_nan=True)


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 40),
    cols=st.integers(4, 90),
    method=st.sampled_from([-1, 1, 2]),
    kind=st.sets(st.sampled_from(["star", "nan", "zero", "constant"])),
)
def test_quantised_floats_written_by_fitsio(tmp_path, seed, rows, cols, method, kind):
    pixels = image(seed, rows, cols, kind)
    path = tmp_path / "a.fits.fz"
    path.unlink(missing_ok=True)
    with fitsio.FITS(str(path), "rw") as file:
        file.write(
            pixels, extname="N1", compress="RICE", qlevel=4, qmethod={-1: None, 1: 1, 2: 2}[method], dither_seed=5
        )
    check(path)
    with open_exposure(path) as exposure, fitsio.FITS(str(path)) as file:
        same(exposure.read(exposure.images[0]), file["N1"].read())


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 30),
    cols=st.integers(1, 70),
    kind=st.sampled_from(["u1", "i2", "i4"]),
    span=st.sampled_from([1, 9, 120, 2**15, 2**31]),
    codec=st.sampled_from(["RICE_1", "GZIP_1", "GZIP_2"]),
)
def test_integer_images(tmp_path, seed, rows, cols, kind, span, codec):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    low, high = max(-span, int(limits.min)), min(span, int(limits.max))
    pixels = rng.integers(low, high, (rows, cols), endpoint=True).astype(kind)
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type=codec))
    check(tmp_path / "a.fits.fz")
    with open_exposure(tmp_path / "a.fits.fz") as exposure:
        found = exposure.read_integer(exposure.images[0])
        assert found.dtype == np.int32
        assert np.array_equal(found, pixels)


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 30),
    cols=st.integers(1, 70),
    kind=st.sampled_from(["i1", "u2", "u4"]),
    middle=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    span=st.sampled_from([1, 120, 2**15, 2**31]),
)
def test_integers_with_the_other_sign_are_ours(tmp_path, monkeypatch, seed, rows, cols, kind, middle, span):
    limits = np.iinfo(kind)
    start = int(limits.min) + int(middle * (int(limits.max) - int(limits.min)))
    low, high = max(start - span, int(limits.min)), min(start + span, int(limits.max))
    pixels = np.random.default_rng(seed).integers(low, high, (rows, cols), endpoint=True).astype(kind)
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type="RICE_1"))
    with monkeypatch.context() as patch:
        patch.setattr("hpcqa.pixels.fits.read_apart", None)
        check(tmp_path / "a.fits.fz")
        with open_exposure(tmp_path / "a.fits.fz") as exposure:
            hdu = exposure.images[0]
            assert exposure.read_codes(hdu) is None
            if pixels.max() < 2**31:
                assert np.array_equal(exposure.read_integer(hdu), pixels)
            else:
                with pytest.raises(DataError, match="32 bits"):
                    exposure.read_integer(hdu)


@FAST
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 30),
    cols=st.integers(1, 300),
    share=st.sampled_from([0.0, 1e-3, 0.05, 0.9]),
    code=st.sampled_from([1, 63, 64, 255, 256, -1]),
    runs=st.booleans(),
)
def test_masks_are_read_as_bytes(tmp_path, seed, rows, cols, share, code, runs):
    rng = np.random.default_rng(seed)
    pixels = np.where(rng.random((rows, cols)) < share, rng.choice([3, code], (rows, cols)), 0).astype("i4")
    if runs:
        pixels[:, cols // 3 : cols // 2] = code
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type="RICE_1"))
    with open_exposure(tmp_path / "a.fits.fz") as exposure:
        hdu = exposure.images[0]
        found = exposure.read_codes(hdu)
        assert np.array_equal(exposure.read_integer(hdu), pixels)
    if pixels.min() < 0 or pixels.max() > 255:
        assert found is None
    else:
        assert np.array_equal(found[0], pixels)
        assert np.array_equal(found[1], np.unique(pixels))


def test_tiles_of_several_rows_and_real_numbers_are_no_bytes(tmp_path):
    pixels = np.zeros((12, 20), "i4")
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type="RICE_1", tile_shape=(3, 20)))
    write(tmp_path / "b.fits.fz", fits.CompImageHDU(pixels.astype("f4"), compression_type="RICE_1"))
    for name in ("a", "b"):
        with open_exposure(tmp_path / f"{name}.fits.fz") as exposure:
            assert exposure.read_codes(exposure.images[0]) is None


@pytest.mark.parametrize("codec", ["PLIO", "HCOMPRESS"])
def test_codecs_of_masks_written_by_fitsio(tmp_path, codec):
    """Astropy's own writer of PLIO_1 and HCOMPRESS_1 fails on odd shapes, so cfitsio writes them here."""
    pixels = np.random.default_rng(1).integers(0, 9, (32, 64)).astype("i4")
    with fitsio.FITS(str(tmp_path / "a.fits.fz"), "rw") as file:
        file.write(pixels, extname="N1", compress=codec, tile_dims=(16, 64) if codec == "HCOMPRESS" else None)
    check(tmp_path / "a.fits.fz")
    with open_exposure(tmp_path / "a.fits.fz") as exposure:
        assert np.array_equal(exposure.read_integer(exposure.images[0]), pixels)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8", "f4", "f8", "u2", "u4", ">f4", "<f4", ">i2"])
@pytest.mark.parametrize("place", ["primary", "extension"])
def test_uncompressed(tmp_path, kind, place):
    pixels = (np.random.default_rng(3).normal(300, 80, (33, 21)).clip(0, 255)).astype(kind)
    path = tmp_path / "a.fits"
    if place == "primary":
        fits.PrimaryHDU(pixels).writeto(path)
    else:
        write(path, fits.ImageHDU(pixels, name="S1"))
    check(path, 0 if place == "primary" else 1)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("scale", "zero"), [(0.5, 100.0), (2.0, 0.0), (1.0, 32768.0), (1.0, 7.0)])
@pytest.mark.parametrize("kind", ["i2", "i4"])
def test_scaled_integers(tmp_path, compressed, scale, zero, kind):
    pixels = np.random.default_rng(3).integers(-3000, 3000, (20, 31)).astype(kind)
    hdu = fits.CompImageHDU(pixels) if compressed else fits.ImageHDU(pixels)
    write(tmp_path / "a.fits", hdu)
    with fits.open(tmp_path / "a.fits", mode="update", do_not_scale_image_data=True) as hdus:
        hdus[1].header["BSCALE"], hdus[1].header["BZERO"] = scale, zero
    check(tmp_path / "a.fits")


@pytest.mark.parametrize("compressed", [False, True])
def test_blank_integers_become_nan(tmp_path, compressed):
    pixels = np.random.default_rng(3).integers(0, 50, (20, 31)).astype("i2")
    pixels[3, 4] = -999
    hdu = fits.CompImageHDU(pixels) if compressed else fits.ImageHDU(pixels)
    hdu.header["BLANK"] = -999
    write(tmp_path / "a.fits", hdu)
    found = check(tmp_path / "a.fits")
    assert np.isnan(found[3, 4])
    assert np.isfinite(found).sum() == found.size - 1


@pytest.mark.parametrize("codec", ["GZIP_1", "GZIP_2"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_other_codecs_of_floats(tmp_path, codec, kind):
    pixels = image(5, 32, 48, {"star"}).astype(kind)
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type=codec, quantize_level=4))
    check(tmp_path / "a.fits.fz")


def test_lossless_gzip_and_doubles(tmp_path):
    pixels = image(5, 32, 48, {"nan"}).astype("f8")
    write(tmp_path / "a.fits.fz", fits.CompImageHDU(pixels, compression_type="GZIP_2", quantize_level=0))
    check(tmp_path / "a.fits.fz")
    write(tmp_path / "b.fits.fz", fits.CompImageHDU(pixels, compression_type="RICE_1", quantize_level=8))
    check(tmp_path / "b.fits.fz")


def test_whole_file_gzipped(tmp_path):
    write(tmp_path / "a.fits.gz", fits.ImageHDU(image(1, 20, 30, set()), name="N4"))
    check(tmp_path / "a.fits.gz")


def test_large_offsets_use_wide_descriptors(tmp_path):
    """Files over 2 GB have 64-bit descriptors ('1QB'); the table is rewritten here as they have it."""
    pixels = image(1, 12, 30, {"constant", "nan"})
    hdu = fits.CompImageHDU(pixels, compression_type="RICE_1", quantize_level=4, name="N4")
    narrow = tmp_path / "narrow.fits.fz"
    write(narrow, hdu)
    with fits.open(narrow, disable_image_compression=True) as hdus:
        header, table = hdus[1].header.copy(), hdus[1]
        raw = narrow.read_bytes()[hdus.fileinfo(1)["datLoc"] :]
        heap_at = header["NAXIS1"] * header["NAXIS2"]
        heap = raw[heap_at : heap_at + header["PCOUNT"]]
        rows = np.frombuffer(raw[:heap_at], np.uint8).reshape(header["NAXIS2"], -1)
        parts, offset = [], 0
        for i in range(1, header["TFIELDS"] + 1):
            form = header[f"TFORM{i}"]
            pair = "P" in form
            width = 8 if pair else table.columns[i - 1].dtype.itemsize
            field = np.ascontiguousarray(rows[:, offset : offset + width])
            parts.append(field.view(">i4").astype(">i8").view(np.uint8) if pair else field)
            if pair:
                header[f"TFORM{i}"] = form.replace("P", "Q")
            offset += width
    wide = np.concatenate(parts, axis=1)
    header["NAXIS1"] = wide.shape[1]
    data = wide.tobytes() + heap
    blob = fits.PrimaryHDU().header.tostring().encode() + header.tostring().encode() + data
    path = tmp_path / "wide.fits.fz"
    path.write_bytes(blob + b"\x00" * (-len(blob) % 2880))
    with open_exposure(path) as exposure:
        found = exposure.read(exposure.images[0])
    same(found, check(narrow))


def test_rice_images_never_go_through_astropy(tmp_path, monkeypatch):
    hdus = [
        fits.CompImageHDU(
            image(1, 20, 30, {"nan", "constant"}), quantize_level=4, quantize_method=2, tile_shape=(4, 8)
        ),
        fits.CompImageHDU(np.arange(600, dtype="i2").reshape(20, 30)),
        fits.ImageHDU(image(1, 20, 30, set())),
    ]
    write(tmp_path / "a.fits", *hdus)
    monkeypatch.setattr("hpcqa.pixels.fits.read_with_astropy", None)
    with open_exposure(tmp_path / "a.fits") as exposure:
        for hdu in exposure.images:
            assert exposure.read(hdu).shape == (20, 30)
