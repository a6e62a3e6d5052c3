from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.survey.coded import CodedBuilder
from hpcqa.survey.cuts import Ledger, names_of
from hpcqa.survey.versions import resolve, version_key

ORDER = ["", "V2.3", "V3.9", "V3.10", "V4.8", "V4.8.2", "V4.8.2a", "V5.0beta", "V5.0", "V5.5.2", "V5.5.2LS", "V5.5.10"]


@pytest.mark.parametrize(("earlier", "later"), list(itertools.pairwise(ORDER)))
def test_version_order(earlier, later):
    assert version_key(earlier) < version_key(later)


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_sorts(first, second):
    assert (version_key(first) < version_key(second)) in (True, False)


def test_trailing_zeros_and_blanks_say_nothing():
    assert version_key("V5.0 ") == version_key("v5") == version_key("5.0.0")


def coded(words):
    builder = CodedBuilder()
    unique = list(dict.fromkeys(words))
    builder.add(np.array([unique.index(word) for word in words], np.int64), unique)
    return builder.finish()


def resolved(expnum, ccdnum, plver, plprocid=None, *, camera=None, preference=None, broken=()):
    rows = len(expnum)
    ledger = Ledger(rows)
    ledger.add("no_file", np.isin(np.arange(rows), broken), "gone")
    preferred = np.zeros(rows, int) if preference is None else np.array(preference)
    resolve(
        ledger,
        expnum=np.array(expnum),
        ccdnum=np.array(ccdnum),
        camera=coded(camera or ["c"] * rows),
        plver=coded(plver),
        plprocid=coded(plprocid or [""] * rows),
        preference=lambda some: preferred[some],
        table=coded(["t.fits"] * rows),
    )
    return [",".join(names_of(int(bits))) for bits in ledger.bits], ledger.detail.expand().tolist()


def test_the_later_version_takes_the_place_of_the_whole_earlier_exposure():
    cuts, detail = resolved([1, 1, 1, 2], [1, 2, 1, 1], ["V4.8.2", "V4.8.2", "V4.8.2a", "V4.8.2"])
    assert cuts == ["superseded", "superseded", "", ""]
    assert detail[0] == "superseded by V4.8.2a"


def test_the_processing_id_decides_between_equal_versions():
    cuts, detail = resolved([1, 1], [1, 1], ["V5.0", "V5.0"], ["98bf8a6", "9527b58"])
    assert cuts == ["", "superseded"]
    assert detail[1] == "superseded by V5.0 98bf8a6"


def test_a_later_version_without_files_takes_nobodys_place():
    cuts, _ = resolved([1, 1], [1, 1], ["V4", "V5"], broken=[1])
    assert cuts == ["", "no_file"]


def test_repeated_rows_keep_the_first():
    cuts, detail = resolved([1, 1, 1], [2, 2, 3], ["V5"] * 3)
    assert cuts == ["", "duplicate", ""]
    assert detail[1] == "the row of t.fits is taken"


def test_a_preferred_product_is_kept_even_if_it_comes_later():
    cuts, _ = resolved([1, 1], [2, 2], ["V5"] * 2, preference=[1, 0])
    assert cuts == ["duplicate", ""]


def test_two_cameras_with_one_number():
    cuts, detail = resolved([7, 7], [1, 2], ["V5"] * 2, camera=["a", "b"])
    assert cuts == ["", "other_camera"]
    assert detail[1] == "an exposure of a has this number"


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["V4", "V5", "V5a"]), st.sampled_from("pq")),
        max_size=30,
    )
)
def test_one_row_stays_for_each_ccd_of_the_latest_processing(rows):
    expnum, ccdnum, plver, plprocid = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 4
    cuts, _ = resolved(expnum, ccdnum, plver, plprocid)
    kept = [row for row, cut in zip(rows, cuts, strict=True) if not cut]
    assert len({(row[0], row[1]) for row in kept}) == len(kept)
    for number in set(expnum):
        latest = max((version_key(row[2]), row[3]) for row in rows if row[0] == number)
        mine = [row for row in kept if row[0] == number]
        assert mine
        assert all((version_key(row[2]), row[3]) == latest for row in mine)
