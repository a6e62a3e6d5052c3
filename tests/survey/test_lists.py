from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa import instruments
from hpcqa.reasons import BIT, from_bits
from hpcqa.survey import lists
from hpcqa.survey.statements import CcdNamer, parse_expnum

FIRST, *OTHERS = instruments.KNOWN
NAMER = CcdNamer(FIRST)
PATH = Path("list.txt")
CCD = instruments.get(FIRST).ccds[4]


def bad_expid(text):
    return lists.parse_bad_expid(text.splitlines(), PATH, NAMER)


def said(reading):
    return [(item.expnum, item.ccdnum, from_bits(item.reasons)) for item in reading.statements]


def test_header_tabs_flags_and_columns():
    reading = bad_expid(
        "#EXPID\tFlag\tcomments\n#Flags: 1=possibly saturated; 2=clouds; 3=other source\n"
        "346343 expfactor=0.208  seeing=1.400\n346662\t1\n346663   2  \n346664 3\n346665 3   weird sky structures \n"
        "583194 1 \tbetween 10.7 and 12 twilight\n"
    )
    assert said(reading) == [
        (346343, -1, ["nonoptimal"]),
        (346662, -1, ["saturated"]),
        (346663, -1, ["clouds"]),
        (346664, -1, ["other"]),
        (346665, -1, ["wonky"]),
        (583194, -1, ["saturated"]),
    ]
    assert [item.line for item in reading.statements] == [3, 4, 5, 6, 7, 8]


def test_sections_give_reasons_to_entries_without_words():
    reading = bad_expid(
        "# Exposures that were out-of-focus [decam-chatter 16493]\n\n316794\n331628 Earthquake\n331629 odd\n\n500001\n"
        "# bad astrometry\n784312\n#297-09-15\n784313\n"
    )
    assert said(reading) == [
        (316794, -1, ["out_of_focus"]),
        (331628, -1, ["psf"]),
        (331629, -1, ["other"]),
        (500001, -1, ["other"]),
        (784312, -1, ["bad_wcs"]),
        (784313, -1, ["other"]),
    ]
    assert "out-of-focus" in reading.statements[0].source


def test_ccd_suffixes():
    reading = bad_expid(f"754142-{CCD.ccdname} noisy\n79807-CCD4 amp\n754143-Q99\n754144-N1-N2\n")
    assert said(reading) == [(754142, CCD.ccdnum, ["noise"]), (79807, 4, ["amplifier"])]
    assert reading.left_out == {"unknown CCD": [3], "not understood (expected EXPNUM[-CCD] [flag] [text])": [4]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("346343# clouds", [(346343, -1, ["clouds"])]),
        ("346343; ghost", [(346343, -1, ["ghost"])]),
        ("346343: trailed", [(346343, -1, ["psf"])]),
        ("346343 #", [(346343, -1, ["other"])]),
        ("346343.0 clouds", [(346343, -1, ["clouds"])]),
        ("D00346343 clouds", [(346343, -1, ["clouds"])]),
        (f"346343-{CCD.ccdname}: amp", [(346343, CCD.ccdnum, ["amplifier"])]),
        (f"346343-{CCD.ccdname};ccd3 amp", [(346343, CCD.ccdnum, ["amplifier"]), (346343, 3, ["amplifier"])]),
        (f"346343-{CCD.ccdname}/CCD03", [(346343, CCD.ccdnum, ["other"]), (346343, 3, ["other"])]),
        (f"346343-{CCD.ccdname[0].lower()}0{CCD.ccdname[1:]}", [(346343, CCD.ccdnum, ["other"])]),
    ],
)  # fmt: skip
def test_entries_are_written_in_many_ways(line, expected):
    reading = bad_expid(line)
    assert said(reading) == expected
    assert reading.left_out == {}


def test_a_ccd_behind_a_blank_is_told():
    reading = bad_expid(f"346343 {CCD.ccdname} noisy\n346344 -{CCD.ccdname}\n346345 Q99 object\n346346 1 M31\n")
    assert [item.ccdnum for item in reading.statements] == [-1] * 4
    assert reading.left_out == {"a CCD behind a blank (taken as the whole exposure)": [1, 2]}


def test_the_exposures_own_camera_must_have_the_ccd():
    own = instruments.get(FIRST)
    namer = CcdNamer(FIRST, np.array([346343]), np.array([own.cameras[0]], object))
    text = f"346343-{len(own.ccds)}\n346343-{len(own.ccds) + 1}\n346343-0\n555555-99\n"
    reading = lists.parse_bad_expid(text.splitlines(), PATH, namer)
    assert [(item.expnum, item.ccdnum) for item in reading.statements] == [(346343, len(own.ccds)), (555555, 99)]
    assert reading.left_out == {"unknown CCD": [2, 3]}


def test_several_ccds_behind_commas():
    first, second, third = (ccd for ccd in instruments.get(FIRST).ccds[:3])
    names = f"{first.ccdname}, {second.ccdname},{third.ccdname.lower()}"
    reading = bad_expid(f"346343-{names}  ghost near N4\n346344-{first.ccdname} {second.ccdname} too\n")
    assert [item[:2] for item in said(reading)] == [
        (346343, first.ccdnum),
        (346343, second.ccdnum),
        (346343, third.ccdnum),
        (346344, first.ccdnum),
    ]
    assert {item.text for item in reading.statements} == {"ghost near N4", f"{second.ccdname} too"}


def test_commented_out_ids_are_not_bad():
    reading = bad_expid(
        "#775378 zero\n# 430480 3 pupil ghost subtraction problem?\n# 78320 to 78419\n775379 out of focus\n"
    )
    assert said(reading) == [(775379, -1, ["out_of_focus"])]
    assert reading.left_out == {"commented out": [1, 2, 3]}


def test_the_same_as_before():
    reading = bad_expid("400001 3 thick clouds\n400002 3   same\n400003 ditto\n400004 -do-\n")
    assert [item[2] for item in said(reading)] == [["clouds"]] * 4


def test_numbers_beyond_32_bits():
    reading = bad_expid("151119075127 trailed image\n2025041700761\n")
    assert [item.expnum for item in reading.statements] == [151119075127, 2025041700761]


def test_inline_comments_of_other_telescopes():
    assert said(bad_expid("73990123 # donutty\n")) == [(73990123, -1, ["out_of_focus"])]


def exclude(text, name="ghost-scatter-y06.txt"):
    return lists.parse_exclude(text.splitlines(), Path(name), NAMER)


def test_exclude_rows_with_and_without_names():
    reading = exclude(
        "#date     expnum ccd id ccdnum\n20121101  145507 nan nan 14\n"
        f"20121101  145507  66 {CCD.ccdname} {CCD.ccdnum}\n"
        f"20121103  146600 nan {CCD.ccdname}\n20191221  921464 nan nan\n20191221  921465 nan nan nan\n"
        "#20191221 921466 nan nan 1\n"
    )
    assert [(item.expnum, item.ccdnum) for item in reading.statements] == [
        (145507, 14),
        (145507, CCD.ccdnum),
        (146600, CCD.ccdnum),
        (921464, -1),
        (921465, -1),
    ]
    assert all(item.reasons == BIT["ghost"] for item in reading.statements)
    assert reading.left_out == {"no CCD (taken as the whole exposure)": [5, 6], "commented out": [7]}


def test_exclude_rows_with_odd_cells():
    reading = exclude(
        f"20121101 145507 nan nan 4.0\n20121101,145508,nan,nan,5\n20121101 145509 {CCD.ccdname}\n"
        "20121101 145510 nan Q99 nan\n"
    )
    expected = [(145507, 4), (145508, 5), (145509, CCD.ccdnum), (145510, -1)]
    assert [(item.expnum, item.ccdnum) for item in reading.statements] == expected
    assert reading.left_out == {"unknown CCD (taken as the whole exposure)": [4]}


def test_exclude_headings_carry_the_reason():
    reading = exclude(
        "#date expnum ccd id ccdnum\n20130612 211972 nan nan 7\n# meteor\n20130612 211973 nan nan 7\n# Lightbulb\n"
        "20130612 211974 nan nan 7\n# DECADE Addition\n20130612 211975 nan nan 7\n"
        "# 20190702 - Saturn: 869331 - 869400: CCD 44\n"
        "20190702 869331 nan nan 44\n",
        "noise-y01.txt",
    )
    assert [from_bits(item.reasons) for item in reading.statements] == [
        ["noise"],
        ["streak"],
        ["bad_ccd"],
        ["noise"],
        ["bright_star"],
    ]


def test_exclude_disagreement_takes_the_number_and_says_so():
    wrong = CCD.ccdnum + 1
    reading = exclude(f"20121103  146603  71 {CCD.ccdname}   {wrong}\n")
    assert reading.statements[0].ccdnum == wrong
    assert list(reading.left_out) == ["CCD name and number disagree (number taken)"]


def test_problem_lists():
    reading = lists.parse_problems(
        "#Nite           Exposure        Problem\n20121102        145846          Telescope Moving\n"
        "20130816  226942  Clouds \n#20190331  844998  Rho Ophiuchi\n20130816  226943\n".splitlines(),
        PATH,
    )
    assert said(reading) == [
        (145846, -1, ["telescope_moving"]),
        (226942, -1, ["clouds"]),
        (226943, -1, ["other"]),
    ]
    assert reading.left_out == {"commented out": [4]}


def test_rubin_lists_with_and_without_a_header():
    text = "# %ECSV 1.0\n# ---\nexposure,comment\n2025041700761, tracking stopped\n2025041800615,\nx, y\n"
    reading = lists.parse_plain_csv(text.splitlines(), PATH, NAMER)
    assert said(reading) == [(2025041700761, -1, ["psf", "telescope_moving"]), (2025041800615, -1, ["other"])]
    assert reading.left_out == {"no exposure number": [6]}


def test_ccds_behind_the_number_in_comma_lists():
    reading = lists.parse_plain_csv([f"346343-{CCD.ccdname}, ghost", "346344, clouds", "346345-Q99,"], PATH, NAMER)
    assert said(reading) == [(346343, CCD.ccdnum, ["ghost"]), (346344, -1, ["clouds"])]
    assert reading.left_out == {"unknown CCD": [3]}


def test_failed_wcs_lists_leave_the_fine_ones_out():
    reading = lists.parse_failed_wcs(
        [
            "path,expnum",
            "decam/CP/V4.8.2a/CP20141028/c4d_141029_043225_ooi_z_ls9.fits.fz,372546",
            "decam/CP/V4.8.2/CP20141028/c4d_141029_043225_ooi_z_v1.fits.fz,372547",
        ],
        PATH,
    )
    assert said(reading) == [(372547, -1, ["bad_wcs"])]
    assert reading.left_out == {"reprocessing whose WCS is fine": [2]}


@pytest.mark.parametrize(
    "text", ["", "12", "abc", "12a", "-5", "0000", "1" * 19, "1.5", "²³¹²", "2.02505E+12", "1e", "nan"]
)
def test_what_is_no_exposure_number(text):
    assert parse_expnum(text) is None


@pytest.mark.parametrize("text", ["346343", " 346343.0", "3.46343e+05", "3.46343E5", "D00346343", "00346343"])
def test_what_is_an_exposure_number(text):
    assert parse_expnum(text) == 346343


def test_names_mean_what_the_exposures_own_camera_means():
    shared = next(
        ccd.ccdname
        for ccd in instruments.get(OTHERS[0]).ccds
        if instruments.get(FIRST).ccdnum_of(ccd.ccdname) not in (None, ccd.ccdnum)
    )
    own = instruments.get(OTHERS[0])
    namer = CcdNamer(FIRST, np.array([5001]), np.array([own.cameras[0]], object))
    assert namer.number(shared, 5001) == own.ccdnum_of(shared)
    assert namer.number(shared, 5002) == instruments.get(FIRST).ccdnum_of(shared)
    assert set(namer.candidates(shared, 5002)) >= {own.ccdnum_of(shared)}


WORDS = st.sampled_from(
    [
        "#",
        " ",
        "\t",
        "346343",
        "20121101",
        "-N1",
        "-S7",
        "1",
        "nan",
        "clouds",
        "same",
        "seeing=2.1",
        ",",
        "\\",
        '"',
        "ö",
        "999999999999999999999",
    ]
)


def test_a_range_of_numbers_is_left_out_and_told():
    lines = ["346662 1", "430480 - 438486", "430480–438486", "430480 thru 438486 clouds", "430480 tomorrow"]
    reading = lists.parse_bad_expid(lines, PATH, NAMER)
    assert [item.expnum for item in reading.statements] == [346662, 430480]
    assert reading.left_out == {"a range of numbers (write them one by one)": [2, 3, 4]}


def test_the_header_of_an_exclude_list_is_no_reason():
    reading = lists.parse_exclude(["#date expnum ccd id ccdnum", "20191222 921466 N10 41 41"], PATH, NAMER)
    assert [item.text for item in reading.statements] == [PATH.stem]


@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=12))
def test_no_text_upsets_a_parser(lines):
    parsers = [
        lambda: lists.parse_bad_expid(lines, PATH, NAMER),
        lambda: lists.parse_exclude(lines, PATH, NAMER),
        lambda: lists.parse_problems(lines, PATH),
        lambda: lists.parse_plain_csv(lines, PATH, NAMER),
        lambda: lists.parse_failed_wcs(lines, PATH),
    ]
    for parse in parsers:
        for item in parse().statements:
            assert 0 < item.expnum < 2**63
            assert item.bad
            assert item.reasons
            assert 1 <= item.line <= len(lines)


@given(st.lists(st.tuples(st.integers(10000, 10**13), st.sampled_from(instruments.get(FIRST).ccds)), max_size=30))
def test_written_entries_read_back(entries):
    lines = [f"{expnum}-{ccd.ccdname}" for expnum, ccd in entries]
    reading = lists.parse_bad_expid(lines, PATH, NAMER)
    assert [(item.expnum, item.ccdnum) for item in reading.statements] == [(e, c.ccdnum) for e, c in entries]


def test_several_exposures_on_a_line_are_all_bad():
    reading = bad_expid("# ghosts\n346664 346665, 346666\n346667 2017\n")
    assert said(reading) == [(n, -1, ["ghost"]) for n in (346664, 346665, 346666)] + [(346667, -1, ["other"])]
    assert reading.left_out == {"several exposures on one line (all taken)": [2]}


@pytest.mark.parametrize("between", ["-", "_", "\u2013", "\u2014"])
def test_whatever_dash_joins_a_ccd(between):
    assert said(bad_expid(f"346664{between}{CCD.ccdname} ghost\n")) == [(346664, CCD.ccdnum, ["ghost"])]


@pytest.mark.parametrize("same", ["same", "ditto", '"', "as above", "idem."])
def test_words_that_repeat_a_reason(same):
    assert said(bad_expid(f"346664 ghost\n346665 3  {same}\n")) == [(n, -1, ["ghost"]) for n in (346664, 346665)]
