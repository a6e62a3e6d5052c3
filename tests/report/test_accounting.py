import csv
import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.report import accounting
from hpcqa.report.collect import collect

NAMES = {1: "first", 2: "second"}


def test_rows_add_up(made_up_run):
    data = collect(made_up_run)
    found = accounting.funnel(data.manifest, data.ccds, data.decisions, NAMES)
    assert (found.rows, found.exposures) == (840, 60)
    assert found.rows == found.cut + found.failed + found.decided
    assert (found.cut, found.failed) == (42, 2)
    assert sum(found.verdicts.values()) == 60
    assert [(cause.rows, cause.exposures) for cause in found.failed_causes] == [(2, 1)]


def test_cut_rows_that_the_decisions_leave_out_are_still_counted(made_up_run):
    data = collect(made_up_run)
    kept = data.manifest["cuts"] == 0
    ccds = {name: values[kept] for name, values in data.ccds.items()}
    with_them = accounting.funnel(data.manifest, data.ccds, data.decisions, NAMES)
    assert accounting.funnel(data.manifest, ccds, data.decisions, NAMES) == with_them


def test_unprocessed_lists_each_row_once(made_up_run):
    data = collect(made_up_run)
    lost = list(accounting.unprocessed(data.manifest, data.ccds, {32: "The image file is missing"}))
    assert len(lost) == 44
    assert len({(row.table, row.table_row) for row in lost}) == 44
    assert {row.stage for row in lost} == {"manifest", "shard"}
    assert lost[0].cause == "The image file is missing"


def test_csv_quotes_what_needs_it():
    row = accounting.Unprocessed(1, 2, "N1", "shard", 'a "b"', "one, two\nthree", "t.fits", 7)
    stream = io.StringIO()
    assert accounting.write_csv([row] * 3, stream, 2) == ([row] * 2, 3)
    read, *others = csv.DictReader(io.StringIO(stream.getvalue()))
    assert others == [read] * 2
    assert (read["cause"], read["detail"], read["table_row"]) == ('a "b"', "one, two\nthree", "7")


def test_a_row_with_two_bits_counts_under_both():
    causes = accounting.causes_by_bit(np.array([1, 3, 1, 8]), np.array([5, 5, 6, 7]), NAMES)
    assert [(cause.name, cause.rows, cause.exposures) for cause in causes] == [
        ("first", 3, 2),
        ("bit 3", 1, 1),
        ("second", 1, 1),
    ]


def test_causes_in_words_forget_paths_and_numbers():
    one = accounting.cause_in_words("/data/one/c4d_1.fits.fz: HDU 7 is missing; run again")
    assert one == accounting.cause_in_words("/data/two/c4d_2.fits.fz: HDU 12 is missing")
    assert accounting.cause_in_words("") == "no reason stated"


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4)), max_size=40))
def test_causes_count_every_bit(rows):
    bits = np.array([row[0] for row in rows], np.int64)
    expnum = np.array([row[1] for row in rows], np.int64)
    causes = accounting.causes_by_bit(bits, expnum, {})
    assert sum(cause.rows for cause in causes) == sum(int(value).bit_count() for value in bits)
