"""Exports as their consumers read them."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from hpcqa.artifacts import catalog
from hpcqa.qa import exports
from tests.qa.run_folder import empty_columns

SOURCE = exports.Source("0.1.0", "0123456789abcdef", dt.date(2025, 3, 1))
LONG = 151119075127  # date-style, beyond 32 bits


@pytest.fixture
def tables() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A good exposure, one that is bad as a whole, one with a bad CCD, one in review; two CCDs each."""
    decisions = empty_columns(catalog.DECISIONS, 4)
    decisions["expnum"] = np.array([10, 20, LONG, 40])
    decisions["verdict"] = np.array(["good", "bad", "bad", "review"], object)
    decisions["extent"] = np.array(["", "exposure", "ccds", ""], object)
    decisions["reasons"] = np.array(["", "clouds,psf", "ghost", ""], object)
    decisions["p_bad"] = np.array([0.01, 0.99, 0.9, 0.5], "f4")
    decisions["night"] = np.array([20250101, 20250102, 20250103, 20250104], "i4")
    decisions["why"][3] = "p_bad in between"
    ccds = empty_columns(catalog.CCD_DECISIONS, 8)
    ccds["expnum"] = np.repeat(decisions["expnum"], 2)
    ccds["ccdnum"] = np.tile([31, 62], 4).astype("i4")
    ccds["ccdname"] = np.tile(np.array(["S7", "N31"], object), 4)
    ccds["verdict"] = np.array(["good", "good", "bad", "good", "good", "bad", "good", "bad"], object)
    ccds["reasons"][5] = "ghost"
    ccds["p_bad"] = np.array([0, 0, 1, 0.1, 0, 0.9, 0, 0.9], "f4")
    ccds["table_row"] = np.arange(8)
    return decisions, ccds


def test_entries_are_whole_exposures_and_single_ccds(tables) -> None:
    listed = exports.entries(*tables)
    assert [(entry.expnum, entry.ccdname) for entry in listed] == [(20, ""), (LONG, "N31")]


def test_bad_expid_reads_as_legacypipe_reads_it(tables) -> None:
    text = exports.bad_expid_text(exports.entries(*tables), SOURCE)
    assert "hpcqa 0.1.0, model 0123456789ab, 2025-03-01" in text.splitlines()[0]
    whole, single = {}, {}
    for line in text.splitlines():  # legacypipe: split at blanks, a hyphen sets a CCD apart, '#' is a comment
        if line.startswith("#") or not line.strip():
            continue
        words = line.split()
        key = words[0].split("-")
        (single if len(key) == 2 else whole)[int(key[0])] = (key[-1], words[1], " ".join(words[2:]))
    assert whole == {20: ("20", "2", "clouds, psf p=0.99")}
    assert single == {LONG: ("N31", "3", "ghost p=0.90")}


def test_exclude_table_has_a_row_for_each_ccd(tables) -> None:
    decisions, ccds = tables
    text = exports.exclude_text(exports.entries(decisions, ccds), ccds, SOURCE)
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert rows == [
        ["20250102", "20", "S7", "nan", "31"],
        ["20250102", "20", "N31", "nan", "62"],
        ["20250103", str(LONG), "N31", "nan", "62"],
    ]
    assert "#date expnum ccd id ccdnum" in text


def test_ecsv_holds_whole_exposures_as_64_bit_numbers(tables, tmp_path: Path) -> None:
    path = tmp_path / "bad.ecsv"
    decisions, ccds = tables
    decisions["extent"][2] = "exposure"
    path.write_text(exports.ecsv_text(exports.entries(decisions, ccds), SOURCE))
    table = Table.read(path, format="ascii.ecsv")
    assert table["exposure"].dtype == np.int64
    assert table["exposure"].tolist() == [20, LONG]
    assert table["comment"][0] == "clouds, psf p=0.99"


def test_an_empty_list_is_still_readable(tables, tmp_path: Path) -> None:
    path = tmp_path / "bad.ecsv"
    path.write_text(exports.ecsv_text([], SOURCE))
    assert len(Table.read(path, format="ascii.ecsv")) == 0
    assert all(line.startswith("#") for line in exports.bad_expid_text([], SOURCE).splitlines())


def test_cuts_are_set_lifted_and_kept(tables) -> None:
    decisions, ccds = tables
    listed = exports.entries(decisions, ccds)
    before = np.array([0x200, 0x1, 0, 0, 0, 0x4, 0x200, 0])
    after = exports.updated_cuts(before, ccds["expnum"], ccds["ccdnum"], listed, np.array([10]))
    assert after.tolist() == [0, 0x1, 0x200, 0x200, 0, 0x204, 0x200, 0]


def test_fits_tables_have_units_and_comments(tables, tmp_path: Path) -> None:
    decisions, _ = tables
    exports.write_fits(tmp_path / "decisions.fits", catalog.DECISIONS, decisions, SOURCE)
    read = fitsio.read(tmp_path / "decisions.fits")
    assert read["expnum"].tolist() == [10, 20, LONG, 40]
    assert [value.decode().strip() if isinstance(value, bytes) else value.strip() for value in read["verdict"]] == (
        decisions["verdict"].tolist()
    )
    header = fits.getheader(tmp_path / "decisions.fits", 1)
    assert header.comments["TTYPE1"]
    assert re.match(r"hpcqa 0\.1\.0, model 0123456789ab", header["ORIGIN"])


def test_no_rows_make_a_table_all_the_same(tmp_path: Path) -> None:
    exports.write_fits(tmp_path / "d.fits", catalog.DECISIONS, empty_columns(catalog.DECISIONS, 0), SOURCE)
    assert len(fits.getdata(tmp_path / "d.fits", 1)) == 0


@pytest.mark.parametrize("with_column", [True, False])
def test_survey_tables_are_copied_with_new_cuts(tables, tmp_path: Path, with_column: bool) -> None:
    decisions, ccds = tables
    path = tmp_path / "survey-ccds-decam.fits.gz"
    columns = [fits.Column("expnum", "K", array=ccds["expnum"]), fits.Column("ra", "D", unit="deg", array=np.ones(8))]
    if with_column:
        columns.append(fits.Column("CCD_CUTS", "J", array=np.full(8, 4)))
    fits.BinTableHDU.from_columns(columns).writeto(path)
    before = path.read_bytes()
    ccds["table"][:] = str(path)
    listed = exports.entries(decisions, ccds)
    cuts = exports.updated_cuts(np.full(8, 4 * with_column), ccds["expnum"], ccds["ccdnum"], listed, np.array([10]))
    exports.write_survey_tables(tmp_path / "out", ccds["table"], ccds["table_row"], cuts)
    copy = fitsio.read(tmp_path / "out" / "survey-ccds-decam.fits")
    name = "CCD_CUTS" if with_column else "ccd_cuts"
    assert copy[name].tolist() == cuts.tolist()
    assert copy["ra"].tolist() == [1.0] * 8
    assert path.read_bytes() == before
