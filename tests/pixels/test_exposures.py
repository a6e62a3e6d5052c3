"""Whole exposures: what a chip's bad half does, and every real image through all of it."""

import math

import numpy as np
import pytest
from astropy.io import fits
from pixels_images import make_image

from hpcqa import instruments
from hpcqa.config import Config
from hpcqa.instruments.community import masked_pixels
from hpcqa.pixels import exposures
from hpcqa.pixels.exposures import CcdRow, read_exposure
from hpcqa.pixels.failures import names_of
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.measure import NAMES

DECAM = instruments.get("decam")


def row_of(path, ccdnum=1, ccdname="", camera="decam", band="r", hdu=1, plver="V5.5", expnum=900000):
    return CcdRow(expnum, ccdnum, ccdname, camera, band, 58000.0, 90.0, math.nan, math.nan, plver, "", str(path), hdu)


def numbers_of(rows, camera=DECAM):
    results = read_exposure(rows, {row.camera: camera for row in rows}, Config())
    assert [result.failed for result in results] == [0] * len(rows), [result.said for result in results]
    return [dict(zip(NAMES, result.views.numbers.tolist(), strict=True)) for result in results], results


def write(path, **images):
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(image, name=name) for name, image in images.items())]
    fits.HDUList(hdus).writeto(path, overwrite=True)


def test_the_bad_half_of_s7_enters_nothing(tmp_path):
    """Amplifier B of S7 is worth nothing at any time: neither numbers nor maps may know what it holds."""
    path = tmp_path / "c4d_170101_000000_ooi_r_v1.fits.fz"
    good = make_image(shape=DECAM.shape, stars=300)
    broken = good.copy()
    broken[:, 1023:] = np.random.default_rng(1).normal(9000, 900, broken[:, 1023:].shape)
    write(path, S7=good, N4=good)
    (s7, n4), results = numbers_of([row_of(path, 31, "S7"), row_of(path, 35, "N4", hdu=2)])
    write(path, S7=broken)
    (with_broken,), broken_results = numbers_of([row_of(path, 31, "S7")])
    assert s7["masked_share"] == pytest.approx(0.5, abs=1e-3)
    assert n4["masked_share"] == 0
    for name in ("sky_level", "noise", "sources", "fwhm", "gradient", "edge_excess", "col_wave", "saturated_share"):
        assert with_broken[name] == s7[name], name
    assert s7["sky_level"] == pytest.approx(n4["sky_level"], abs=0.5)
    assert np.array_equal(broken_results[0].views.background, results[0].views.background, equal_nan=True)
    assert np.array_equal(broken_results[0].views.context, results[0].views.context)


def test_a_file_that_breaks_the_reader_is_rows(tmp_path, monkeypatch):
    path = tmp_path / "c4d_170101_000000_ooi_r_v1.fits.fz"
    write(path, N4=make_image(shape=(64, 64), stars=0))
    monkeypatch.setattr(exposures, "open_exposure", lambda *_, **__: 1 // 0)
    (result,) = read_exposure([row_of(path, 35, "N4")], {"decam": DECAM}, Config())
    assert names_of(result.failed) == ["not_measured"]
    assert str(path) in result.said
    assert "ZeroDivisionError" in result.trace


@pytest.mark.parametrize(("expnum", "share"), [(298250, 100 / 4094), (298251, 0)])
def test_glowing_edges_are_left_out_up_to_a_date(tmp_path, expnum, share):
    path = tmp_path / "c4d_140101_000000_ooi_r_v1.fits.fz"
    image = make_image(shape=DECAM.shape, stars=0)
    image[:100] += np.linspace(400, 0, 100, dtype=np.float32)[:, None]
    write(path, N4=image)
    (found,), _ = numbers_of([row_of(path, 35, "N4", expnum=expnum)])
    assert found["masked_share"] == pytest.approx(share, abs=1e-6)
    assert (found["edge_excess"] > 0.3) == (share == 0)


@pytest.mark.parametrize("height", [10, 400])
def test_glow_at_an_edge_is_seen_even_where_it_passes_for_a_source(tmp_path, height):
    path = tmp_path / "c4d_170101_000000_ooi_r_v1.fits.fz"
    image = make_image(shape=(1024, 512), stars=20)
    image[:40] += height
    write(path, N4=image)
    (found,), _ = numbers_of([row_of(path, 35, "N4")])
    assert found["edge_excess"] == pytest.approx(height / 400, rel=0.2)


def expected_share(path, ccdname, plver):
    """Of pixels that the mask beside a DECam image leaves out, by astropy."""
    mask = path.with_name(path.name.replace("_ooi_", "_ood_").replace("_oki_", "_ood_"))
    with fits.open(mask) as hdus:
        dq = next(hdu.data for hdu in hdus if hdu.data is not None and hdu.name in (ccdname, ""))
    return float(masked_pixels(np.asarray(dq, np.int32), plver).mean())


def test_every_real_image_is_looked_at_with_its_mask(shared_data):
    """DECam, Mosaic3 and 90prime; only names of DECam tell it where the mask is."""
    count = decam = 0
    for path in sorted((shared_data / "real" / "legacypipe_tests").rglob("*.fits")):
        if any(part in path.name for part in ("ood", "oow", ".wht.", "survey-ccds")):
            continue
        with open_exposure(path) as file:
            rows = [row_of(path, hdu.ccdnum or 1, hdu.name, hdu=hdu.index, plver="V4.8.2") for hdu in file.images]
        for row, found in zip(rows, numbers_of(rows)[0], strict=True):
            assert math.isfinite(found["sky_level"])
            assert found["noise"] > 0
            assert found["mask_problem"] == 0
            expected = expected_share(path, row.ccdname, row.plver) if path.name.startswith("c4d") else 0.0
            assert found["masked_share"] == pytest.approx(expected, abs=1e-6), path
            decam += path.name.startswith("c4d")
            count += 1
    assert count >= 25
    assert decam >= 12
