"""DECam: names, numbers and places, file names, masks by version, folklore by date, header facts."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import ConfigError, DataError
from hpcqa.instruments import KNOWN, for_camera, get
from hpcqa.instruments.base import HEADER_NUMBERS, CcdContext, Region, exposure_number, number
from hpcqa.instruments.community import mask_kind, masked_pixels, parse_version

DECAM = get("decam")
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real"


def context(ccdname, expnum=500000, band="g", mjd=57000.0, plver="V4.8.2"):
    return CcdContext(DECAM.ccdnum_of(ccdname), expnum, band, mjd, plver)


@pytest.mark.parametrize(
    ("ccdname", "ccdnum"),
    [
        *(("S29", 1), ("S30", 2), ("S25", 4), ("S20", 8), ("S14", 13), ("S19", 18), ("S8", 19), ("S1", 25), ("S7", 31)),
        *(
            ("N1", 32),
            ("N7", 38),
            ("N8", 39),
            ("N10", 41),
            ("N15", 46),
            ("N20", 51),
            ("N30", 61),
            ("n31 ", 62),
            ("N04", 35),
            ("S30", 2),
        ),
    ],
)
def test_ccd_numbers(ccdname, ccdnum):
    assert DECAM.ccdnum_of(ccdname) == ccdnum


def test_sixty_two_ccds_lie_apart():
    assert [ccd.ccdnum for ccd in DECAM.ccds] == list(range(1, 63))
    assert len({ccd.ccdname for ccd in DECAM.ccds}) == 62
    assert DECAM.ccdnum_of("S32") is None
    height, width = (side * DECAM.pixel_scale / 3600 for side in DECAM.shape)
    for a in DECAM.ccds:
        for b in DECAM.ccds[a.ccdnum :]:
            assert abs(a.x - b.x) >= height or abs(a.y - b.y) >= width
    # Centres in Legacy Surveys images (mean over exposures), in degrees.
    for ccdname, x, y in (("S29", -0.3124, 0.9030), ("S7", 0.9293, 0.0809), ("N31", 0.3077, -0.9052)):
        ccd = DECAM.ccds[DECAM.ccdnum_of(ccdname) - 1]
        assert math.hypot(ccd.x - x, ccd.y - y) < 0.005


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside this checkout")
def test_real_images_agree_with_names_numbers_and_orientation():
    seen = 0
    for path in REAL.rglob("c4d_*_ooi_*.fits"):
        name = DECAM.parse_file_name(path)
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore")
            header, primary = hdus[1].header, hdus[0].header
            assert DECAM.ccdnum_of(header["EXTNAME"]) == header["CCDNUM"]
            assert name.ccdname == header["EXTNAME"]
            assert name.band == DECAM.band_of(primary["FILTER"])
            assert name.prodtype == "image"
            assert exposure_number(primary) == primary["EXPNUM"]
            ccd = DECAM.ccds[header["CCDNUM"] - 1]
            step = np.array([[header["CD1_2"], header["CD1_1"]], [header["CD2_2"], header["CD2_1"]]])
            along = np.array([DECAM.rows_along, DECAM.cols_along]).T
            assert np.allclose(step * 3600 / 0.2623, along, atol=0.01)
            assert ccd.ccdname == header["DETPOS"]
            numbers = DECAM.header_numbers(primary, header)
            assert numbers["header_fwhm"] == pytest.approx(header["FWHM"])
            assert numbers["header_wcs_failed"] == 0
            assert numbers["header_vsub_off"] == 0
        assert DECAM.companion(path, "dqmask").is_file()
        assert DECAM.companion(path, "wtmap").is_file()
        seen += 1
    assert seen >= 12


@pytest.mark.parametrize(
    ("name", "prodtype", "band", "version", "ccdname"),
    [
        ("c4d_170916_045042_ooi_r_ls9.fits.fz", "image", "r", "ls9", ""),
        ("c4d_170916_045042_oki_Y_v1.fits.fz", "image", "Y", "v1", ""),
        ("c4d_170916_045042_ood_N964_d1.fits.fz", "dqmask", "N964", "d1", ""),
        ("c4d_170916_045042_oow_VR_v2.fits", "wtmap", "VR", "v2", ""),
        ("c4d_150411_035242_ooi_z_v1-N10.fits", "image", "z", "v1", "N10"),
        ("c4d_150411_035242_ooi_z_ls11.S11.fits.gz", "image", "z", "ls11", "S11"),
        ("c4d_150411_035242_ori.fits.fz", "other", "", "", ""),
        ("c4d_150411_035242_osi_g_v1.fits.fz", "other", "g", "v1", ""),
    ],
)
def test_file_names(name, prodtype, band, version, ccdname):
    found = DECAM.parse_file_name(Path("some/where") / name)
    assert (found.prodtype, found.band, found.version, found.ccdname) == (prodtype, band, version, ccdname)
    assert found.date[:3] == "201"
    assert found.date[10] == "T"


@pytest.mark.parametrize(
    "name", ["k4m_160319_075112_ooi_zd_ls9.fits", "deep2g_ra352_1-ccd1.fits", "c4d_1_ooi.fits", ""]
)
def test_other_names_are_not_ours(name):
    path = Path("x") / name
    assert DECAM.parse_file_name(path) is None
    with pytest.raises(DataError, match="not a decam file name"):
        DECAM.companion(path, "dqmask")


def test_companions():
    for letters in ("ooi", "oki"):
        path = Path(f"a/c4d_170916_045042_{letters}_r_ls9.S4.fits.fz")
        assert DECAM.companion(path, "dqmask") == Path("a/c4d_170916_045042_ood_r_ls9.S4.fits.fz")
        assert DECAM.companion(path, "wtmap") == Path("a/c4d_170916_045042_oow_r_ls9.S4.fits.fz")


@pytest.mark.parametrize(
    ("plver", "version", "kind"),
    [
        ("V4.8.2a", (4, 8, 2), "codes"),
        ("V5.5.2LS", (5, 5, 2), "codes"),
        ("V5.0beta", (5, 0, 0), "codes"),
        ("V3.5.0 ", (3, 5, 0), "codes"),
        ("V3.12", (3, 12, 0), "codes"),
        ("V3.4.9", (3, 4, 9), "bits"),
        ("V1.2", (1, 2, 0), "bits"),
        ("DES V3.8+1", (3, 8, 0), "codes"),
        ("DES Y6A1+1", None, "desdm"),
        ("", None, "unknown"),
        ("nonsense", None, "unknown"),
    ],
)
def test_versions(plver, version, kind):
    assert parse_version(plver) == version
    assert mask_kind(plver) == kind


@given(st.text())
def test_any_version_is_something(plver):
    assert mask_kind(plver) in ("codes", "bits", "desdm", "unknown")


def test_codes_and_bits():
    codes = np.arange(9)
    assert masked_pixels(codes, "V4.8.2").tolist() == [False] + [True] * 7 + [False]
    assert masked_pixels(codes, "V4.7.9").tolist() == [False, True, True, True, True, False, True, True, False]
    assert masked_pixels(np.array([0, 1, 8, 128]), "V2.0").tolist() == [False, True, True, True]
    # DESDM: saturated and bad count; interpolated, star-masked and streaked pixels still show the sky.
    assert masked_pixels(np.array([0, 1, 2, 4, 32, 1024, 1024 | 2]), "DES Y6A1+1").tolist() == (
        [False, True, True, False, False, False, True]
    )
    assert masked_pixels(np.array([0, 5, 8]), "").tolist() == [False, True, False]
    assert masked_pixels(np.array([0, 8, 64]), "").tolist() == [False, True, True]
    assert masked_pixels(np.zeros((0, 3), int), "").shape == (0, 3)


def test_bad_regions():
    full = DECAM.shape
    assert DECAM.bad_regions(context("N4"), full) == []
    assert DECAM.bad_regions(context("S7"), full) == [Region(0, 4094, 1023, 2046)]
    assert DECAM.bad_regions(context("S7"), (100, 100)) == []
    assert DECAM.bad_regions(context("N4", expnum=298250, band="r"), full) == [Region(0, 100, 0, 2046)]
    assert DECAM.bad_regions(context("S4", expnum=200000, band="r"), full) == [Region(3994, 4094, 0, 2046)]
    assert DECAM.bad_regions(context("N4", expnum=298251, band="r"), full) == []
    assert DECAM.bad_regions(context("N4", expnum=0, band="r"), full) == []
    assert len(DECAM.bad_regions(context("S17"), full)) == 1


@pytest.mark.parametrize(
    ("ccdname", "expnum", "mjd", "dead"),
    [
        ("N30", 148416, 56238, False),
        ("N30", 148417, 56239, True),
        ("N30", 900000, 58900, True),
        ("S30", 250000, 56500, False),
        ("S30", 400000, 57100, True),
        ("S30", 604000, 57748, True),
        ("S30", 610792, 57772, False),
        ("N15", 694884, 58067, False),
        ("N15", 694885, 58067, True),
        ("N15", 703269, 58100, False),
        ("N10", 770496, 58369, False),
        ("N10", 771163, 58372, True),
        ("S7", 771163, 58372, False),
    ],
)
def test_dead_chips_by_date(ccdname, expnum, mjd, dead):
    why = DECAM.is_dead(context(ccdname, expnum=expnum, mjd=mjd))
    assert (ccdname in why) == dead


def test_levels_that_masks_and_skies_miss():
    assert DECAM.saturation_of(context("S19", plver="V4.8.2a")) == 46000
    assert DECAM.saturation_of(context("S19", plver="V4.9.0")) == math.inf
    assert DECAM.saturation_of(context("S18", plver="V4.8")) == math.inf


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("g DECam SDSS c0001 4720.0 1520.0", "g"),
        ("Y", "Y"),
        ("y", "Y"),
        ("VR DECam", "VR"),
        ("N419", "N419"),
        (" z ", "z"),
        ("", None),
        ("solid plate", None),
        ("zd", None),
    ],
)
def test_bands(text, band):
    assert DECAM.band_of(text) == band


def test_header_facts_never_raise():
    assert list(DECAM.header_numbers({}, {})) == [name for name, _, _ in HEADER_NUMBERS]
    assert all(math.isnan(value) for value in DECAM.header_numbers({}, {}).values())
    odd = {
        "WCSCAL": 5,
        "GUIDER": "x",
        "VSUB": 3,
        "DIMMSEE": "NaN",
        "DIMM2SEE": " 0.7 ",
        "MAGZERO": None,
        "EXPTIME": "0",
    }
    numbers = DECAM.header_numbers(odd, {"FWHM": [1], "NSATPIX": True})
    assert numbers["header_seeing"] == 0.7
    assert numbers["header_wcs_failed"] == 1
    assert math.isnan(numbers["header_guider_lost"])
    assert math.isnan(numbers["header_vsub_off"])


@pytest.mark.parametrize(
    ("primary", "key", "value"),
    [
        ({"WCSCAL": "Failed", "SCAMPFLG": 0}, "header_wcs_failed", 0),
        ({"WCSCAL": "Failed", "SCAMPFLG": 1}, "header_wcs_failed", 1),
        ({"WCSCAL": "Successful"}, "header_wcs_failed", 0),
        ({"GUIDER": 1}, "header_guider_lost", 0),
        ({"GUIDER": 3}, "header_guider_lost", 1),
        ({"VSUB": False}, "header_vsub_off", 1),
        ({"VSUB": "F"}, "header_vsub_off", 1),
        ({"G-MEANX": -0.3, "G-MEANY": 0.1}, "header_guide_error", 0.3),
        ({"MAGZERO": 30.0, "EXPTIME": 100.0}, "header_zero_point", 25.0),
        ({"MAGZPT": 25.1, "MAGZERO": 30.0, "EXPTIME": 100.0}, "header_zero_point", 25.1),
    ],
)
def test_header_facts(primary, key, value):
    assert DECAM.header_numbers(primary, {})[key] == pytest.approx(value)


@pytest.mark.parametrize(("value", "expnum"), [("1234", 1234), (77, 77), (0, 0), ("x", 0), (1.5, 0), (None, 0)])
def test_exposure_numbers_may_be_strings(value, expnum):
    assert exposure_number({"EXPNUM": value}) == expnum


def test_numbers_of_headers():
    assert number({"A": "nan", "B": True}, "A", "B") == 1.0
    assert math.isnan(number({"A": float("inf")}, "A", "C"))


def test_nights_end_at_noon():
    assert DECAM.night(57772.37) == 20170118  # 2017-01-19 08:55 UT
    assert DECAM.night(57771.99) == 20170118
    assert DECAM.night(57772.72) == 20170119
    assert DECAM.night(math.nan) == 0
    assert DECAM.night(0) == 0


def test_the_register_of_cameras():
    assert for_camera(" DECam ") is DECAM
    assert for_camera("90prime") is None
    assert {get(name).name for name in KNOWN} == set(KNOWN)
    with pytest.raises(ConfigError, match=r"instrument\.name=hsc: no such camera; known are decam, minicam"):
        get("hsc")


@pytest.mark.parametrize("name", KNOWN)
def test_the_contract_of_every_camera(name):
    camera = get(name)
    assert camera.name == name
    assert len({ccd.ccdnum for ccd in camera.ccds}) == len(camera.ccds)
    assert all(camera.ccdnum_of(ccd.ccdname.lower()) == ccd.ccdnum for ccd in camera.ccds)
    assert all(camera.band_of(band) == band for band in camera.bands)
    assert all(camera.sky_rate(band) > 0 for band in ("g", "r", "i", "z"))
    assert math.isnan(camera.sky_rate("nosuch"))
    rows, cols = camera.shape
    covered = np.zeros(camera.shape, int)
    for part in camera.amplifiers(camera.shape, camera.ccds[0].ccdnum):
        covered[part.row0 : part.row1, part.col0 : part.col1] += 1
    assert (covered == 1).all()
    assert abs(np.dot(camera.rows_along, camera.cols_along)) == 0
    for ccd in camera.ccds:
        some = CcdContext(ccd.ccdnum, 1, "r", 60000.0, "V5.0", "")
        for part in camera.bad_regions(some, camera.shape):
            assert 0 <= part.row0 < part.row1 <= rows
            assert 0 <= part.col0 < part.col1 <= cols


def test_minicam_is_small_and_has_four_backplanes():
    camera = get("minicam")
    assert len(camera.ccds) == 14
    assert camera.shape == (512, 256)
    assert {ccd.backplane for ccd in camera.ccds} == {1, 2, 3, 4}
    assert camera.parse_file_name(Path("mc4_250105_012345_ooi_g_v1.fits.fz")).band == "g"
    assert DECAM.parse_file_name(Path("mc4_250105_012345_ooi_g_v1.fits.fz")) is None
    # Named and numbered differently, so that mixing them up shows.
    assert camera.ccdnum_of("S1") != 1
