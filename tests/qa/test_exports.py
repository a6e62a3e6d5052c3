"""Exports as their consumers read them."""

from __future__ import annotations

import datetime as dt
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


def read_bad_expid(text: str) -> dict[object, str]:
    """As legacypipe's psfzpt_cuts.read_bad_expid does: blanks separate, a hyphen sets a CCD apart, # is a comment."""
    found: dict[object, str] = {}
    for line in text.splitlines():
        words = line.strip().split()
        if not words or line[0] == "#":
            continue
        key = words[0].split("-")
        assert len(key) <= 2, "legacypipe would skip it"
        found[int(key[0]) if len(key) == 1 else (int(key[0]), key[1])] = " ".join(words[1:])
    return found


def test_bad_expid_reads_as_legacypipe_reads_it(tables, shared_data: Path) -> None:
    text = exports.bad_expid_text(exports.entries(*tables), SOURCE)
    assert "hpcqa 0.1.0, model 0123456789ab, 2025-03-01" in text.splitlines()[0]
    expected = {20: "2 clouds, psf p=0.99", (LONG, "N31"): "3 ghost p=0.90"}
    assert read_bad_expid(text) == expected
    # Appended to the real list it adds these and changes nothing else.
    real = (shared_data / "labels" / "legacypipe_decam-bad_expid.txt").read_text()
    assert read_bad_expid(real + text) == read_bad_expid(real) | expected


def test_a_ccd_without_a_name_is_not_a_whole_exposure(tables) -> None:
    decisions, ccds = tables
    ccds["ccdname"][:] = ""
    listed = exports.entries(decisions, ccds)
    assert set(read_bad_expid(exports.bad_expid_text(listed, SOURCE))) == {20, (LONG, "CCD62")}
    assert exports.ecsv_text(listed, SOURCE).splitlines()[-1].startswith("20,")


def test_exclude_table_has_a_row_for_each_ccd(tables) -> None:
    decisions, ccds = tables
    listed = exports.entries(decisions, ccds)
    text = exports.exclude_text(listed, exports.excluded_ccds(listed, ccds), SOURCE)
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
    assert table["exposure"].dtype == np.uint64  # as lsst-dm/excluded_visits has it
    assert table.colnames == ["exposure", "comment"]
    assert np.all(np.diff(table["exposure"].astype(np.int64)) > 0)
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


def test_exclude_table_is_as_make_exclude_list_writes_it(tables, tmp_path: Path) -> None:
    decisions, ccds = tables
    exports.write_exports(tmp_path, decisions, ccds, np.zeros(8, np.int64), SOURCE, with_tables=False)
    read = fitsio.read(tmp_path / "exclude.fits")
    assert read.dtype.names == ("EXPNUM", "CCDNUM", "REASON", "ANALYST")
    assert read["EXPNUM"].tolist() == [20, 20, LONG]
    assert read["CCDNUM"].dtype.kind == "i"
    assert read["CCDNUM"].dtype.itemsize == 2
    assert [reason.strip() for reason in read["REASON"].astype(str)] == ["clouds|psf", "clouds|psf", "ghost"]
    assert set(read["ANALYST"].astype(str)) == {"hpcqa 0.1.0"}


def test_the_same_ccd_in_two_tables_is_excluded_once(tables) -> None:
    decisions, ccds = tables
    twice = {name: np.concatenate([values, values]) for name, values in ccds.items()}
    listed = exports.entries(decisions, twice)
    assert len(listed) == 2
    assert exports.excluded_ccds(listed, twice).ccdnum.tolist() == [31, 62, 62]


@pytest.mark.parametrize("name", ["survey-ccds-decam.fits.gz", "survey-ccds-decam.kd.fits"])
def test_survey_tables_are_copied_with_new_cuts(tables, tmp_path: Path, name: str) -> None:
    """As legacypipe reads them: gzipped, or with a kd-tree in tables before and after it."""
    decisions, ccds = tables
    path = tmp_path / name
    columns = [
        fits.Column("expnum", "K", array=ccds["expnum"]),
        fits.Column("ccd_cuts", "I", array=np.array([0x200, 4, 0, 0, 0, 4, 0x200, 0])),
        fits.Column("ra", "D", unit="deg", array=np.arange(8.0)),
    ]
    tree = fits.BinTableHDU.from_columns([fits.Column("kdtree_bb", "2D", array=np.ones((3, 2)))])
    table = fits.BinTableHDU.from_columns(columns)
    fits.HDUList([fits.PrimaryHDU(), *([tree] if "kd" in name else []), table, tree.copy()]).writeto(path)
    before = path.read_bytes()
    ccds["table"][:] = str(path)
    cuts = np.array([0x200, 4, 0, 0, 0, 4, 0x200, 0])
    exports.write_exports(tmp_path / "out", decisions, ccds, cuts, SOURCE, with_tables=True)
    copy = tmp_path / "out" / "survey-ccds" / name
    number = 2 if "kd" in name else 1
    read = fitsio.read(copy, ext=number)
    assert read["ccd_cuts"].tolist() == [0, 4, 0x200, 0x200, 0, 0x204, 0x200, 0]
    assert read["ra"].tolist() == list(range(8))
    assert fitsio.read(copy, ext=number + 1)["kdtree_bb"].tolist() == [[1.0, 1.0]] * 3
    assert path.read_bytes() == before
