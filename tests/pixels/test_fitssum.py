"""DATASUM: the sum itself, and what becomes of images and masks that contradict theirs."""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from conftest import write_exposure
from hypothesis import given
from hypothesis import strategies as st
from test_shards import column, run

from hpcqa import instruments
from hpcqa.config import Config, ShardConfig
from hpcqa.errors import DataError
from hpcqa.pixels.exposures import CcdRow, read_exposure
from hpcqa.pixels.failures import BIT
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.fitsbytes import WrongSum
from hpcqa.pixels.fitsheader import Header
from hpcqa.pixels.fitssum import sum_of, sum_wanted
from hpcqa.pixels.shards import list_problems

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real"


@given(st.binary(max_size=200))
def test_the_sum_is_that_of_the_standard(raw):
    """Appendix J: add words of 32 bits, carry what overflows around to the lowest bit."""
    padded = raw + bytes(-len(raw) % 4)
    total = sum(int.from_bytes(padded[i : i + 4], "big") for i in range(0, len(padded), 4))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    assert sum_of(np.frombuffer(raw, np.uint8)) == total % 0xFFFFFFFF


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        ("'3880341902'", 3880341902),
        ("'         0'", 0),
        ("4294967295", 0),
        ("'4294967296'", None),
        ("-5", None),
        ("''", None),
        ("'2 5'", None),
        ("T", None),
        ("1.0", None),
    ],
)
def test_a_sum_that_is_no_number_is_none(card, wanted):
    assert sum_wanted(Header(f"DATASUM = {card}".ljust(80).encode())) == wanted
    assert sum_wanted(Header(b"")) is None


PIXELS = np.random.default_rng(7).normal(300, 10, (24, 40)).astype("f4")
WHOLE = PIXELS.astype("i2")
KINDS = {
    "rice": lambda: fits.CompImageHDU(PIXELS, quantize_level=4, name="N4"),
    "gzip": lambda: fits.CompImageHDU(PIXELS, compression_type="GZIP_2", name="N4"),
    "mask": lambda: fits.CompImageHDU(WHOLE, name="N4"),
    "plain": lambda: fits.ImageHDU(PIXELS, name="N4"),
    "unsigned": lambda: fits.ImageHDU(WHOLE.astype("u2"), name="N4"),
}


def write(path, kind):
    fits.HDUList([fits.PrimaryHDU(), KINDS[kind](), fits.ImageHDU(PIXELS)]).writeto(path, checksum=True, overwrite=True)


def damage(path, number=1, at=-1):
    """Flip a bit in the data of an HDU, which its decoder need not notice."""
    with open_exposure(path) as file:
        hdu = next(hdu for hdu in file.images if hdu.index == number)
    raw = bytearray(path.read_bytes())
    raw[hdu.data_offset + at % hdu.data_size] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_flipped_bit_is_told(tmp_path, kind):
    path = tmp_path / "a.fits"
    write(path, kind)
    for checksums in ("report", "fail"):
        with open_exposure(path, checksums=checksums) as file:
            for hdu in file.images:
                file.read(hdu)
            assert file.contradicted == {}
    damage(path, at=-30)
    with open_exposure(path, checksums="fail") as file:
        with pytest.raises(WrongSum, match=r"a\.fits\[1\]: the data contradict their DATASUM, \d+: their sum is \d+"):
            file.read(file.images[0])
        file.read(file.images[1])
    with open_exposure(path, checksums="report") as file:
        # The sum that gzip has of its own may be wrong too.
        with contextlib.suppress(DataError) if kind == "gzip" else contextlib.nullcontext():
            file.read(file.images[0])
        assert "fetch the file again" in file.contradicted[1]
        file.read(file.images[1])
        assert list(file.contradicted) == [1]
    with open_exposure(path) as file:
        file.read(file.images[1])
        assert file.contradicted == {}


def test_every_way_of_reading_looks_at_the_sum(tmp_path):
    path = tmp_path / "a.fits"
    write(path, "mask")
    damage(path)
    for read in ("read", "read_binned", "read_integer", "read_codes", "read_part"):
        with open_exposure(path, checksums="report") as file:
            hdu = file.images[0]
            getattr(file, read)(hdu, *([8] if read in ("read_binned", "read_part") else []))
            assert list(file.contradicted) == [1], read


def test_filling_belongs_to_the_sum(tmp_path):
    """Some writers fill blocks with other bytes than zeros, and sum them; files that end before it are as good."""
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(PIXELS)]).writeto(path, checksum=True)
    whole = path.read_bytes()
    with open_exposure(path) as file:
        end = file.images[0].data_offset + PIXELS.nbytes
    path.write_bytes(whole[:end])
    with open_exposure(path, checksums="fail") as file:
        file.read(file.images[0])
    path.write_bytes(whole[:-1] + b" ")
    with open_exposure(path, checksums="fail") as file, pytest.raises(WrongSum):
        file.read(file.images[0])


def test_sums_that_fitsio_writes(tmp_path):
    path = tmp_path / "a.fits.fz"
    with fitsio.FITS(str(path), "rw") as file:
        for compress, pixels in (("RICE", PIXELS), ("RICE", WHOLE), ("PLIO", WHOLE), (None, PIXELS), ("GZIP", WHOLE)):
            file.write(pixels, compress=compress)
            file[-1].write_checksum()
    with open_exposure(path, checksums="report") as file:
        for hdu in file.images:
            assert "DATASUM" in hdu.header
            file.read(hdu)
        assert file.contradicted == {}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside this checkout")
def test_every_real_image_has_the_sum_that_it_says():
    num = 0
    for path in sorted(REAL.rglob("*.fits*")):
        if "survey-ccds" in path.name or path.name.startswith("DECam_00241238"):
            continue
        with open_exposure(path, checksums="report") as file:
            for hdu in file.images:
                file.read(hdu)
                num += "DATASUM" in hdu.header
            assert file.contradicted == {}
    assert num >= 14


# Exposures ------------------------------------------------------------------------------------------------------------

MINICAM = instruments.get("minicam")


@pytest.fixture
def exposure(tmp_path):
    """The rows of two CCDs, whose file and mask carry sums."""
    ccds = MINICAM.ccds[:2]
    path = tmp_path / "mc4_250105_000000_ooi_r_v1.fits.fz"
    write_exposure(path, ccds, 1)
    with fits.open(path) as hdus:
        hdus.writeto(path, checksum=True, overwrite=True)
        masks = [fits.CompImageHDU(np.zeros((96, 64), np.int32), name=ccd.ccdname) for ccd in ccds]
        fits.HDUList([fits.PrimaryHDU(), *masks]).writeto(mask_of(path), checksum=True)
    return [
        CcdRow(7, ccd.ccdnum, ccd.ccdname, "minicam", "r", 6e4, 100.0, 25.0, 25.0, "V5.5", "", str(path), place + 1)
        for place, ccd in enumerate(ccds)
    ]


def mask_of(path):
    return path.with_name(path.name.replace("_ooi_", "_ood_"))


def look(rows, checksums):
    return read_exposure(rows, {"minicam": MINICAM}, replace(Config(), shard=ShardConfig(checksums=checksums)))


@pytest.mark.parametrize("checksums", ["report", "fail", "ignore"])
def test_a_damaged_image_by_each_policy(exposure, checksums, caplog):
    assert [(found.failed, found.doubt) for found in look(exposure, checksums)] == [(0, "")] * 2
    damage(Path(exposure[0].image_path), 2)
    good, bad = look(exposure, checksums)
    assert (good.failed, good.doubt) == (0, "")
    assert bad.failed == (BIT["wrong_sum"] if checksums == "fail" else 0)
    assert (bad.views is None) == (checksums == "fail")
    assert bool(bad.doubt) == (checksums == "report")
    assert ("contradict their DATASUM" in bad.said) == (checksums == "fail")
    list_problems(exposure, [good, bad], set())
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (checksums != "ignore")
    assert all(text.startswith(f"expnum 7, 1 CCDs from {exposure[1].ccdname}: ") for text in told)


@pytest.mark.parametrize("checksums", ["report", "fail", "ignore"])
def test_a_damaged_mask_by_each_policy(exposure, checksums):
    damage(mask_of(Path(exposure[0].image_path)), 1)
    bad, good = look(exposure, checksums)
    assert (good.failed, good.doubt, good.mask_problem) == (0, "", "")
    assert bad.failed == 0
    assert ("_ood_" in bad.doubt) == (checksums == "report")
    assert ("contradict their DATASUM" in bad.mask_problem) == (checksums == "fail")


def test_the_row_and_the_summary_know_of_a_wrong_sum(survey, caplog):
    path = survey.images[1001]
    with fits.open(path) as hdus:
        hdus.writeto(path, checksum=True, overwrite=True)
    damage(path, 2)
    with caplog.at_level(logging.INFO):
        run(survey)
    assert not column(survey, "failed").any()
    assert np.flatnonzero(column(survey, "wrong_sum")).tolist() == [4]
    assert "the data of 1 CCDs, or of their masks, contradict their DATASUM" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(survey, checksums="fail")
    assert column(survey, "failed").tolist() == [0] * 4 + [BIT["wrong_sum"]] + [0] * 7
    assert not column(survey, "wrong_sum").any()
    assert "1 of 12 CCDs have no views: 1 wrong_sum" in caplog.text
