from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from hpcqa import instruments
from hpcqa.errors import DataError
from hpcqa.reasons import BIT, REASONS, from_bits
from hpcqa.survey import sheets
from hpcqa.survey.statements import CcdNamer

NAMER = CcdNamer(instruments.KNOWN[0])
PATH = Path("sheet.csv")


def rows_of(text):
    lines = text.splitlines()
    return sheets.records(lines, sheets.find_header(lines))


def own(text):
    return sheets.parse_own(rows_of(text), PATH, NAMER)


def review(text):
    return sheets.parse_review(rows_of(text), PATH, NAMER)


@pytest.mark.parametrize("text", ["yes", "yes ", "y?", "Y", "1.0", "1", "True", "bad", "yes?"])
def test_yes(text):
    assert sheets.vote(text) is True


@pytest.mark.parametrize("text", ["no", "n", "False", "0", "0.0", "good"])
def test_no(text):
    assert sheets.vote(text) is False


@pytest.mark.parametrize("text", ["", "maybe", "nan", "?", "maybe?", "2"])
def test_abstention(text):
    assert sheets.vote(text) is None


def test_own_format():
    reading = own(
        "expnum,ccdnum,verdict,reasons,severity,comment\n1301000,,bad,nonoptimal|clouds,0.884,shallow\n"
        '1301001,-1,good,,,"fine, really"\n1301002,7,bad,,,donuts\n1301003,7.0,bad,strange thing,,\n1301004,,bad,,,\n'
    )
    got = [(s.expnum, s.ccdnum, s.bad, from_bits(s.reasons)) for s in reading.statements]
    assert got == [
        (1301000, -1, True, ["clouds", "nonoptimal"]),
        (1301001, -1, False, []),
        (1301002, 7, True, ["out_of_focus"]),
        (1301003, 7, True, ["wonky"]),
        (1301004, -1, True, ["other"]),
    ]
    assert reading.statements[0].severity == 0.884
    assert math.isnan(reading.statements[1].severity)
    assert reading.statements[1].text == "fine, really"


def test_own_format_leaves_odd_rows_out_and_says_which():
    reading = own("expnum,ccdnum,verdict\nabc,,bad\n1301000,,perhaps\n1301001,XX9,bad\n1301002,,bad\n")
    assert [s.expnum for s in reading.statements] == [1301002]
    assert reading.left_out == {
        "no exposure number": [2],
        "a verdict that is neither good nor bad": [3],
        "unknown CCD": [4],
    }


@given(
    st.lists(
        st.tuples(
            st.integers(1000, 10**13),
            st.integers(-1, 14),
            st.booleans(),
            st.lists(st.sampled_from(REASONS), min_size=1, max_size=3),
            st.one_of(st.none(), st.floats(0, 1, width=32)),
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20).map(str.strip),
        ),
        max_size=10,
    )
)
def test_own_format_reads_back_what_csv_writes(rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(sheets.OWN_COLUMNS)
    for expnum, ccdnum, bad, reasons, severity, comment in rows:
        row = [expnum, ccdnum if ccdnum > 0 else "", "bad" if bad else "good", "|".join(reasons), severity, comment]
        writer.writerow(row)
    reading = own(out.getvalue())
    assert len(reading.statements) == len(rows)
    for item, (expnum, ccdnum, bad, reasons, severity, _) in zip(reading.statements, rows, strict=True):
        assert (item.expnum, item.ccdnum, item.bad) == (expnum, ccdnum if ccdnum > 0 else -1, bad)
        assert item.reasons == (sum(BIT[name] for name in set(reasons)) if bad else 0)
        assert item.severity == severity or (severity is None and math.isnan(item.severity))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expnum,reason\n346662,clouds\n346663,\n", [(346662, -1, "clouds"), (346663, -1, "other")]),
        ("EXPNUM,CCDNUM,REASON,ANALYST\n346662,31,Ghost Scatter,me\n", [(346662, 31, "ghost")]),
        (",expnum,ccdnum,image_hdu,filter,reasons,vi_source\n0,346662,31,30,2,4,2\n", [(346662, 31, "other")]),
        ("expnum;ccdname;comment\n346662;N26;ghost\n346663;;streak\n", [(346662, 57, "ghost"), (346663, -1, "streak")]),
        ("expnum ccdnum reason\n 346662  31  bright  star\n346663 2 noise\n",
         [(346662, 31, "bright_star"), (346663, 2, "noise")]),
        ("# expnum ccdnum reason\n# a remark\n346662 2 noise\n", [(346662, 2, "noise")]),
        ("expnum ccdnum reason\n346663 -1 \"bad seeing\"\n", [(346663, -1, "bad_seeing")]),
        ("visit,detector,comment\n2025050100123,94,amp glitch\n", [(2025050100123, 94, "amplifier")]),
        ("day_obs,seq_num,comment\n20250501,123,donuts\n2025-05-02,7,\"ghost, two\"\n",
         [(2025050100123, -1, "out_of_focus"), (2025050200007, -1, "ghost")]),
        ("expnum,ccdnum\n346662,31\n346663,None\n", [(346662, 31, "other"), (346663, -1, "other")]),
        ("expnum,ccdname,reason\n346662,\"N4, S7\",ghost\n346663,all,ghost\n",
         [(346662, 35, "ghost"), (346662, 31, "ghost"), (346663, -1, "ghost")]),
        ("expnum,reason\n346662-N4,ghost\n346663,clouds\n", [(346662, 35, "ghost"), (346663, -1, "clouds")]),
        ("# expnum ccdname why\n346662 N4 amp jump\n", [(346662, 35, "amplifier")]),
    ],
)  # fmt: skip
def test_a_table_with_reasons_and_without_a_verdict_lists_what_is_bad(text, expected):
    reading = sheets.parse_own(rows_of(text), PATH, CcdNamer("decam"))
    assert [(s.expnum, s.ccdnum, *from_bits(s.reasons)) for s in reading.statements] == expected
    assert all(s.bad for s in reading.statements)
    assert reading.kind == "table"


def test_cells_may_hold_line_ends_and_the_key_and_verdict_other_names():
    reading = own('Exposure,is_bad,Notes\n1301000,yes,"clouds,\nthen ghosts"\n1301001,0,\n')
    assert [(s.expnum, s.bad, from_bits(s.reasons), s.line) for s in reading.statements] == [
        (1301000, True, ["clouds", "ghost"], 3),
        (1301001, False, [], 4),
    ]


@pytest.mark.parametrize("rows", [3, 20_000])
def test_a_quote_that_nobody_closes_swallows_no_rows(rows):
    """With many rows it would exceed csv's limit of a cell."""
    below = "".join(f"{400000 + row},bad,clouds\n" for row in range(rows))
    reading = own('expnum,verdict,comment\n346343,bad,"fine, so far"\n346344,bad,"ghost\n' + below)
    assert [s.expnum for s in reading.statements] == [346343, 346344, *range(400000, 400000 + rows)]
    assert [s.line for s in reading.statements] == list(range(2, rows + 4))
    assert from_bits(reading.statements[1].reasons) == ["ghost"]


@pytest.mark.parametrize(
    "text", ["# the expnum of each is bad\n", "#EXPID\tFlag\tcomments\n", "#Nite  Exposure  Problem\n"]
)
def test_comments_are_no_headers(text):
    assert sheets.find_header(text.splitlines()) is None


def test_fits_lists_of_des_and_delve(tmp_path):
    kinds = [("EXPNUM", ">i4"), ("CCDNUM", ">i2"), ("REASON", "S30"), ("ANALYST", "S30")]
    rows = np.array([(346662, 31, b"Ghost Scatter", b"me"), (346663, 2, b"nothing known", b"")], kinds)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((2, 2))), fits.BinTableHDU(rows)]).writeto(
        tmp_path / "a.fits"
    )
    names, found = sheets.read_fits(tmp_path / "a.fits")
    assert sheets.kind_of(names) == "table"
    reading = sheets.parse_own(found, PATH, NAMER)
    assert [(s.expnum, s.ccdnum, from_bits(s.reasons)) for s in reading.statements] == [
        (346662, 31, ["ghost"]),
        (346663, 2, ["other"]),
    ]
    whole = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[:9000])
    with pytest.raises(DataError, match=r"cut\.fits"):
        sheets.read_fits(tmp_path / "cut.fits")
    fits.PrimaryHDU().writeto(tmp_path / "none.fits")
    with pytest.raises(DataError, match="no table with a column expnum"):
        sheets.read_fits(tmp_path / "none.fits")


def test_review_keeps_each_reviewer():
    reading = review(
        "expnum,image_fname,ML_reason,alex_badexp,alex_reason,frank_badexp,frank_reason\n"
        '137380,c4d_x,"NObjects,Wonky",True,transparency; pupil,False,\n137389,c4d_y,PSF,yes ,,maybe,\n'
    )
    got = [(s.expnum, s.bad, from_bits(s.reasons), s.source) for s in reading.statements]
    assert got == [
        (137380, True, ["clouds", "pupil"], "sheet.csv: alex"),
        (137380, False, [], "sheet.csv: frank"),
        (137389, True, ["other"], "sheet.csv: alex"),
    ]
    assert reading.statements[2].text == "(classifier: PSF)"
    assert reading.left_out == {"abstention": [3]}


def test_a_sheet_with_a_row_for_each_reviewer_names_them():
    reading = own("expnum,reviewer,verdict,reason\n346343,ann,reject,ghost\n346343,ben,keep,\n346343,cem,maybe,\n")
    assert [(s.bad, s.source) for s in reading.statements] == [(True, "sheet.csv: ann"), (False, "sheet.csv: ben")]
    assert reading.left_out == {"abstention": [4]}


def test_words_that_are_no_vote_are_told_from_abstentions_and_shares_from_reviewers():
    reading = review("expnum,p_bad,ann_bad,ann_comment\n346343,0.9,yes,ghost\n346344,1,,\n346345,0,yes indeed,\n")
    assert [(s.expnum, s.source, from_bits(s.reasons)) for s in reading.statements] == [
        (346343, "sheet.csv: ann", ["ghost"])
    ]
    assert reading.left_out == {"abstention": [3], "a verdict that is neither good nor bad": [4]}


def test_header_below_a_title_and_other_delimiters():
    reading = review("my sheet of 2024\nexpnum\tyufeng_badexp\tyufeng_reason\n137380.0\t1.0\tghsot\n")
    assert [(s.expnum, s.bad, from_bits(s.reasons)) for s in reading.statements] == [(137380, True, ["ghost"])]


@given(st.text(max_size=200))
def test_no_text_upsets_the_sheets(text):
    for parse in (own, review):
        for item in parse("expnum,verdict,a_badexp\n" + text).statements:
            assert 0 < item.expnum < 2**63
            assert item.bad == bool(item.reasons)


@pytest.mark.parametrize("name", ["status", "label", "quality", "is_bad", "decision"])
def test_a_verdict_by_another_name(name):
    reading = own(f"expnum,{name},comment\n1301000,good,ghost of a doubt\n1301001,bad,\n1301002,Ghost,\n1301003,odd,\n")
    got = [(s.expnum, s.bad, from_bits(s.reasons)) for s in reading.statements]
    assert got == [(1301000, False, []), (1301001, True, ["other"]), (1301002, True, ["ghost"])]
    assert reading.left_out == {"a verdict that is neither good nor bad": [5]}


@pytest.mark.parametrize(("good", "bad"), [("1", "0"), ("True", "False"), ("yes", "no"), ("T", "F")])
def test_a_column_that_says_what_is_good(good, bad):
    reading = own(f"expnum,is_good\n1301000,{good}\n1301001,{bad}\n1301002,maybe\n1301003,bad\n")
    assert [(s.expnum, s.bad) for s in reading.statements] == [(1301000, False), (1301001, True)]
    assert reading.left_out == {"abstention": [4], "a verdict that is neither good nor bad": [5]}


def test_a_row_whose_whole_reason_is_good_is_good():
    reading = own("expnum,class\n1301000,good\n1301001,PSF\n1301002,\n")
    assert [s.bad for s in reading.statements] == [False, True, True]


def test_our_own_name_counts_before_another():
    rows = rows_of("visit,expnum,status,verdict,class,reasons\n7,1301000,bad,good,x,\n")
    assert rows[0][1] == {
        **{"visit": "7", "expnum": "1301000", "status": "bad", "verdict": "good", "class": "x", "reasons": ""}
    }


def test_cells_cut_at_bars():
    reading = own("| expnum | reason |\n|---|---|\n| 1301000 | ghost |\n")
    assert [s.expnum for s in reading.statements] == [1301000]


def test_a_line_without_end_is_no_failure():
    assert sheets.find_header(["1301000 " + "x" * 200_000, '{"a": "' + "y" * 200_000]) is None
