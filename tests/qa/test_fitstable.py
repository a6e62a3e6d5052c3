"""FITS tables block by block, read back by fitsio and astropy."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.artifacts.schema import Column, Schema
from hpcqa.errors import DataError
from hpcqa.qa import fitstable

SCHEMA = Schema(
    "things",
    1,
    (
        Column("expnum", "int64", "Exposure number; date-style numbers of 12 digits occur, " + "and so on " * 20),
        Column("ccdnum", "int32", "CCD."),
        Column("words", "str", "Words."),
        Column("fwhm", "float32", "Width.", unit="arcsec"),
    ),
)


def columns_of(rows: int) -> dict[str, np.ndarray]:
    return {
        "expnum": np.arange(rows, dtype=np.int64) + 151119075127,
        "ccdnum": np.arange(rows, dtype=np.int32) % 62,
        "words": np.array([f"word {row % 5}" if row % 3 else "" for row in range(rows)], dtype=object),
        "fwhm": np.where(np.arange(rows) % 7 == 0, np.nan, np.arange(rows)).astype("f4"),
    }


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_what_is_written_is_read(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitstable, "ROWS_AT_ONCE", 64)
    columns = columns_of(rows)
    fitstable.write_table(tmp_path / "t.fits", SCHEMA, columns, "hpcqa 1")
    assert (tmp_path / "t.fits").stat().st_size % 2880 == 0
    with fits.open(tmp_path / "t.fits") as file:
        file.verify("exception")
        header = file[1].header
    table = Table.read(tmp_path / "t.fits")
    assert len(table) == rows
    assert table["expnum"].tolist() == columns["expnum"].tolist()
    assert [str(word).strip() for word in fits.getdata(tmp_path / "t.fits")["words"]] == columns["words"].tolist()
    np.testing.assert_array_equal(np.asarray(table["fwhm"].filled(np.nan) if rows else []), columns["fwhm"])
    assert str(table["fwhm"].unit) == "arcsec"
    assert header["ORIGIN"] == "hpcqa 1"
    assert header["EXTNAME"] == "THINGS"
    assert header.comments["TTYPE2"] == "CCD."
    assert header["TCOMM1"] == SCHEMA.columns[0].doc.strip()
    if rows:
        np.testing.assert_array_equal(fitsio.read(tmp_path / "t.fits")["ccdnum"], columns["ccdnum"])


def test_text_beyond_ascii_stays_readable(tmp_path: Path) -> None:
    columns = columns_of(2) | {"words": np.array(["Ångström", "plain"], dtype=object)}
    fitstable.write_table(tmp_path / "t.fits", SCHEMA, columns, "x")
    assert [str(word).strip() for word in Table.read(tmp_path / "t.fits")["words"]] == ["?ngstr?m", "plain"]


FORMS = {"I": 0x7FFF, "J": 2**31 - 1, "K": 2**62}


@given(
    form=st.sampled_from(sorted(FORMS)),
    rows=st.integers(1, 50),
    before=st.lists(st.sampled_from(["3A", "1L", "11X", "2E", "1D", "4J"]), max_size=4),
    data=st.data(),
)
def test_one_column_changes_and_nothing_else(tmp_path_factory, form, rows, before, data) -> None:
    path = tmp_path_factory.mktemp("fits") / "in.fits"
    rng = np.random.default_rng(rows)
    made = [fits.Column(f"c{place}", kind, array=_values(kind, rows, rng)) for place, kind in enumerate(before)]
    made += [fits.Column("EXPNUM", "K", array=np.arange(rows)), fits.Column("CCD_CUTS", form, array=np.zeros(rows))]
    made += [fits.Column("after", "E", array=rng.random(rows))]
    fits.BinTableHDU.from_columns(made).writeto(path)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1)))), np.int64)
    values = np.array([data.draw(st.integers(0, FORMS[form])) for _ in chosen], np.int64)
    fitstable.copy_with_integers(path, path.with_name("out.fits"), "ccd_cuts", chosen, values)
    old, new = fits.getdata(path, 1), fits.getdata(path.with_name("out.fits"), 1)
    expected = np.zeros(rows, np.int64)
    expected[chosen] = values
    assert new["ccd_cuts"].tolist() == expected.tolist()
    for name in old.names:
        if name != "CCD_CUTS":
            np.testing.assert_array_equal(old[name], new[name])
    if not values.any():
        assert path.read_bytes() == path.with_name("out.fits").read_bytes()


def _values(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "3A":
        return np.full(rows, "abc")
    shape = {"1L": (rows,), "11X": (rows, 11), "2E": (rows, 2), "1D": (rows,), "4J": (rows, 4)}[kind]
    return rng.integers(0, 2, shape).astype(bool) if kind in ("1L", "11X") else rng.integers(0, 100, shape)


@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_a_table_without_the_column_gets_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"in{ending}"
    words = fits.Column("list", "PJ()", array=np.array([np.arange(n) for n in range(5)], dtype=object))
    table = fits.BinTableHDU.from_columns([fits.Column("expnum", "K", array=np.arange(5)), words])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, checksum=True)
    fitstable.copy_with_integers(path, tmp_path / f"out{ending}", "ccd_cuts", np.array([1, 4]), np.array([512, 2**40]))
    with fits.open(tmp_path / f"out{ending}", checksum=True) as file:
        assert file[1].data["ccd_cuts"].tolist() == [0, 512, 0, 0, 2**40]
        assert [list(row) for row in file[1].data["list"]] == [list(range(n)) for n in range(5)]
    assert (tmp_path / f"out{ending}").read_bytes()[:2] == (b"\x1f\x8b" if ending.endswith("gz") else b"SI")


def test_equal_contents_make_equal_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "in.fits.gz"
    fits.BinTableHDU.from_columns([fits.Column("expnum", "K", array=np.arange(5))]).writeto(path)
    for name in ("one.fits.gz", "two.fits.gz"):
        fitstable.copy_with_integers(path, tmp_path / name, "ccd_cuts", np.array([1]), np.array([512]))
    assert (tmp_path / "one.fits.gz").read_bytes() == (tmp_path / "two.fits.gz").read_bytes()


@pytest.mark.parametrize("damage", ["short", "no table", "no integers"])
def test_what_is_no_ccd_table_is_said(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in.fits"
    kind = "E" if damage == "no integers" else "J"
    name = "other" if damage == "no table" else "expnum"
    columns = [fits.Column(name, "K", array=np.arange(2000)), fits.Column("ccd_cuts", kind, array=np.zeros(2000))]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DataError, match=str(path)):
        fitstable.copy_with_integers(path, tmp_path / "out.fits", "ccd_cuts", np.array([1]), np.array([512]))
    assert not (tmp_path / "out.fits").exists()


def test_a_damaged_compressed_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "in.fits.gz"
    fits.BinTableHDU.from_columns([fits.Column("expnum", "K", array=np.arange(20000))]).writeto(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="complete"):
        fitstable.copy_with_integers(path, tmp_path / "out.fits.gz", "ccd_cuts", np.array([1]), np.array([512]))
