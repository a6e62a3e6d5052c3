"""What changed between two releases, and why."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hpcqa.artifacts.catalog import DECISIONS
from hpcqa.errors import ConfigError
from hpcqa.report import compare
from tests.report.made_up import defaults

MADE = {"network": "a", "calibration": "b", "classifier": "c", "settings of classify": "d"}


def release(rows, *, name="runs/a", bad_ccds=None, labels=None, **made) -> compare.Release:
    """Rows of (expnum, verdict, p_bad) and more columns as a dictionary."""
    decisions = {column: values for column, values in defaults(DECISIONS, len(rows)).items() if column in compare.USED}
    decisions["num_decided"][:] = 60
    for place, (expnum, verdict, p_bad, *more) in enumerate(rows):
        values = {
            "expnum": expnum,
            "verdict": verdict,
            "p_bad": p_bad,
            "extent": "exposure" if verdict == "bad" else "",
        }
        for column, value in (values | (more[0] if more else {})).items():
            decisions[column][place] = value
    return compare.Release(name, decisions, bad_ccds or {}, labels or {}, MADE | made)


def only(found: compare.Comparison) -> compare.Change:
    assert len(found.changes) == 1
    return found.changes[0]


def test_equal_releases_have_no_changes():
    rows = [(1, "good", 0.1), (2, "bad", 0.9), (3, "undecided", np.nan)]
    found = compare.compare(release(rows), release(rows))
    assert found.changes == ()
    assert found.counts["kept"] == 1
    assert "3 exposures became 3" in found.sentence()
    assert "same network and classifier" in found.sentence()


def test_new_and_gone_exposures():
    found = compare.compare(
        release([(1, "bad", 0.9), (2, "good", 0.1)]), release([(2, "good", 0.1), (3, "bad", 0.8), (4, "good", 0.0)])
    )
    assert [(change.expnum, change.flag, change.why) for change in found.changes] == [
        (3, "added", "new"),
        (1, "gone", "gone"),
        (4, "", "new"),
    ]
    assert (found.counts["new"], found.counts["gone"], found.counts["added"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("before", "after", "flag"),
    [
        ("good", "bad", "added"),
        ("review", "bad", "added"),
        ("bad", "good", "lifted"),
        ("bad", "review", "open"),
        ("bad", "undecided", "open"),
        ("good", "review", ""),
    ],
)
def test_flags_follow_the_verdicts(before, after, flag):
    found = compare.compare(release([(1, before, 0.5)]), release([(1, after, 0.5)]))
    assert only(found).flag == flag


@pytest.mark.parametrize(
    ("change", "made", "labels", "said"),
    [
        ({"plver": "V2"}, {}, {}, "reprocessed: PLVER none became V2"),
        ({"plprocid": "abc"}, {}, {}, "reprocessed: PLPROCID none became abc"),
        ({"num_decided": 59}, {}, {}, "59 of its CCDs were seen instead of 60"),
        ({}, {"network": "z"}, {}, "other network"),
        ({}, {"classifier": "z"}, {}, "other classifier"),
        ({}, {"settings of classify": "z"}, {}, "other settings of classify"),
        ({}, {}, {1: frozenset({(-1, True, 4)})}, "other labels"),
        ({}, {}, {}, "p_bad 0.100 became 0.900"),
    ],
)
def test_every_reason_is_named(change, made, labels, said):
    before = release([(1, "good", 0.1)])
    after = release([(1, "bad", 0.9, change)], name="runs/b", labels=labels, **made)
    found = compare.compare(before, after)
    assert said in only(found).why.split("; ")
    if not made:
        assert found.made_otherwise == ()


def test_a_reprocessed_exposure_is_listed_though_its_verdict_stands():
    found = compare.compare(release([(1, "bad", 0.9)]), release([(1, "bad", 0.9, {"plver": "V2"})]))
    assert only(found).flag == ""
    assert found.counts["reprocessed"] == 1
    assert found.counts["kept"] == 1


def test_other_bad_ccds_change_a_flag():
    rows = [(1, "bad", 0.9, {"extent": "ccds"})]
    before = release(rows, bad_ccds={1: frozenset({"N4", "S7"})})
    after = release(rows, bad_ccds={1: frozenset({"N4", "N5"})})
    change = only(compare.compare(before, after))
    assert (change.flag, change.ccds) == ("changed", "+N5 -S7")
    assert compare.compare(before, before).changes == ()


def test_forms_say_the_same(tmp_path):
    before = release([(1, "bad", 0.9), (2, "undecided", np.nan), (151119075127, "good", 0.1)])
    after = release([(1, "good", 0.1), (2, "good", 0.2), (151119075127, "bad", 0.9)], name="runs/b")
    found = compare.compare(before, after)
    text = compare.as_text(found)
    assert text.splitlines()[-1] == found.sentence()
    assert text.splitlines()[1].split()[:3] == ["151119075127", "added", "good"]
    plain = json.loads(json.dumps(compare.as_plain(found), allow_nan=False))
    assert [change["expnum"] for change in plain["changes"]] == [151119075127, 1, 2]
    assert plain["changes"][2]["p_before"] is None
    rows = list(csv.DictReader(io.StringIO(compare.as_csv(found))))
    assert [row["flag"] for row in rows] == ["added", "lifted", ""]
    compare.write(found, tmp_path / "changes.parquet")
    assert pq.read_table(tmp_path / "changes.parquet")["expnum"].to_pylist() == [151119075127, 1, 2]
    compare.write(found, tmp_path / "changes.csv")
    assert (tmp_path / "changes.csv").read_text() == compare.as_csv(found)
    with pytest.raises(ConfigError, match="ends in"):
        compare.write(found, tmp_path / "changes.xlsx")


def test_long_lists_are_cut_short_on_a_terminal():
    rows = range(1, 101)
    found = compare.compare(release([(n, "good", 0.1) for n in rows]), release([(n, "bad", 0.9) for n in rows]))
    assert len(compare.as_text(found).splitlines()) == compare.SHOWN + 3
    assert "60 more" in compare.as_text(found)
