"""Masks: the file beside the image by its version's rules, the chip's bad regions, and masks that are wrong."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcqa.errors import DataError
from hpcqa.instruments import get
from hpcqa.instruments.base import CcdContext
from hpcqa.pixels import fitsbytes
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.masks import EVERYTHING_MASKED, chip_mask, fitted, mask_paths, open_mask

CAMERA = get("minicam")
NAME = "mc4_250105_012345_oo{}_g_v1.fits{}"
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real"


def context(plver="V5.0", ccdnum=5):
    return CcdContext(ccdnum, 1, "g", 60000.0, plver)


def write_pair(folder, dq=None, suffix=".fz", names=("S1", "N4")):
    image = [fits.ImageHDU(np.ones((20, 30), "f4"), name=name) for name in ("S1", "N4")]
    fits.HDUList([fits.PrimaryHDU(), *image]).writeto(folder / NAME.format("i", ".fz"))
    if dq is not None:
        masks = [fits.CompImageHDU(dq + 0 * i, name=name) for i, name in enumerate(names)]
        fits.HDUList([fits.PrimaryHDU(), *masks]).writeto(folder / NAME.format("d", suffix))
    return folder / NAME.format("i", ".fz")


def load(path, plver="V5.0", name="S1", camera=CAMERA):
    with open_exposure(path) as exposure:
        hdu = exposure.find(1, name)
    with open_mask(path, camera) as masks:
        return masks.load(hdu, context(plver), camera)


@pytest.fixture
def dq():
    pixels = np.zeros((20, 30), "i2")
    pixels[2, 3], pixels[4, 5], pixels[6, 7] = 3, 8, 5
    return pixels


@pytest.mark.parametrize("suffix", [".fz", "", ".gz"])
def test_codes_by_version(tmp_path, dq, suffix):
    path = write_pair(tmp_path, dq, suffix)
    found = load(path)
    assert found.problem == ""
    assert found.found
    assert np.argwhere(found.masked).tolist() == [[2, 3], [6, 7]]
    assert found.share == pytest.approx(2 / 600)
    assert np.argwhere(load(path, "V4.7").masked).tolist() == [[2, 3]]
    assert np.argwhere(load(path, "V3.0").masked).tolist() == [[2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(("plver", "masked"), [("V5.5", 2), ("V4.7", 1), ("V3.0", 3), ("DES Y6A1+1", 3), ("", 2)])
def test_a_table_without_plver_leaves_it_to_the_masks_own_header(tmp_path, dq, plver, masked):
    path = write_pair(tmp_path, dq)
    with fits.open(mask_paths(path, CAMERA)[0], mode="update") as file:
        file[0].header["PLVER"] = plver
    assert load(path, plver="").masked.sum() == masked


@pytest.mark.parametrize("largest", [8, 64, 255, 1024])
def test_usable_codes_whatever_the_largest_value(tmp_path, dq, largest):
    dq[10:12, :] = 8
    dq[0, 0] = largest
    found = load(write_pair(tmp_path, dq)).masked
    assert np.array_equal(found, (dq != 0) & (dq != 8))


def test_no_mask_file_is_no_problem(tmp_path):
    found = load(write_pair(tmp_path))
    assert not found.masked.any()
    assert found.problem == ""
    assert not found.found


def test_names_of_another_camera_have_no_mask(tmp_path):
    assert mask_paths(tmp_path / "deep2g_ra352_1-ccd1.fits", CAMERA) == []


def test_everything_masked_is_a_problem_of_the_mask(tmp_path):
    found = load(write_pair(tmp_path, np.ones((20, 30), "i2")))
    assert found.problem == EVERYTHING_MASKED
    assert not found.masked.any()
    assert found.share == 1


def test_a_mask_without_this_ccd(tmp_path, dq):
    found = load(write_pair(tmp_path, dq, names=("S2", "S3")))
    assert "no image HDU 1 named 'S1'" in found.problem
    assert not found.masked.any()


def test_the_name_counts_before_the_number(tmp_path, dq):
    path = write_pair(tmp_path, dq, names=("N4", "S1"))
    assert load(path, name="S1").masked.any()


def test_damaged_masks_are_a_problem_and_no_error(tmp_path, dq):
    path = write_pair(tmp_path, dq)
    mask = mask_paths(path, CAMERA)[0]
    mask.write_bytes(mask.read_bytes()[:4000])
    found = load(path)
    assert "truncated" in found.problem
    assert not found.masked.any()
    mask.write_bytes(b"")
    assert "empty" in load(path).problem


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_a_problem_and_does_not_hang(tmp_path, make):
    path = write_pair(tmp_path)
    make(mask_paths(path, CAMERA)[0])
    found = load(path)
    assert found.found
    assert "is not a plain file" in found.problem


def test_a_file_system_that_does_not_answer_is_waited_for_once(tmp_path, monkeypatch):
    path, asked = write_pair(tmp_path), []
    monkeypatch.setattr(fitsbytes.ByteSource, "_open", lambda source: asked.append(source.path) or time.sleep(2))
    with open_mask(path, CAMERA, timeout=0.1) as masks:
        assert "no answer" in masks._problem
    assert len(asked) == 1


def test_masks_are_found_by_ccdnum_too(tmp_path, dq):
    path = write_pair(tmp_path)
    hdus = [fits.PrimaryHDU(), *(fits.CompImageHDU(dq * k) for k in (0, 1))]
    hdus[1].header["CCDNUM"], hdus[2].header["CCDNUM"] = 6, 5
    fits.HDUList(hdus).writeto(mask_paths(path, CAMERA)[0])
    assert load(path).masked.any()


def test_a_border_of_one_pixel_is_cut_off(tmp_path):
    wide = np.zeros((22, 32), np.int32)
    wide[1, 1] = 3
    assert fitted(wide, (20, 30))[0, 0] == 3
    with pytest.raises(DataError, match=r"the mask has \(22, 32\) pixels, the image \(21, 32\)"):
        fitted(wide, (21, 32))


def test_one_opening_serves_all_ccds(tmp_path, dq):
    path = write_pair(tmp_path, dq)
    with open_exposure(path) as exposure, open_mask(path, CAMERA) as masks:
        for hdu in exposure.images:
            assert masks.load(hdu, context(), CAMERA).masked.sum() == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside this checkout")
def test_the_real_full_size_mask():
    """S7's second half is never used, and the bad columns and stars of the file are masked."""
    decam = get("decam")
    path = REAL / "decaps_dqmask" / "c4d_170119_085651_ood_r_v1.fits.fz"
    with open_exposure(path) as exposure, open_mask(path, decam) as masks:
        shares = []
        for hdu in exposure.images:
            found = masks.load(hdu, CcdContext(hdu.ccdnum, 610792, "r", 57772.4, "V3.12"), decam)
            assert found.problem == ""
            shares.append(found.masked.mean())
    assert shares[0] == pytest.approx(0.038, abs=0.02)
    assert shares[1] > 0.5


def test_each_chip_has_its_own_bad_regions():
    """S7 and S17 have some, N4 has none: asked for in turn, they don't mix."""
    decam = get("decam")
    names = {ccd.ccdname: ccd.ccdnum for ccd in decam.ccds}
    for _ in range(2):
        for name in ("S7", "N4", "S17"):
            context = CcdContext(names[name], 900000, "g", 59000.0, "V5.5")
            expected = np.zeros(decam.shape, bool)
            for region in decam.bad_regions(context, decam.shape):
                expected[region.row0 : region.row1, region.col0 : region.col1] = True
            assert expected.any() == (name != "N4")
            np.testing.assert_array_equal(chip_mask(context, decam, decam.shape), expected)
