from __future__ import annotations

import datetime as dt
import gzip
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import ConfigError, DataError
from hpcqa.survey.tables import choose_columns, expand_paths, read_tables, wanted_columns
from tests.survey.tools import table_columns, write_fits


def test_reads_what_astropy_reads(tmp_path):
    columns = table_columns(exposures=range(1000, 1100), fwhm=list(np.linspace(1, 9, 200)))
    rows = read_tables([write_fits(tmp_path / "t.fits", columns)])
    assert len(rows) == 200
    assert rows.numbers["expnum"].tolist() == columns["expnum"]
    assert rows.text["image_filename"].expand().tolist() == columns["image_filename"]
    assert rows.text["band"].words == ("r",)
    np.testing.assert_allclose(rows.numbers["fwhm"], columns["fwhm"], rtol=1e-6)
    assert rows.numbers["mjd_obs"].tolist() == columns["mjd_obs"]
    assert rows.table_row.tolist() == list(range(200))


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_compression_is_told_by_content_not_by_name(tmp_path, suffix):
    path = write_fits(tmp_path / "t.fits", table_columns())
    other = tmp_path / ("odd" + suffix)
    raw = path.read_bytes()
    other.write_bytes(gzip.compress(raw) if suffix == ".fits" else raw)
    assert read_tables([other]).numbers["expnum"].tolist() == [1001, 1001, 1002, 1002]


def test_blocks_join_without_a_seam(tmp_path, monkeypatch):
    from hpcqa.survey import bintable

    path = write_fits(tmp_path / "t.fits.gz", table_columns(exposures=range(1000, 1300)))
    whole = read_tables([path])
    monkeypatch.setattr(bintable, "BLOCK_BYTES", 1000)
    parts = read_tables([path])
    for name, values in whole.numbers.items():
        np.testing.assert_array_equal(values, parts.numbers[name])
    for name, column in whole.text.items():
        assert column.expand().tolist() == parts.text[name].expand().tolist()


def test_picks_the_table_that_has_expnum_among_many(tmp_path):
    tree = fits.BinTableHDU.from_columns([fits.Column("kdtree", "J", array=np.arange(5000))])
    image = fits.ImageHDU(np.zeros((30, 40), np.float32))
    path = write_fits(tmp_path / "t.kd.fits", table_columns(), before=[tree, image], after=[tree])
    assert len(read_tables([path])) == 4


def test_names_in_any_case_with_blanks_and_synonyms(tmp_path):
    columns = table_columns()
    odd = {name.upper() if index % 2 else name.title(): values for index, (name, values) in enumerate(columns.items())}
    odd["CCDNAME"] = ["N1  ", "N2", " N1", "N2 "]
    odd.pop("Ccdname", None)
    odd["MJD-OBS"] = odd.pop("Mjd_Obs")
    rows = read_tables([write_fits(tmp_path / "t.fits", odd)])
    assert rows.text["ccdname"].expand().tolist() == ["N1", "N2", "N1", "N2"]
    assert np.isfinite(rows.numbers["mjd_obs"]).all()


def test_numbers_written_as_text_and_text_as_numbers(tmp_path):
    columns = table_columns(
        expnum=["1001", "1001 ", "abc", ""], ccdnum=["4", "03", "2.0", "x"], object=[37333, 37333, 5, 5]
    )
    rows = read_tables([write_fits(tmp_path / "t.fits", columns)])
    assert rows.numbers["expnum"].tolist() == [1001, 1001, 0, 0]
    assert rows.numbers["ccdnum"].tolist() == [4, 3, 2, -1]
    assert rows.text["object"].expand().tolist() == ["37333", "37333", "5", "5"]


def test_expnum_as_float_with_nan_becomes_zero(tmp_path):
    rows = read_tables([write_fits(tmp_path / "t.fits", table_columns(expnum=[1.0e6, np.nan, 151119075127.0, np.inf]))])
    assert rows.numbers["expnum"].tolist() == [1000000, 0, 151119075127, 0]


def test_sixteen_bit_ccd_cuts_keep_their_highest_bit(tmp_path):
    cuts = np.array([0, 0x200, -0x8000, 1], np.int16)
    rows = read_tables([write_fits(tmp_path / "t.fits", table_columns(ccd_cuts=cuts))])
    assert rows.numbers["ccd_cuts"].tolist() == [0, 0x200, 0x8000, 1]


def test_units_are_converted(tmp_path):
    path = write_fits(tmp_path / "t.fits", table_columns(exptime=[1.5] * 4, ra=[1.0] * 4))
    with fits.open(path, mode="update") as hdus:
        names = hdus[1].columns.names
        hdus[1].header[f"TUNIT{names.index('exptime') + 1}"] = "min"
        hdus[1].header[f"TUNIT{names.index('ra') + 1}"] = "hourangle"
    rows = read_tables([path])
    assert rows.numbers["exptime"].tolist() == [90.0] * 4
    assert rows.numbers["ra"].tolist() == [15.0] * 4


def test_scaled_and_unsigned_columns(tmp_path):
    columns = table_columns()
    made = [fits.Column(name, f"{max(map(len, v))}A", array=v) for name, v in columns.items() if isinstance(v[0], str)]
    made += [
        fits.Column("expnum", "K", bzero=2**63, array=np.array([1, 2, 2**40, 4], np.uint64)),
        fits.Column("mjd_obs", "J", array=np.array([2, 3, 4, 0])),
        fits.Column("width", "I", bzero=32768, array=np.array([1, 2, 40000, 4], np.uint16)),
    ]
    path = tmp_path / "t.fits"
    fits.BinTableHDU.from_columns(made).writeto(path)
    fits.setval(path, f"TSCAL{len(made) - 1}", value=0.5, ext=1)
    fits.setval(path, f"TZERO{len(made) - 1}", value=60000.0, ext=1)
    rows = read_tables([path])
    assert rows.numbers["expnum"].tolist() == [1, 2, 2**40, 4]
    assert rows.numbers["mjd_obs"].tolist() == [60001.0, 60001.5, 60002.0, 60000.0]
    assert rows.numbers["width"].tolist() == [1, 2, 40000, 4]


def test_several_tables_of_different_make(tmp_path):
    first = write_fits(tmp_path / "a.fits", table_columns(object=["x"] * 4))
    second = write_fits(tmp_path / "b.fits", table_columns(exposures=(5,), plver=None, exptime=None))
    rows = read_tables([first, second])
    assert len(rows) == 6
    assert rows.table.expand().tolist() == [str(first)] * 4 + [str(second)] * 2
    assert rows.table_row.tolist() == [0, 1, 2, 3, 0, 1]
    assert rows.text["plver"].expand().tolist() == ["V5.5"] * 4 + [""] * 2
    assert np.isnan(rows.numbers["exptime"][4:]).all()


def test_parquet_tables(tmp_path):
    columns = table_columns(exposures=range(1000, 1010))
    columns["filter"] = ["r", None] * 10
    table = pa.table(columns)
    table = table.set_column(table.column_names.index("camera"), "camera", table["camera"].dictionary_encode())
    pq.write_table(table, tmp_path / "t.parquet")
    rows = read_tables([tmp_path / "t.parquet"])
    assert rows.numbers["expnum"].tolist() == columns["expnum"]
    assert rows.text["band"].expand().tolist() == ["r", ""] * 10
    assert rows.text["camera"].words == ("minicam",)


def test_masked_integers_are_missing_not_their_stand_in(tmp_path):
    """astropy writes 999999 for a masked integer: a plausible exposure number."""
    table = Table(table_columns(image_hdu=[1, 2, 3, 4], exptime=[90, 90, 90, 90]), masked=True)
    for name, row in (("expnum", 1), ("image_hdu", 2), ("exptime", 3)):
        table[name].mask[row] = True
    table.write(tmp_path / "t.fits")
    rows = read_tables([tmp_path / "t.fits"])
    assert rows.numbers["expnum"][1] == 0
    assert (rows.numbers["expnum"] > 0).tolist() == [True, False, True, True]
    assert rows.numbers["image_hdu"].tolist() == [1, 2, 0, 4]
    np.testing.assert_array_equal(rows.numbers["exptime"], np.float32([90, 90, 90, np.nan]))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary(1)]
)
def test_parquet_text_of_every_kind(tmp_path, kind):
    columns = pa.table(table_columns())
    band = pa.array(["r", "g", None, "r"]).cast(pa.binary() if pa.types.is_fixed_size_binary(kind) else kind).cast(kind)
    columns = columns.set_column(columns.column_names.index("filter"), "filter", band)
    pq.write_table(columns, tmp_path / "t.parquet")
    assert read_tables([tmp_path / "t.parquet"]).text["band"].expand().tolist() == ["r", "g", "", "r"]


def test_parquet_moments_and_nested_columns(tmp_path):
    columns = pa.table(table_columns())
    moment = dt.datetime(2020, 1, 1, 12)
    columns = columns.set_column(
        columns.column_names.index("mjd_obs"), "mjd_obs", pa.array([moment, None, moment, moment])
    )
    several = columns.drop("ra").append_column("ra", pa.array([[1.0], [2.0], [], [3.0]]))
    pq.write_table(several, tmp_path / "t.parquet")
    rows = read_tables([tmp_path / "t.parquet"])
    np.testing.assert_array_equal(rows.numbers["mjd_obs"], [58849.5, np.nan, 58849.5, 58849.5])
    assert np.isnan(rows.numbers["ra"]).all()
    pq.write_table(columns.append_column("ra", pa.array([1.0, 2.0, 3.0, 4.0])), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet: not a readable Parquet table .*\bra\b"):
        read_tables([tmp_path / "twice.parquet"])
    nested = pa.array([[1], [2], [3], [4]])
    pq.write_table(columns.drop("expnum").add_column(0, "expnum", nested), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"n\.parquet: no column expnum \(columns found: \(expnum\)"):
        read_tables([tmp_path / "n.parquet"])


@pytest.mark.parametrize("missing", ["image_filename", "filter", "mjd_obs"])
def test_a_missing_column_is_one_sentence_with_what_was_found(tmp_path, missing):
    path = write_fits(tmp_path / "t.fits", table_columns(**{missing: None}))
    with pytest.raises(DataError, match=missing) as caught:
        read_tables([path])
    assert str(path) in str(caught.value)
    assert "ccdname" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neither_ccdname_nor_ccdnum(tmp_path):
    with pytest.raises(DataError, match="ccdname or ccdnum"):
        read_tables([write_fits(tmp_path / "t.fits", table_columns(ccdname=None))])


def test_no_expnum_anywhere(tmp_path):
    with pytest.raises(DataError, match="no table with a column expnum"):
        read_tables([write_fits(tmp_path / "t.fits", table_columns(expnum=None))])


def test_an_empty_table_stops(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        read_tables([write_fits(tmp_path / "t.fits", {name: v[:0] for name, v in table_columns().items()} | EMPTY)])


EMPTY = {"expnum": np.empty(0, np.int64), "image_hdu": np.empty(0, np.int64)} | {
    name: np.empty(0) for name in ("mjd_obs", "exptime", "ra", "dec")
}
for _name in ("image_filename", "camera", "ccdname", "filter", "plver", "plprocid"):
    EMPTY[_name] = np.empty(0, "U4")


@pytest.mark.parametrize(
    "content", [b"", b"not a table", b"SIMPLE", b"\x1f\x8b broken gzip", b"PAR1 broken", bytes(9000)]
)
def test_files_that_are_no_tables(tmp_path, content):
    path = tmp_path / "t.fits"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_tables([path])
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="not found"):
        read_tables([tmp_path / "none.fits"])
    with pytest.raises(DataError):
        read_tables([tmp_path])


@pytest.mark.parametrize("name", ["t.fits", "t.fits.gz"])
@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.2, 0.01])
def test_truncated_tables_say_so(tmp_path, name, share):
    path = write_fits(tmp_path / name, table_columns(exposures=range(1000, 1500)))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    try:
        rows = read_tables([path])
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - both ways are right: padding may be what is lost
    else:
        assert share == 0.999
        assert len(rows) == 1000


@given(st.data())
def test_damaged_headers_raise_data_errors_only(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    raw = bytearray(write_fits(folder / "t.fits", table_columns()).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "u.fits").write_bytes(bytes(raw))
    try:
        read_tables([folder / "u.fits"])
    except DataError as error:
        assert "u.fits" in str(error)  # noqa: PT017


def test_expand_paths_keeps_order_and_drops_repeats(tmp_path):
    for name in ("b.fits", "a.fits", "c.txt"):
        (tmp_path / name).touch()
    found = expand_paths([str(tmp_path / "c.txt"), str(tmp_path / "*.fits"), str(tmp_path / "a.fits")], "survey.tables")
    assert [path.name for path in found] == ["c.txt", "a.fits", "b.fits"]
    with pytest.raises(ConfigError, match=r"survey\.tables: .* matches no file"):
        expand_paths([str(tmp_path / "*.gz")], "survey.tables")


def test_columns_are_each_described_once():
    names = [entry.name for entry in wanted_columns()]
    assert len(names) == len(set(names))
    assert choose_columns("t", ["EXPNUM", "Image_Filename", "FILTER", "MJD-OBS", "CCDNUM"]) == {
        "expnum": 0,
        "image_filename": 1,
        "band": 2,
        "mjd_obs": 3,
        "ccdnum": 4,
    }


def test_real_tables_of_every_generation(shared_data):
    patterns = [str(shared_data / "real" / "legacypipe_tests" / "*" / "survey-ccds*")]
    rows = read_tables(expand_paths(patterns, "survey.tables"))
    assert len(rows) == 27
    cameras = rows.text["camera"].expand().tolist()
    assert [cameras.count(camera) for camera in ("90prime", "mosaic", rows.text["camera"].words[2])] == [12, 3, 12]
    assert (rows.numbers["expnum"] > 0).all()
    assert set(rows.text["band"].words) == {"g", "r", "z"}
    assert (rows.numbers["image_hdu"] == 1).all()
    assert np.isfinite(rows.numbers["zpt"]).all()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("is_packed", [False, True])
def test_tables_of_text(tmp_path, delimiter, is_packed):
    columns = table_columns(plver=["V4.8.2a, new"] * 4, plprocid=["98e7001"] * 4, ccdnum=[4, "", 5, "nan"])
    table = Table(columns)
    path = tmp_path / "t.csv"
    table.write(path, format="ascii.csv", delimiter=delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"expnum", b"EXPNUM"))
    if is_packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    rows = read_tables([path])
    reference = read_tables([write_fits(tmp_path / "t.fits", table_columns())])
    for name, values in rows.numbers.items():
        np.testing.assert_array_equal(values, [4, -1, 5, -1] if name == "ccdnum" else reference.numbers[name])
    assert rows.text["ccdname"].expand().tolist() == columns["ccdname"]
    assert rows.text["plver"].words == ("V4.8.2a, new",)
    assert rows.text["plprocid"].words == ("98e7001",)


def test_ecsv_with_units_and_missing_cells(tmp_path):
    table = Table(table_columns(exptime=[1.5] * 4, fwhm=[1.0, 2.0, 3.0, 4.0]), masked=True)
    table["exptime"].unit = "min"
    table["fwhm"].mask = [False, True, False, False]
    table.write(tmp_path / "t.ecsv")
    rows = read_tables([tmp_path / "t.ecsv"])
    assert rows.numbers["exptime"].tolist() == [90.0] * 4
    np.testing.assert_array_equal(rows.numbers["fwhm"], [1.0, np.nan, 3.0, 4.0])


def test_a_table_of_text_with_rows_of_other_lengths_stops(tmp_path):
    (tmp_path / "t.csv").write_text(
        "expnum,image_filename,filter,mjd_obs,ccdname\n1001,a.fits,r,60000,N1\n1002,b.fits\n"
    )
    with pytest.raises(DataError, match=r"t\.csv: does not read as a table \(.*Expected 5 columns, got 2"):
        read_tables([tmp_path / "t.csv"])


@pytest.mark.parametrize("before", ["", "# one row an expnum and ccd\n#\n# - name: expnum\n\n"])
@pytest.mark.parametrize("mark", ["", "# "])
def test_remarks_before_a_header_of_text(tmp_path, before, mark):
    Table(table_columns()).write(tmp_path / "t.csv", format="ascii.csv", delimiter=" ")
    (tmp_path / "t.csv").write_text(before + mark + (tmp_path / "t.csv").read_text())
    assert read_tables([tmp_path / "t.csv"]).numbers["expnum"].tolist() == [1001, 1001, 1002, 1002]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_tables_of_text_in_any_encoding(tmp_path, encoding):
    Table(table_columns(object=["Señor"] * 4)).write(tmp_path / "a.csv", format="ascii.csv")
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read_tables([tmp_path / "t.csv"]).text["object"].words == ("Señor",)


def test_parquet_columns_of_nothing_decimals_and_durations(tmp_path):
    columns = table_columns() | {
        "expnum": pa.array([Decimal(1001), Decimal(1001), None, Decimal(1002)], pa.decimal128(20)),
        "exptime": [dt.timedelta(seconds=90)] * 4,
        "plver": pa.nulls(4),
        "fwhm": pa.nulls(4),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows = read_tables([tmp_path / "t.parquet"])
    assert rows.numbers["expnum"].tolist() == [1001, 1001, 0, 1002]
    assert rows.numbers["exptime"].tolist() == [90.0] * 4
    assert rows.text["plver"].words == ("",)
    assert np.isnan(rows.numbers["fwhm"]).all()


def test_julian_dates_become_modified_ones(tmp_path):
    path = write_fits(tmp_path / "t.fits", table_columns(mjd_obs=[2460683.75, 60683.25, 0.0, float("nan")]))
    np.testing.assert_array_equal(read_tables([path]).numbers["mjd_obs"], [60683.25, 60683.25, 0.0, np.nan])
