"""Damaged images and useless labels: one sentence, the right exit code, and the rest of the survey goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from hpcqa.artifacts import catalog
from hpcqa.artifacts.store import read_table
from tests.endtoend.conftest import SMALL, hpcqa

pytestmark = pytest.mark.slow


def image_of(survey: Path, table: Table, expnum: int) -> Path:
    row = table[table["expnum"] == expnum][0]
    return survey / "images" / row["image_filename"].strip()


def rewrite(path: Path, change) -> None:
    with fits.open(path) as file:
        changed = [change(hdu) for hdu in file[1:]]
        hdus = fits.HDUList([file[0].copy(), *(hdu for hdu in changed if hdu is not None)])
    hdus.writeto(path, overwrite=True)


def plain(hdu, data):
    return fits.ImageHDU(data.astype("f4"), hdu.header.copy(), name=hdu.name)


def all_nan(hdu):
    return plain(hdu, np.full(hdu.data.shape, np.nan))


def without_last(name):
    return lambda hdu: None if hdu.name == name else plain(hdu, hdu.data)


@pytest.fixture(scope="module")
def broken(finished, tmp_path_factory):
    """Ten exposures, seven of them broken in different ways, and the run of them."""
    root = tmp_path_factory.mktemp("broken")
    survey = root / "survey"
    shutil.copytree(finished.survey, survey)
    table = Table.read(survey / "survey-ccds-minicam.fits.gz")
    expnums = sorted(set(table["expnum"]))[:10]
    table = table[np.isin(table["expnum"], expnums)]
    how = dict(zip(("truncated", "empty", "missing", "nan", "no_hdu", "band", "garbage"), expnums, strict=False))
    table["filter"][table["expnum"] == how["band"]] = "Q"
    table.write(survey / "survey-ccds-minicam.fits.gz", overwrite=True)
    path = {name: image_of(survey, table, expnum) for name, expnum in how.items()}
    path["truncated"].write_bytes(path["truncated"].read_bytes()[: path["truncated"].stat().st_size // 2])
    path["empty"].write_bytes(b"")
    path["garbage"].write_bytes(b"not FITS" * 1000)
    path["missing"].unlink()
    rewrite(path["nan"], all_nan)
    last = table[table["expnum"] == how["no_hdu"]]["ccdname"][-1].strip()
    rewrite(path["no_hdu"], without_last(last))
    words = [
        *SMALL,
        "ssl.steps=0",
        "shard.max_failed=0.9",
        f"survey.tables=[{survey}/survey-ccds-minicam.fits.gz]",
    ]
    done = hpcqa("run", f"run={root}/run", *words)
    return root / "run", how, table, done, words


def test_the_survey_goes_on_and_every_broken_exposure_says_why(broken):
    run, how, table, done, _ = broken
    assert done.returncode == 0, done.stderr
    decisions = read_table(run / "decisions.parquet", catalog.DECISIONS)
    why = dict(zip(decisions["expnum"].tolist(), decisions["why"], strict=True))
    assert sorted(why) == sorted(set(table["expnum"].tolist()))
    for name in ("empty", "missing", "nan", "band", "garbage"):
        assert why[how[name]], name
    assert "Q" in why[how["band"]] or "band" in why[how["band"]]


def test_a_missing_hdu_costs_one_ccd(broken):
    run, how, _, _, _ = broken
    ccds = read_table(run / "ccd_decisions.parquet", catalog.CCD_DECISIONS)
    mine = ccds["expnum"] == how["no_hdu"]
    named = [text for text in ccds["why"][mine] if "no labelled" not in text and text]
    assert len(named) == 1, ccds["why"][mine].tolist()


def test_failures_are_counted_in_the_log(broken):
    *_, done, _ = broken
    assert "have no views" in done.stderr


def test_too_many_failures_end_with_an_error(broken):
    done = hpcqa("shard", f"run={broken[0]}", "shard.max_failed=0.1")
    assert done.returncode == 3
    assert "shard.max_failed" in done.stderr


def test_no_labels_leave_everything_undecided_with_novelty(broken):
    run, _, _, done, _ = broken
    decisions = read_table(run / "decisions.parquet", catalog.DECISIONS)
    assert set(decisions["verdict"]) == {"undecided"}
    assert np.isfinite(decisions["novelty"]).any()
    assert "no labelled exposures" in done.stderr


@pytest.mark.parametrize("content", ["expnum,verdict\n4711,bad\n", "one class"])
def test_useless_labels_are_an_error_after_the_rest_is_done(broken, tmp_path, content):
    """The labels come to a run that is done but for them: nothing else is done again."""
    run, how, table, _, _ = broken
    shutil.copytree(run, tmp_path / "run")
    labels = tmp_path / "labels.csv"
    if content == "one class":
        known = sorted(set(table["expnum"].tolist()) - set(how.values()))
        content = "expnum,verdict\n" + "".join(f"{expnum},bad\n" for expnum in known)
    labels.write_text(content)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.h5")}
    assert before
    done = hpcqa("run", f"run={tmp_path}/run", "shard.max_failed=0.9", f"survey.labels=[{labels}]")
    assert done.returncode == 3, done.stderr
    assert "survey.labels" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "report" / "index.html").exists()
    decisions = read_table(tmp_path / "run" / "decisions.parquet", catalog.DECISIONS)
    assert len(decisions["expnum"]) == 10
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.h5")} == before


def test_a_table_without_expnum_or_without_rows_is_named(finished, tmp_path):
    table = Table.read(finished.survey / "survey-ccds-minicam.fits.gz")
    for name, content in (("empty", table[:0]), ("columns", table["ra", "dec"])):
        path = tmp_path / f"survey-ccds-{name}.fits"
        content.write(path)
        done = hpcqa("manifest", f"run={tmp_path}/{name}", f"survey.tables=[{path}]")
        assert done.returncode == 3, done.stderr
        assert str(path) in done.stderr.splitlines()[-1]
        assert not (tmp_path / name / "manifest.parquet").exists()


def test_a_missing_image_directory_is_named(finished, tmp_path):
    done = hpcqa(
        "manifest",
        f"run={tmp_path}/run",
        f"survey.tables=[{finished.survey}/survey-ccds-minicam.fits.gz]",
        f"survey.images=[{tmp_path}/nowhere]",
    )
    assert done.returncode in (2, 3)
    assert f"{tmp_path}/nowhere" in done.stderr.splitlines()[-1]
