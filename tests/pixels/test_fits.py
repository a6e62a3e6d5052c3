"""The reader's ways: finding CCDs, headers, faults of files, threads, and the real files."""

import errno
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcqa.errors import DataError
from hpcqa.pixels import fitsbytes
from hpcqa.pixels.fits import bin_image, open_exposure
from hpcqa.pixels.fitsheader import Header, end_of_header

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real"


@pytest.fixture
def exposure_path(tmp_path):
    rng = np.random.default_rng(4)
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["EXPNUM"] = "1234"
    for name, ccdnum in (("S29", 1), ("S31", 3), ("N4", 35)):
        hdu = fits.CompImageHDU(rng.normal(300, 10, (64, 48)).astype("f4"), quantize_level=4, name=name)
        hdu.header["CCDNUM"] = ccdnum
        hdu.header["DETPOS"] = name
        hdus.append(hdu)
    path = tmp_path / "c4d_200101_000000_ooi_g_v1.fits.fz"
    fits.HDUList(hdus).writeto(path)
    return path


def test_images_are_listed_with_names_and_numbers(exposure_path):
    with open_exposure(exposure_path) as exposure:
        assert [(hdu.index, hdu.name, hdu.ccdnum, hdu.shape) for hdu in exposure.images] == [
            (1, "S29", 1, (64, 48)),
            (2, "S31", 3, (64, 48)),
            (3, "N4", 35, (64, 48)),
        ]
        assert exposure.primary["EXPNUM"] == "1234"
        assert not exposure.images[0].integer


def test_a_ccd_is_found_by_name_before_number(exposure_path):
    with open_exposure(exposure_path) as exposure:
        assert exposure.find(1, "s31").index == 2
        assert exposure.find(3).name == "N4"
        with pytest.raises(DataError, match=r"no image HDU 2 named 'N30'; the file has S29, S31, N4"):
            exposure.find(2, "N30")
        with pytest.raises(DataError, match="no image HDU 9"):
            exposure.find(9)


def write_ccds(path, *headers):
    """Images that bear their own place; COMPRESSED_IMAGE is what astropy and fpack write for no name."""
    hdus = [fits.PrimaryHDU()]
    for place, header in enumerate(headers, start=1):
        hdus.append(fits.CompImageHDU(np.full((20, 30), place, "i4"), compression_type="RICE_1"))
        hdus[-1].header.update(header)
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.mark.parametrize(
    "headers",
    [
        [{"CCDNUM": 3}, {"CCDNUM": 1}],
        [{"CCDNUM": 3, "EXTNAME": "im1"}, {"CCDNUM": 1, "EXTNAME": "im2"}],
        [{"CCDNUM": 3, "EXTNAME": "SCI"}, {"CCDNUM": 1, "EXTNAME": "SCI"}],
        [{"DETPOS": "S31"}, {"DETPOS": "S29"}],
        [{"EXTNAME": "s31"}, {"EXTNAME": "s29"}],
    ],
)
def test_a_ccd_is_found_by_whatever_the_file_says_of_it(tmp_path, headers):
    with open_exposure(write_ccds(tmp_path / "a.fits", *headers)) as exposure:
        assert exposure.find(1, "S29", 1).index == 2
        assert exposure.find(2, "S31", 3).index == 1
        with pytest.raises(DataError, match="no image HDU 1 named 'N4'"):
            exposure.find(1, "N4", 35)


def test_among_equal_names_the_number_of_the_hdu_counts(tmp_path):
    with open_exposure(write_ccds(tmp_path / "a.fits", {"EXTNAME": "SCI"}, {"EXTNAME": "SCI"})) as exposure:
        assert [exposure.find(index, "SCI", 7).index for index in (1, 2, 9)] == [1, 2, 1]


def test_where_nothing_tells_the_ccd_the_number_of_the_hdu_does(tmp_path):
    with open_exposure(write_ccds(tmp_path / "a.fits", {}, {"CCDNUM": 3})) as exposure:
        assert exposure.find(1, "S29", 1).index == 1
        with pytest.raises(DataError, match="no image HDU 2 named 'S29'; the file has 1, 2"):
            exposure.find(2, "S29", 1)


AXES = [
    lambda pixels: fits.ImageHDU(pixels),
    lambda pixels: fits.ImageHDU(pixels.astype(">u2")),
    lambda pixels: fits.CompImageHDU(pixels, quantize_level=4),
    lambda pixels: fits.CompImageHDU(pixels, quantize_level=4, tile_shape=(*[1] * (pixels.ndim - 2), 7, 13)),
    lambda pixels: fits.CompImageHDU(pixels, compression_type="GZIP_2", quantize_level=0),
    lambda pixels: fits.CompImageHDU(pixels.astype("i2")),
]


@pytest.mark.parametrize("more", [(1,), (1, 1, 1)])
@pytest.mark.parametrize("kind", range(len(AXES)))
def test_axes_of_one_pixel_are_no_axes(tmp_path, kind, more):
    """As after numpy's [None] or a cut out of a cube."""
    path = tmp_path / "a.fits"
    pixels = np.random.default_rng(2).normal(300, 10, (*more, 24, 40)).astype("f4")
    fits.HDUList([fits.PrimaryHDU(pixels), AXES[kind](pixels)]).writeto(path)
    with open_exposure(path) as exposure, fits.open(path) as hdus:
        assert [(hdu.index, hdu.shape) for hdu in exposure.images] == [(0, (24, 40)), (1, (24, 40))]
        for hdu in exposure.images:
            np.testing.assert_array_equal(exposure.read(hdu), hdus[hdu.index].data.reshape(24, 40))
            assert exposure.read_binned(hdu, 4).shape == (6, 10)


def test_a_cube_is_no_image(tmp_path):
    path = tmp_path / "a.fits"
    cube = np.zeros((3, 24, 40), "f4")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(cube, name="N4"), fits.CompImageHDU(cube), fits.ImageHDU(cube[0, 0])]
    fits.HDUList(hdus).writeto(path)
    with open_exposure(path) as exposure:
        assert exposure.images == ()
        said = r"named 'N4'; the file has none. HDU 1 is no image but a cube of \(3, 24, 40\) pixels. HDU 2 is no image"
        with pytest.raises(DataError, match=said):
            exposure.find(1, "N4")


def test_keywords_in_lower_case_count(tmp_path):
    path = write_ccds(tmp_path / "a.fits", {"EXTNAME": "S31", "CCDNUM": 3}, {"EXTNAME": "S29", "CCDNUM": 1})
    path.write_bytes(path.read_bytes().replace(b"EXTNAME =", b"extname =").replace(b"CCDNUM  =", b"ccdnum  ="))
    with open_exposure(path) as exposure:
        assert exposure.find(1, "S29").index == 2
        assert exposure.images[0].ccdnum == 3


@pytest.mark.parametrize("behind", [b"junk" * 2000, b"XTENSION= 'IMAGE   '", b"\xff" * 2880])
def test_what_lies_before_damage_is_read(exposure_path, behind):
    with exposure_path.open("ab") as file:
        file.write(behind)
    with open_exposure(exposure_path) as exposure:
        assert len(exposure.images) == 3
        assert "damaged" in exposure.damage
        with pytest.raises(DataError, match=r"no image HDU 4 named 'N5'.* It is not whole: .*damaged"):
            exposure.find(4, "N5", 36)


def test_threads_read_the_same_as_one(exposure_path):
    with open_exposure(exposure_path) as exposure:
        alone = [exposure.read(hdu) for hdu in exposure.images]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                together = list(pool.map(exposure.read, exposure.images))
                assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_callers_array_is_filled(exposure_path):
    with open_exposure(exposure_path) as exposure:
        out = np.full((64, 48), -1, np.float32)
        assert exposure.read(exposure.images[1], out) is out
        assert np.array_equal(out, exposure.read(exposure.images[1]))
        for wrong in (np.empty((64, 47), np.float32), np.empty((64, 48)), np.empty((48, 64), np.float32).T):
            with pytest.raises(ValueError, match="out must be"):
                exposure.read(exposure.images[1], wrong)


def test_binning_leaves_out_masked_and_blank_pixels(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.normal(100, 5, (37, 26)).astype("f4")
    pixels[3, 3] = np.nan
    pixels[8:12, 8:12] = np.nan
    fits.HDUList(
        [fits.PrimaryHDU(), fits.CompImageHDU(pixels, quantize_level=16, tile_shape=(5, 26)), fits.ImageHDU(pixels)]
    ).writeto(tmp_path / "a.fits")
    masked = rng.random(pixels.shape) < 0.3
    masked[16:20, 4:8] = True
    with open_exposure(tmp_path / "a.fits") as exposure:
        for hdu in exposure.images:
            for mask in (None, masked):
                found = exposure.read_binned(hdu, 4, mask)
                assert found.shape == (10, 7)
                assert np.allclose(found, by_numpy(exposure.read(hdu), mask, 4), rtol=1e-6, equal_nan=True)
                assert np.isnan(found[2, 2])
        assert np.isnan(exposure.read_binned(exposure.images[0], 4, masked)[4, 1])
        with pytest.raises(ValueError, match="mask must be"):
            exposure.read_binned(exposure.images[0], 4, masked[1:])


def by_numpy(pixels, mask, step):
    use = np.isfinite(pixels) if mask is None else np.isfinite(pixels) & ~mask
    values = np.where(use, pixels.astype(float), 0)
    out = np.full((-(-pixels.shape[0] // step), -(-pixels.shape[1] // step)), np.nan)
    for (r, c), _ in np.ndenumerate(out):
        part = np.s_[r * step : (r + 1) * step, c * step : (c + 1) * step]
        if use[part].any():
            out[r, c] = values[part].sum() / use[part].sum()
    return out


def test_bin_image_takes_any_layout():
    pixels = np.arange(48, dtype=">f4").reshape(6, 8).T
    assert np.allclose(bin_image(pixels, 2), by_numpy(pixels.astype("f4"), None, 2))


def test_integers_of_a_float_image_are_refused(exposure_path):
    with open_exposure(exposure_path) as exposure, pytest.raises(DataError, match="mask of integers"):
        exposure.read_integer(exposure.images[0])


def test_a_missing_file_a_folder_and_an_empty_file(tmp_path):
    with pytest.raises(DataError, match=r"nothere\.fits: can't be opened: No such file"):
        open_exposure(tmp_path / "nothere.fits")
    with pytest.raises(DataError, match=r"not a plain file|can't be opened"):
        open_exposure(tmp_path)
    (tmp_path / "empty.fits").touch()
    with pytest.raises(DataError, match="the file is empty"):
        open_exposure(tmp_path / "empty.fits")
    os.mkfifo(tmp_path / "pipe.fits")
    with pytest.raises(DataError, match="not a plain file"):
        open_exposure(tmp_path / "pipe.fits")


def test_other_files_are_not_fits(tmp_path):
    (tmp_path / "a.fits").write_text("<html>404 not found</html>")
    with pytest.raises(DataError, match="not a FITS file"):
        open_exposure(tmp_path / "a.fits")
    (tmp_path / "b.fits.gz").write_bytes(b"\x1f\x8bnonsense that is no gzip data")
    with pytest.raises(DataError, match="damaged gzip"):
        open_exposure(tmp_path / "b.fits.gz")


def test_every_truncation_is_told(exposure_path, tmp_path):
    whole = exposure_path.read_bytes()
    with open_exposure(exposure_path) as exposure:
        ends = [2880, *(hdu.data_offset + hdu.data_size for hdu in exposure.images)]
    needed = ends[-1]
    for size in [1, 79, 80, 2879, 2880, 2881, *range(3000, needed, 977), needed - 1]:
        (tmp_path / "cut.fits").write_bytes(whole[:size])
        if any(end <= size <= -(-end // 2880) * 2880 for end in ends):
            # A cut between two HDUs, or in the filling before the next, leaves a complete, shorter file.
            with open_exposure(tmp_path / "cut.fits") as exposure:
                assert len(exposure.images) < 3
        elif size > ends[1]:
            with open_exposure(tmp_path / "cut.fits") as exposure:
                assert len(exposure.images) == sum(end <= size for end in ends) - 1
                assert "truncated" in exposure.damage
                with pytest.raises(DataError, match=r"cut\.fits.* It is not whole"):
                    exposure.find(3, "N4")
        else:
            with pytest.raises(DataError, match=r"cut\.fits"):
                open_exposure(tmp_path / "cut.fits")


def test_missing_filling_at_the_end_does_no_harm(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((5, 5), "f4"))]).writeto(tmp_path / "a.fits")
    raw = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(raw[: 2 * 2880 + 100])
    with open_exposure(tmp_path / "a.fits") as exposure:
        assert exposure.read(exposure.images[0]).sum() == 25


def test_zeros_after_the_last_hdu_are_filling_and_text_is_not(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((5, 5), "f4"))]).writeto(tmp_path / "a.fits")
    raw = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(raw + bytes(5000))
    with open_exposure(tmp_path / "a.fits") as exposure:
        assert len(exposure.images) == 1
    (tmp_path / "a.fits").write_bytes(raw + b"garbage" * 500)
    with open_exposure(tmp_path / "a.fits") as exposure:
        assert len(exposure.images) == 1
        assert "no FITS header where one should begin" in exposure.damage


def test_a_file_that_changes_while_it_is_read(exposure_path):
    with open_exposure(exposure_path) as exposure:
        exposure.read(exposure.images[0])
        os.utime(exposure_path, ns=(1, 1))
        with pytest.raises(fitsbytes.FileChanged, match="changed while it was being read"):
            exposure.read(exposure.images[1])


def test_a_file_that_shrinks_while_it_is_read(exposure_path):
    with open_exposure(exposure_path) as exposure:
        os.truncate(exposure_path, 9000)
        with pytest.raises(fitsbytes.FileChanged, match="changed while it was being read"):
            exposure.read(exposure.images[2])


def test_a_file_that_vanishes_is_still_read(exposure_path):
    with open_exposure(exposure_path) as exposure:
        exposure_path.unlink()
        assert np.isfinite(exposure.read(exposure.images[2])).all()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOENT])
def test_a_file_that_its_server_forgets_is_missing(exposure_path, monkeypatch, number):
    def forgotten(*_):
        raise OSError(number, os.strerror(number))

    with open_exposure(exposure_path) as exposure:
        monkeypatch.setattr(fitsbytes.os, "preadv", forgotten)
        with pytest.raises(fitsbytes.FileMissing, match="can't be read"):
            exposure.read(exposure.images[0])


def test_what_cannot_be_read_is_not_missing(exposure_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with open_exposure(exposure_path) as exposure:
        monkeypatch.setattr(fitsbytes.os, "preadv", broken)
        with pytest.raises(DataError, match="Input/output error") as caught:
            exposure.read(exposure.images[0])
    assert caught.type is DataError


def test_opening_that_hangs_is_given_up(exposure_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(fitsbytes.os, "open", lambda *_: release.wait(20) and -1)
    with pytest.raises(fitsbytes.NoAnswer, match="no answer"):
        open_exposure(exposure_path, timeout=0.2)
    release.set()


def test_a_read_that_hangs_is_given_up(exposure_path, monkeypatch):
    release = threading.Event()
    with open_exposure(exposure_path, timeout=0.3) as exposure:
        monkeypatch.setattr(fitsbytes.os, "preadv", lambda *_: release.wait(20) and 0)
        with pytest.raises(fitsbytes.NoAnswer, match=r"no answer from the file system within 0\.3 s"):
            exposure.read(exposure.images[0])
        release.set()


def test_a_timeout_that_is_not_reached_changes_nothing(exposure_path):
    with open_exposure(exposure_path, timeout=60) as exposure, open_exposure(exposure_path) as patient:
        assert np.array_equal(exposure.read(exposure.images[0]), patient.read(patient.images[0]))


def cards(*lines):
    return "".join(line.ljust(80) for line in lines).encode()


def test_header_values():
    header = Header(
        cards(
            "A       =                    T / yes",
            "B       = 'it''s  '           / text",
            "C       = -1.5D3",
            "D       =                   42",
            "EMPTY   =",
            "LONG    = 'abc&'",
            "CONTINUE  'def&'",
            "CONTINUE  'g'",
            "HIERARCH time_recorded = '2017-01-19'",
            "COMMENT = 'no value'",
            "BLANK1  = ''",
            "ODD     = 12/34",
            "BAD     = 0x12",
            "D       =                   43",
        )
    )
    assert header["A"] is True
    assert header["B"] == "it's"
    assert header["C"] == -1500.0
    assert header["D"] == 42
    assert isinstance(header["D"], int)
    assert header["EMPTY"] is None
    assert header["LONG"] == "abcdefg"
    assert header["TIME_RECORDED"] == "2017-01-19"
    assert header["BLANK1"] == ""
    assert header["ODD"] == 12
    assert header["BAD"] is None
    assert "COMMENT" not in header
    assert "CONTINUE" not in header
    assert header.get("NONE", 5) == 5
    assert header.integer("A", 7) == 7
    assert header.text("D") == ""
    assert set(header) >= {"A", "B", "C"}


def test_the_end_is_found_only_as_a_card():
    text = cards("A       = 'END'", "ENDING  = 3", "XEND", "END")
    assert end_of_header(text) == 240
    assert end_of_header(text, 200) == 240
    assert end_of_header(text[:240]) == -1


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside this checkout")
def test_every_real_image_is_read_as_astropy_reads_it():
    count = 0
    for path in sorted(REAL.rglob("*.fits*")):
        with warnings.catch_warnings(), open_exposure(path) as exposure, fits.open(path) as hdus:
            warnings.simplefilter("ignore")
            wanted = [i for i, hdu in enumerate(hdus) if hdu.is_image and hdu.shape and len(hdu.shape) == 2]
            assert [hdu.index for hdu in exposure.images] == wanted
            for hdu in exposure.images:
                expected = hdus[hdu.index].data
                found = exposure.read(hdu)
                assert np.array_equal(found.view("i4"), expected.astype("f4").view("i4"), equal_nan=False), path
                if hdu.integer:
                    assert np.array_equal(exposure.read_integer(hdu), expected)
                check_header(hdu, hdus[hdu.index].header)
                count += 1
    assert count >= 70


def check_header(hdu, expected):
    for key in ("EXTNAME", "CCDNUM", "FWHM", "ELLIPTIC", "NSATPIX", "CD1_2", "DETPOS", "GAINA"):
        if key in expected:
            assert hdu.header[key] == expected[key], key
