from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcqa.errors import DataError
from hpcqa.survey.cuts import names_of
from tests.survey.tools import run_manifest

STEM = "mc4_250109_054920_oo{}_i_v1.fits.fz"


def write_exposure(folder: Path, *, stem: str = STEM, compressed: bool = True, **primary) -> Path:
    """A small exposure of two CCDs with headers as the Community Pipeline writes them."""
    header = {"EXPNUM": "1300000", "FILTER": "i DECam SDSS c0003 7835.0 1470.0", "EXPTIME": 90.0, "MJD-OBS": 60684.24}
    header |= {"PLVER": "V5.5", "PLPROCID": "9a1", "OBJECT": "field"} | primary
    hdus = [fits.PrimaryHDU()]
    hdus[0].header.update({key: value for key, value in header.items() if value is not None})
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    for number, name in ((4, "S5"), (8, "N1")):
        hdu = kind(np.zeros((40, 30), np.float32), name=name)
        hdu.header.update({"CCDNUM": number, "CRVAL1": 10.0, "CRVAL2": 60.0, "CRPIX1": 0.5, "CRPIX2": 0.5})
        hdu.header.update({"CD1_1": 0.0, "CD1_2": 1e-3, "CD2_1": -1e-3, "CD2_2": 0.0})
        hdus.append(hdu)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / stem.format("i")
    fits.HDUList(hdus).writeto(path)
    return path


def scan(tmp_path):
    return run_manifest(tmp_path / "run", survey={"images": [str(tmp_path / "images")]})


@pytest.mark.parametrize("compressed", [True, False])
def test_headers_give_what_a_table_would(tmp_path, compressed):
    path = write_exposure(tmp_path / "images" / "deep" / "er", compressed=compressed)
    (path.parent / STEM.format("d")).touch()
    (path.parent / STEM.format("w")).touch()
    (path.parent / "notes.txt").touch()
    got = scan(tmp_path)
    assert got["expnum"].tolist() == [1300000, 1300000]
    assert got["ccdname"].tolist() == ["S5", "N1"]
    assert got["image_hdu"].tolist() == [1, 2]
    assert (got["band"][0], got["exptime"][0], got["plver"][0], got["camera"][0]) == ("i", 90.0, "V5.5", "minicam")
    assert (got["width"][0], got["height"][0]) == (30, 40)
    np.testing.assert_allclose(got["dec"], 60.0 - 15 * 1e-3)
    np.testing.assert_allclose(got["ra"], 10.0 + 20e-3 / np.cos(np.radians(got["dec"])))
    assert got["image_path"].tolist() == [str(path)] * 2
    assert (got["cuts"] == 0).all()


def test_damaged_empty_and_foreign_files_become_rows(tmp_path):
    images = tmp_path / "images"
    write_exposure(images)
    (images / "mc4_250109_060000_ooi_r_v1.fits.fz").touch()
    whole = write_exposure(images / "t", stem="mc4_250109_070000_ooi_r_v1.fits")
    whole.write_bytes(whole.read_bytes()[:3000])
    (images / "mine.fits").write_bytes(b"nonsense")
    fits.PrimaryHDU().writeto(images / "mc4_250109_080000_ooi_r_v1.fits")
    got = scan(tmp_path)
    reasons = {Path(path).name: names_of(int(bits)) for path, bits in zip(got["image_path"], got["cuts"], strict=True)}
    assert reasons["mc4_250109_054920_ooi_i_v1.fits.fz"] == []
    assert all("unreadable" in reasons[name] for name in reasons if name != "mc4_250109_054920_ooi_i_v1.fits.fz")
    assert len(reasons) == 5
    assert "no_module" in reasons["mine.fits"]
    assert "no image in the file" in " ".join(got["cut_detail"])


def test_links_to_folders_are_followed_once(tmp_path, caplog):
    images = tmp_path / "images"
    write_exposure(tmp_path / "elsewhere" / "night")
    images.mkdir()
    (images / "link").symlink_to(tmp_path / "elsewhere")
    (images / "again").symlink_to(tmp_path / "elsewhere" / "night")
    (tmp_path / "elsewhere" / "back").symlink_to(images)
    got = scan(tmp_path)
    assert got["expnum"].tolist() == [1300000, 1300000]
    assert (got["cuts"] == 0).all()


def test_folders_that_cannot_be_read_are_told(tmp_path, caplog, monkeypatch):
    write_exposure(tmp_path / "images" / "a")
    (tmp_path / "images" / "shut").mkdir()
    real = os.scandir

    def guarded(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert len(scan(tmp_path)["expnum"]) == 2
    assert "shut: the folder cannot be read (Permission denied); what is in it is not surveyed." in caplog.text


def test_without_expnum_in_the_header(tmp_path):
    write_exposure(tmp_path / "images", EXPNUM=None)
    with pytest.raises(DataError, match="no_expnum"):
        scan(tmp_path)


def test_no_images_at_all(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no image files"):
        scan(tmp_path)


def test_names_that_are_not_utf_8_are_rows(tmp_path, caplog):
    images = tmp_path / "images"
    whole = write_exposure(images)
    odd = os.fsencode(images) + b"/mc4_250109_060000_ooi_r_v1\xff.fits"
    os.mkdir(os.fsencode(images) + b"/night \xe9")
    for path in (odd, os.fsencode(images) + b"/night \xe9/mc4_250109_070000_ooi_r_v1.fits.fz"):
        with open(path, "wb") as file:
            file.write(whole.read_bytes())
    got = scan(tmp_path)
    bad = got["cuts"] != 0
    assert bad.sum() == 2
    assert all("the file's path is not in UTF-8; rename it" in text for text in got["cut_detail"][bad])
    assert "2 files give no image, first: " in caplog.text


def test_pipes_and_devices_are_rows(tmp_path):
    images = tmp_path / "images"
    write_exposure(images)
    os.mkfifo(images / "mc4_250109_060000_ooi_r_v1.fits.fz")
    (images / "mc4_250109_070000_ooi_r_v1.fits.fz").symlink_to("/dev/zero")
    (images / "mc4_250109_080000_ooi_r_v1.fits.fz").symlink_to("nowhere")
    got = scan(tmp_path)
    assert sum("not a plain file" in text for text in got["cut_detail"]) == 3


def test_a_card_that_does_not_parse_costs_its_value_only(tmp_path):
    path = write_exposure(tmp_path / "images")
    path.write_bytes(path.read_bytes().replace(b"EXPTIME =                 90.0", b"EXPTIME =              9 0 . 0"))
    got = scan(tmp_path)
    assert got["ccdname"].tolist() == ["S5", "N1"]
    assert np.isnan(got["exptime"]).all()
    assert not got["cuts"].any()


def test_ccds_without_a_name_go_by_their_number(tmp_path):
    path = write_exposure(tmp_path / "images")
    with fits.open(path) as file:
        for hdu in file[1:]:
            hdu.header["EXTNAME"] = "COMPRESSED_IMAGE"
        file.writeto(path, overwrite=True)
    got = scan(tmp_path)
    assert got["ccdnum"].tolist() == [4, 8]
    assert got["ccdname"].tolist() == ["S5", "N1"]


def test_the_file_that_takes_the_place_of_another_is_named(tmp_path):
    path = write_exposure(tmp_path / "images" / "a")
    write_exposure(tmp_path / "images" / "b")
    got = scan(tmp_path)
    assert got["cut_detail"].tolist() == ["", "", *[f"the row of {path} is taken"] * 2]


def test_renamed_files_are_known_by_their_headers(tmp_path):
    images = tmp_path / "images"
    write_exposure(images, stem="first night.fits.fz", INSTRUME="MiniCam ", PRODTYPE="image")
    write_exposure(images, stem="mask of it.fits.fz", INSTRUME="MiniCam", PRODTYPE="dqmask", EXPNUM=1300001)
    write_exposure(images, stem="who knows.fits.fz", EXPNUM=1300002)
    got = scan(tmp_path)
    cuts = {int(expnum): names_of(int(bits)) for expnum, bits in zip(got["expnum"], got["cuts"], strict=True)}
    assert cuts == {1300000: [], 1300001: ["unreadable"], 1300002: ["no_module"]}


def test_axes_of_one_pixel_are_no_axes(tmp_path):
    path = write_exposure(tmp_path / "images", compressed=False)
    with fits.open(path) as hdus:
        flat = [hdu.data[None, None] for hdu in hdus[1:]]
        hdus[1].data = flat[0]
        hdus[2] = fits.CompImageHDU(flat[1], hdus[2].header)
        cubes = [fits.ImageHDU(np.zeros((2, 40, 30))), fits.ImageHDU(np.zeros((0, 40, 30)))]
        fits.HDUList([*hdus, *cubes, fits.ImageHDU(np.zeros(40))]).writeto(path, overwrite=True)
    got = scan(tmp_path)
    assert got["ccdname"].tolist() == ["S5", "N1"]
    assert list(zip(got["width"], got["height"], strict=True)) == [(30, 40)] * 2
