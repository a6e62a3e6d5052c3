from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa import instruments
from hpcqa.artifacts.catalog import LABELS, MANIFEST
from hpcqa.artifacts.store import read_provenance, verify
from hpcqa.errors import ConfigError, DataError
from hpcqa.survey.cuts import names_of
from hpcqa.survey.manifest import number_shards
from tests.survey.tools import read_labels, run_manifest, small_survey, table_columns, touch_images, write_fits


def cuts_of(columns):
    return [",".join(names_of(int(bits))) for bits in columns["cuts"]]


def test_every_row_of_every_table_has_a_row(tmp_path):
    first = small_survey(tmp_path / "a")
    second = small_survey(tmp_path / "b", exposures=(1003,), filter=["Q", "g"])
    got = run_manifest(tmp_path / "run", [first, second])
    assert got["expnum"].tolist() == [1001, 1001, 1002, 1002, 1003, 1003]
    assert cuts_of(got) == ["", "", "", "", "unknown_band", ""]
    assert got["cut_detail"][4] == "band 'Q'"
    assert got["table"].tolist() == [str(first)] * 4 + [str(second)] * 2
    assert all(Path(path).is_file() for path in got["image_path"])
    assert got["shard"].tolist() == [0, 0, 0, 0, -1, 0]
    assert verify(tmp_path / "run" / "manifest.parquet", MANIFEST) == []
    assert verify(tmp_path / "run" / "labels.parquet", LABELS) == []


def test_each_way_of_being_unusable_is_its_own_reason(tmp_path):
    columns = table_columns(exposures=(1001, 1002, 1003), ccds=("N1", "N2"))
    touch_images(tmp_path, columns)
    columns["camera"][0] = "90prime"
    columns["ccdname"][1] = "Q77"
    columns["expnum"][2] = 0
    columns["image_filename"][3] = "minicam/none.fits.fz"
    columns["filter"][4] = "i"
    got = run_manifest(tmp_path / "run", [write_fits(tmp_path / "t.fits", columns)])
    assert cuts_of(got) == ["no_module", "unknown_ccd", "no_expnum", "no_file", "", ""]
    assert got["cut_detail"][:4].tolist()[0] == "camera 90prime"
    assert "none.fits.fz" in got["cut_detail"][3]
    assert all(bool(text) == bool(bits) for text, bits in zip(got["cut_detail"], got["cuts"], strict=True))


def test_a_ccd_is_numbered_by_its_name_then_by_its_number_then_by_digits(tmp_path):
    table = small_survey(tmp_path, exposures=(1001,), ccds=("N1", "im3", "ccd5", ""), ccdnum=[7, 4, -1, 6])
    got = run_manifest(tmp_path / "run", [table])
    assert got["ccdnum"].tolist() == [8, 4, 5, 6]
    names = {ccd.ccdnum: ccd.ccdname for ccd in instruments.get("minicam").ccds}
    assert got["ccdname"].tolist() == ["N1", "im3", "ccd5", names[6]]
    assert cuts_of(got) == [""] * 4


def test_settings_cut_and_the_funnel_is_logged(tmp_path, caplog):
    table = small_survey(
        tmp_path, exposures=(1001, 1002, 1003), exptime=[90, 90, 3, 3, 90, 90], ccd_cuts=[0, 8, 0, 0, 0, 0]
    )
    with caplog.at_level(logging.INFO):
        got = run_manifest(tmp_path / "run", [table], manifest={"min_exptime": 30.0, "ccd_cuts": 8})
    assert cuts_of(got) == ["", "ccd_cuts", "exptime", "exptime", "", ""]
    assert "6 CCD rows, 3 exposures in the tables" in caplog.text
    assert "3 CCD rows, 2 exposures are left" in caplog.text


def test_reprocessed_exposures(tmp_path):
    old = small_survey(tmp_path / "a", plver=["V4.8.2"] * 4)
    new = small_survey(tmp_path / "b", exposures=(1002,), plver=["V5.5.2LS"] * 2)
    got = run_manifest(tmp_path / "run", [old, new, old])
    assert cuts_of(got) == ["", "", "superseded", "superseded", "", ""]
    again = run_manifest(tmp_path / "other", [old, new, write_fits(tmp_path / "a" / "copy.fits", table_columns())])
    assert cuts_of(again)[6:] == ["", "", "superseded", "superseded"]
    assert cuts_of(again)[:2] == ["superseded", "superseded"]


def test_a_missing_image_folder_cuts_its_table_and_the_rest_goes_on(tmp_path, caplog):
    good = small_survey(tmp_path / "a")
    bare = write_fits(tmp_path / "b" / "t.fits", table_columns(exposures=(1005,)))
    got = run_manifest(tmp_path / "run", [good, bare])
    assert cuts_of(got) == [""] * 4 + ["no_folder"] * 2
    assert "2 rows without an image, first: no folder" in caplog.text


def test_images_that_arrive_later_are_found(tmp_path):
    columns = table_columns()
    table = write_fits(tmp_path / "t.fits", columns)
    with pytest.raises(DataError, match=r"all 4 rows are cut, most by no_folder .*no folder .*images"):
        run_manifest(tmp_path / "run", [table])
    assert (tmp_path / "run" / "manifest.parquet").exists()
    touch_images(tmp_path, columns)
    assert cuts_of(run_manifest(tmp_path / "run", [table])) == [""] * 4


def test_nothing_is_done_twice_and_changes_are_seen(tmp_path, caplog):
    table = small_survey(tmp_path)
    run_manifest(tmp_path / "run", [table])
    path = tmp_path / "run" / "manifest.parquet"
    stamp = path.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        run_manifest(tmp_path / "run", [table])
    assert path.stat().st_mtime_ns == stamp
    assert "is up to date" in caplog.text
    content = read_provenance(path, MANIFEST).content
    run_manifest(tmp_path / "run", [table], manifest={"bands": ["r"]})
    assert path.stat().st_mtime_ns != stamp
    assert read_provenance(path, MANIFEST).content == content
    small_survey(tmp_path, exposures=(1001, 1009))
    assert 1009 in run_manifest(tmp_path / "run", [table])["expnum"]


def test_labels_truth_and_near_misses(tmp_path, caplog):
    table = small_survey(tmp_path, exposures=(100001, 100302))
    (tmp_path / "bad_expid.txt").write_text("100001 clouds\n100032 ghost\n")
    (tmp_path / "truth.csv").write_text("expnum,ccdnum,verdict,reasons,severity,comment\n100001,,bad,clouds,0.5,\n")
    survey = {"labels": [str(tmp_path / "bad_expid.txt")], "truth": str(tmp_path / "truth.csv")}
    run_manifest(tmp_path / "run", [table], survey=survey)
    assert read_labels(tmp_path / "run")["expnum"].tolist() == [100001, 100032]
    assert read_labels(tmp_path / "run", "truth")["severity"].tolist() == [0.5]
    told = [record.message for record in caplog.records if "no table" in record.message]
    assert told == [
        "1 of 2 labelled exposures are in no table; 1 of them look like typing errors (100032 for 100302); "
        f"{tmp_path / 'run' / 'logs' / 'near-misses.csv'} lists them."
    ]
    assert (tmp_path / "run" / "logs" / "near-misses.csv").read_text() == "labelled,surveyed\n100032,100302\n"
    stamp = (tmp_path / "run" / "labels.parquet").stat().st_mtime_ns
    run_manifest(tmp_path / "run", [table], survey=survey)
    assert (tmp_path / "run" / "labels.parquet").stat().st_mtime_ns == stamp


def test_lists_of_another_survey_are_no_typing_errors(tmp_path, caplog):
    table = small_survey(tmp_path, exposures=(100001, 100302))
    numbers = [100001, *range(100303, 100400), 100032]
    (tmp_path / "bad_expid.txt").write_text("".join(f"{number} clouds\n" for number in numbers))
    run_manifest(tmp_path / "run", [table], survey={"labels": [str(tmp_path / "bad_expid.txt")]})
    assert not [record for record in caplog.records if "typing" in record.message]
    assert not (tmp_path / "run" / "logs" / "near-misses.csv").exists()


def test_no_labels_is_a_warning(tmp_path, caplog):
    run_manifest(tmp_path / "run", [small_survey(tmp_path)])
    assert len(read_labels(tmp_path / "run")["expnum"]) == 0
    assert "No labels" in caplog.text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "survey.tables and survey.images are both empty"),
        ({"survey": {"tables": ["/none/*.fits"]}}, "survey.tables: /none/.* matches no file"),
        ({"survey": {"images": ["/none"]}}, "survey.images: /none is not a folder"),
        ({"instrument": {"name": "hst"}}, "no such camera"),
    ],
)
def test_configurations_that_lead_nowhere(tmp_path, sections, words):
    with pytest.raises(ConfigError, match=words):
        run_manifest(tmp_path / "run", **sections)


def test_a_truth_table_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"truth\.csv matches no file"):
        run_manifest(tmp_path / "run", [small_survey(tmp_path)], survey={"truth": str(tmp_path / "truth.csv")})


def test_one_bad_table_stops_before_anything_is_written(tmp_path):
    (tmp_path / "bad.fits").write_bytes(b"SIMPLE  = rubbish")
    with pytest.raises(DataError, match=r"bad\.fits"):
        run_manifest(tmp_path / "run", [small_survey(tmp_path), tmp_path / "bad.fits"])
    assert not (tmp_path / "run" / "manifest.parquet").exists()


@given(st.data())
def test_shards_are_a_pure_function_of_the_exposures_that_are_left(data):
    exposures = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=30, unique=True))
    expnum = np.repeat(exposures, 2)
    night = 20250101 + expnum % 3
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(expnum), max_size=len(expnum))))
    order = np.array(data.draw(st.permutations(range(len(expnum)))))
    shard = number_shards(expnum, night, kept, 4)
    np.testing.assert_array_equal(number_shards(expnum[order], night[order], kept[order], 4), shard[order])
    assert (shard[~kept] == -1).all()
    left = sorted({(night[row], expnum[row]) for row in range(len(expnum)) if kept[row]})
    for row in np.flatnonzero(kept):
        assert shard[row] == left.index((night[row], expnum[row])) // 4


def test_real_cut_outs_have_an_image_or_a_reason_in_every_row(tmp_path, shared_data):
    real = shared_data / "real" / "legacypipe_tests" / "*" / "survey-ccds*"
    got = run_manifest(tmp_path / "run", [real], survey={"labels": [str(shared_data / "labels")]})
    assert len(got["expnum"]) == 27
    without = {"90prime": 12, "mosaic": 3}
    assert {name: int((got["camera"] == name).sum()) for name in without} == without
    other = np.isin(got["camera"], list(without))
    assert cuts_of(got) == ["no_module" if cut else "" for cut in other]
    assert all(Path(path).is_file() for path in got["image_path"])
    assert (got["ccdnum"] > 0).all()
    row = got["expnum"].tolist().index(695765)
    assert (got["ccdname"][row], got["ccdnum"][row], got["night"][row]) == ("N6", 37, 20171112)


def test_real_cut_outs_without_their_tables(tmp_path, shared_data):
    folder = str(shared_data / "real" / "legacypipe_tests")
    got = run_manifest(tmp_path / "run", survey={"images": [folder]})
    kept = got["cuts"] == 0
    assert kept.sum() == 12
    assert set(got["expnum"][kept]) >= {695765, 396388, 630780}
    assert (got["width"][kept] > 0).all()
    assert all(got["cut_detail"][~kept])


def test_what_is_no_plain_file_is_told_at_once(tmp_path):
    table = small_survey(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for section, error, words in (
        ({"survey": {"tables": [str(tmp_path / "pipe")]}}, DataError, "not a plain file"),
        ({"survey": {"labels": [str(tmp_path / "pipe")]}}, ConfigError, "not a plain file"),
        ({"survey": {"labels": [str(tmp_path / "empty")]}}, ConfigError, "matches no file"),
        ({"manifest": {"only": str(tmp_path / "pipe")}}, ConfigError, "not a plain file"),
    ):
        with pytest.raises(error, match=words):
            run_manifest(tmp_path / "run", [] if "tables" in section.get("survey", {}) else [table], **section)


def test_names_that_are_not_utf_8_are_told(tmp_path):
    table = small_survey(tmp_path)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.txt"))
    odd.write_text("1001 clouds\n")
    with pytest.raises(DataError, match=r"b\\udcff\.txt: the path is not in UTF-8; rename it"):
        run_manifest(tmp_path / "run", [table], survey={"labels": [str(tmp_path / "b*.txt")]})


def test_a_list_of_exposures_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "only.txt").write_bytes(b"\xef\xbb\xbf1001\r\n")
    got = run_manifest(tmp_path / "run", [small_survey(tmp_path)], manifest={"only": str(tmp_path / "only.txt")})
    assert cuts_of(got) == ["", "", "not_listed", "not_listed"]
