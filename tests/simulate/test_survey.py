"""The stage as a whole: files that open, the same whatever the workers, going on after a kill, clear refusals."""

import importlib.util
import signal
import subprocess
import sys
import time

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import SimulateConfig
from hpcqa.errors import ConfigError, EnvironmentProblem
from hpcqa.instruments import get
from hpcqa.parallel.ranks import detect
from hpcqa.simulate.survey import run
from hpcqa.simulate.tables import COLUMNS
from tests.simulate.conftest import contents, run_survey, small_config

CAMERA = get("minicam")


@pytest.fixture(scope="module")
def table(survey):
    return Table.read(survey / "survey-ccds-minicam.fits.gz", hdu=1)


def test_every_row_names_an_image_that_opens_in_astropy_and_fitsio(survey, table):
    assert len(table) == 6 * len(CAMERA.ccds)
    for name in sorted(set(table["image_filename"]))[:2]:
        path = survey / "images" / str(name)
        rows = table[table["image_filename"] == name]
        with fits.open(path) as file:
            assert len(file) == len(CAMERA.ccds) + 1
            assert file[0].data is None
            for row in rows[::5]:
                hdu = file[int(row["image_hdu"])]
                assert hdu.name == row["ccdname"]
                assert hdu.header["CCDNUM"] == CAMERA.ccdnum_of(row["ccdname"])
                assert hdu.shape == CAMERA.shape == (row["height"], row["width"])
                assert hdu.data.dtype.kind == "f"
                np.testing.assert_array_equal(hdu.data, fitsio.read(str(path), ext=row["ccdname"]))


def test_compression_is_the_community_pipelines(survey, table):
    path = survey / "images" / str(table["image_filename"][0])
    header = fits.open(path, disable_image_compression=True)[1].header
    assert (header["ZCMPTYPE"], header["ZQUANTIZ"]) == ("RICE_1", "SUBTRACTIVE_DITHER_1")
    assert (header["ZTILE1"], header["ZTILE2"]) == (CAMERA.shape[1], 1)
    assert header["FZQVALUE"] == 4


def test_masks_hold_codes_and_belong_to_their_images(survey, table):
    image = survey / "images" / str(table["image_filename"][0])
    mask = CAMERA.companion(image, "dqmask")
    assert "_ood_" in mask.name
    with fits.open(mask) as file:
        assert file[0].header["PRODTYPE"] == "dqmask"
        data = file["N4"].data
    assert data.dtype.kind == "i"
    assert set(np.unique(data)) <= {0, 1, 3, 4, 5, 8}
    np.testing.assert_array_equal(data, fitsio.read(str(mask), ext="N4"))


def test_headers_have_what_readers_ask_for(survey, table):
    for name in sorted(set(table["image_filename"])):
        with fits.open(survey / "images" / str(name)) as file:
            file[0].verify("exception")
            numbers = CAMERA.header_numbers(file[0].header, file[1].header)
            rows = table[table["image_filename"] == name]
            assert int(file[0].header["EXPNUM"]) == rows["expnum"][0]
            assert CAMERA.band_of(file[0].header["FILTER"]) == rows["filter"][0]
            assert file[0].header["PLVER"] == rows["plver"][0]
            assert file[0].header["DIMMSEE"] == "NaN"
        for number in ("header_fwhm", "header_ellipticity", "header_zero_point", "header_focus_error"):
            assert np.isfinite(numbers[number]), number


def test_table_has_the_columns_and_types_of_dr9(table):
    assert [name for name, _ in COLUMNS] == table.colnames
    for name, kind in COLUMNS:
        expected = "S" if kind == "U" else np.dtype(kind).kind
        assert table[name].dtype.kind in (expected, "U" if expected == "S" else expected), name
        if expected in "if":
            assert table[name].dtype.itemsize == np.dtype(kind).itemsize, name
    assert np.all((table["fwhm"] > 1.5) & (table["fwhm"] < 60))
    assert np.all(table["ccdskycounts"] > 0)
    assert str(table["image_filename"][0]).startswith("minicam/CP/V5.5/CP20250105/mc4_2501")


def test_places_of_the_table_agree_with_the_wcs(survey, table):
    from astropy.wcs import WCS

    row = table[5]
    header = fits.getheader(survey / "images" / str(row["image_filename"]), int(row["image_hdu"]))
    ra, dec = WCS(header).all_pix2world([[(row["width"] - 1) / 2, (row["height"] - 1) / 2]], 0)[0]
    assert ra == pytest.approx(row["ra"], abs=0.002)
    assert dec == pytest.approx(row["dec"], abs=0.002)


def test_two_workers_write_the_same_bytes(survey, tmp_path):
    other = run_survey(small_config(workers=2), tmp_path)
    assert contents(other) == contents(survey)


def test_threads_over_ccds_write_the_same_bytes(config, survey, tmp_path):
    from hpcqa.simulate.exposure import image_path, make_exposure
    from hpcqa.simulate.plan import plan_survey

    plan = plan_survey(config)[2]
    make_exposure(config, tmp_path, plan, threads=3)
    name = image_path(plan, "minicam")
    assert (tmp_path / "images" / name).read_bytes() == (survey / "images" / name).read_bytes()


SCRIPT = """
import sys
from pathlib import Path
from tests.simulate.conftest import run_survey, small_config
run_survey(small_config(), Path(sys.argv[1]))
"""


def test_goes_on_after_a_kill(survey, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(tmp_path.glob("survey/exposures/*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("survey/exposures/*.json")}
    assert done
    assert not (tmp_path / "survey" / "truth.csv").exists()
    (tmp_path / "survey" / "images" / ".left.fits.fz.host.1.tmp").write_bytes(b"half a file")
    assert contents(run_survey(small_config(), tmp_path)) == contents(survey)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


def test_a_finished_survey_is_left_alone_and_needs_no_galsim(config, survey, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = {path: path.stat().st_mtime_ns for path in survey.rglob("*")}
    run_survey(config, survey.parent)
    assert {path: path.stat().st_mtime_ns for path in survey.rglob("*")} == before


def test_a_missing_galsim_says_how_to_get_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install"):
        run_survey(config, tmp_path)


def test_a_survey_of_other_settings_is_refused(other_seed, survey):
    with pytest.raises(ConfigError, match=r"other settings.*choose another run folder or remove"):
        run(other_seed, RunFolder(survey.parent), detect({}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"novel": ["gost"]}, r"simulate.novel=gost: no such reason"),
        ({"start": "5 January"}, r"simulate.start=5 January: expected a date"),
        ({"exposures": 20000, "nights": 3}, r"simulate.nights=3: too few for 20000 exposures; expected at least 4"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_survey(small_config(**settings), tmp_path)


def test_defaults_are_legal():
    assert set(SimulateConfig().novel) == {"pupil", "amplifier", "edge_glow"}
