from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa import instruments
from hpcqa.reasons import REASONS, from_bits, to_bits
from hpcqa.survey import sheets
from hpcqa.survey.statements import CcdNamer

NAMER = CcdNamer(instruments.KNOWN[0])
PATH = Path("sheet.csv")


def own(text):
    return sheets.parse_own(text.splitlines(), PATH, NAMER)


def review(text):
    return sheets.parse_review(text.splitlines(), PATH, NAMER)


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
    assert reading.left_out == {"no exposure number": [2], "no verdict": [3], "unknown CCD": [4]}


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
        assert item.reasons == (to_bits(reasons) if bad else 0)
        assert item.severity == severity or (severity is None and math.isnan(item.severity))


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


def test_header_below_a_title_and_other_delimiters():
    reading = review("my sheet of 2024\nexpnum\tyufeng_badexp\tyufeng_reason\n137380.0\t1.0\tghsot\n")
    assert [(s.expnum, s.bad, from_bits(s.reasons)) for s in reading.statements] == [(137380, True, ["ghost"])]


@given(st.text(max_size=200))
def test_no_text_upsets_the_sheets(text):
    for parse in (own, review):
        for item in parse("expnum,verdict,a_badexp\n" + text).statements:
            assert 0 < item.expnum < 2**63
            assert item.bad == bool(item.reasons)
