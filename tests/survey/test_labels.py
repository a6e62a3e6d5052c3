from __future__ import annotations

import gzip
from collections import Counter

import numpy as np
import pytest
from astropy.table import Table

from hpcqa import instruments
from hpcqa.artifacts.labelled import merge
from hpcqa.errors import ConfigError, DataError
from hpcqa.reasons import BIT, from_bits
from hpcqa.survey import labels
from hpcqa.survey.statements import CcdNamer

NAMER = CcdNamer(instruments.KNOWN[0])

# List, format, statements, exposures, with a CCD, reasons that many statements have.
REAL = [
    ("legacypipe_decam-bad_expid.txt", "bad_expid", 16238, 10883, 8677, {"nonoptimal": 2689}),
    ("legacypipe_mosaic-bad_expid.txt", "bad_expid", 4869, 4868, 99, {"nonoptimal": 2591, "out_of_focus": 211}),
    ("sslbad_bad_expid.txt", "bad_expid", 3809, 3800, 0, {}),
    ("lsst_excluded_visits/LSSTCam/bad.ecsv", "visits", 527, 527, 0, {"out_of_focus": 286 + 13 + 10}),
    ("legacypipe_dr11_final_selected_bad_exposures.csv", "review", 3 * 939, 939, 0, {"pupil": 70}),
    ("legacypipe_dr11-new-exposures-vi.csv", "review", 8, 8, 0, {"ghost": 4}),
]
DELVE = {"ghost-scatter": 15553, "noise": 3272, "ccd41": 3060, "ccd46": 1048, "ccd02": 799, "streak": 340} | {
    "processing": 26,
    "problem": 409,
}
PROBLEMS = {"nobjects": 137 + 2, "fringing": 55, "ghost": 48, "wonky": 37, "illumination": 37, "clouds": 23} | {
    "telescope_moving": 15,
    "bright_star": 14 + 6 + 6 + 4 + 3 + 1,
    "saturated": 8,
    "bad_wcs": 6,
}


@pytest.fixture(scope="module")
def readings(shared_data_module):
    return {reading.path: reading for reading in labels.read_lists([str(shared_data_module / "labels")], NAMER)}


@pytest.fixture(scope="module")
def shared_data_module(request):
    return request.getfixturevalue("shared_data")


@pytest.mark.parametrize(("name", "kind", "num", "exposures", "with_ccd", "reasons"), REAL)
def test_real_lists_count_as_known(readings, shared_data, name, kind, num, exposures, with_ccd, reasons):
    reading = readings[shared_data / "labels" / name]
    assert reading.kind == kind
    assert len(reading.statements) == num
    assert len({item.expnum for item in reading.statements}) == exposures
    assert sum(item.ccdnum >= 0 for item in reading.statements) == with_ccd
    counts = Counter(name for item in reading.statements for name in from_bits(item.reasons))
    assert {name: counts[name] for name in reasons} == reasons
    assert all(bool(item.reasons) == item.bad for item in reading.statements)


def test_real_flags_and_repeats_of_the_decam_list(readings, shared_data):
    items = readings[shared_data / "labels" / "legacypipe_decam-bad_expid.txt"].statements
    flags = Counter(item.text[0] for item in items if item.text[:1] in "123" and item.text[1:2] in (" ", "\t", ""))
    assert (flags["1"], flags["2"], flags["3"]) == (73, 262, 596)
    keys = Counter((item.expnum, item.ccdnum) for item in items)
    assert sum(count > 1 for count in keys.values()) == 603
    whole = {item.expnum for item in items if item.ccdnum < 0}
    assert len(whole & {item.expnum for item in items if item.ccdnum >= 0}) == 117
    section = Counter(item.text.split(" (")[0] for item in items)
    assert section["Exposures with large FWHM"] == 3371
    assert section["Yufeng's ML-derived bad exposures"] == 939
    assert section["Merge bad ccd list from DELVE"] == 8671
    seeing = [item for item in items if item.text.startswith("Exposures with large FWHM")]
    assert all(item.reasons & BIT["bad_seeing"] for item in seeing)


@pytest.mark.parametrize("kind", sorted(DELVE))
def test_real_delve_lists_count_as_known(readings, kind):
    mine = [reading for path, reading in readings.items() if path.name.startswith(kind + "-y")]
    assert sum(len(reading.statements) for reading in mine) == DELVE[kind]


def test_real_delve_exposures_problems_and_disagreements(readings):
    named = {kind: [r for path, r in readings.items() if path.name.startswith(kind + "-y")] for kind in DELVE}
    ghosts = Counter(item.expnum for reading in named["ghost-scatter"] for item in reading.statements)
    assert len(ghosts) == 4229
    problems = [item for reading in named["problem"] for item in reading.statements]
    assert len({item.expnum for item in problems}) == 400
    counts = Counter(name for item in problems for name in from_bits(item.reasons))
    assert {name: counts[name] for name in PROBLEMS} == PROBLEMS
    assert counts["other"] == 0
    disagree = [r.left_out.get("CCD name and number disagree (number taken)", []) for r in readings.values()]
    assert sum(map(len, disagree)) == 2


def test_real_review_votes(readings, shared_data):
    items = readings[shared_data / "labels" / "legacypipe_dr11_final_selected_bad_exposures.csv"].statements
    votes = Counter(item.source.split(": ")[1] for item in items if item.bad)
    assert votes == {"alex": 710, "yufeng": 467, "frank": 167}
    merged = merge(labels.to_columns(items))
    assert merged.bad.all()
    assert np.bincount(merged.num_bad)[1:].tolist() == [602, 269, 68]
    assert merged.conflict.sum() == 939 - 68
    assert len(merged.expnum) == 939


def test_real_ids_that_are_commented_out_stay_good(readings, shared_data):
    reading = readings[shared_data / "labels" / "legacypipe_decam-bad_expid.txt"]
    ids = {item.expnum for item in reading.statements}
    assert not ids & {775378, 792768, 430480, 262572}
    assert len(reading.left_out["commented out"]) == 86


def test_files_that_are_no_lists_are_left_out_of_a_folder_but_not_if_named(tmp_path, caplog):
    (tmp_path / "README.md").write_text("# Lists\nof bad exposures\n")
    (tmp_path / "stars.csv").write_text("# Famous\nname,ra,dec\nCanopus,95.9,-52.7\n")
    (tmp_path / "bad_expid.txt").write_text("346343 clouds\n")
    readings = labels.read_lists([str(tmp_path)], NAMER)
    assert [reading.path.name for reading in readings] == ["bad_expid.txt"]
    assert "README.md: no label list; left out" in caplog.text
    with pytest.raises(DataError, match=r"stars.csv: no label list that hpcqa knows"):
        labels.read_lists([str(tmp_path / "stars.csv")], NAMER)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2019-10-01 ghost\n2019-10-02 clouds\n", r"found '2019-10-01 ghost'"),
        ("expnum,reason\n12,clouds\n", r"found 'expnum,reason'; no line has an exposure number"),
    ],
)
def test_a_file_without_one_exposure_number_is_no_list(tmp_path, text, why):
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(DataError, match=r"log\.txt: no label list that hpcqa knows \(" + why):
        labels.read_lists([str(tmp_path / "log.txt")], NAMER)


def test_bad_paths(tmp_path):
    with pytest.raises(ConfigError, match=r"survey\.labels: .*none.txt matches no file"):
        labels.find_lists([str(tmp_path / "none.txt")])
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04\0\0")
    with pytest.raises(DataError, match="Save spreadsheets as CSV"):
        labels.read_lists([str(tmp_path / "sheet.xlsx")], NAMER)
    (tmp_path / "latin.txt").write_bytes("346343 nöisy\n".encode("latin-1"))
    assert labels.read_lists([str(tmp_path / "latin.txt")], NAMER)[0].statements[0].reasons == BIT["other"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["expnum,verdict,comment", "346662,bad,trübe clouds", "346663,good,", ""])
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    (reading,) = labels.read_lists([str(tmp_path / "list.csv")], NAMER)
    assert [(item.expnum, item.bad, item.text) for item in reading.statements] == [
        (346662, True, "trübe clouds"),
        (346663, False, ""),
    ]


def test_gzipped_lists_of_text_and_fits(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"346343 clouds\n"))
    Table({"EXPID": [346344], "Problem": ["ghost"]}).write(tmp_path / "b.fits.gz")
    first, second = labels.read_lists([str(tmp_path)], NAMER)
    assert [(item.expnum, from_bits(item.reasons)) for item in first.statements] == [(346343, ["clouds"])]
    assert [(item.expnum, from_bits(item.reasons)) for item in second.statements] == [(346344, ["ghost"])]
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes((tmp_path / "a.txt.gz").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut\.txt\.gz: does not decompress"):
        labels.read_lists([str(cut)], NAMER)


@pytest.mark.parametrize("text", ["", "# nothing bad in May\n", "expnum,verdict\n"])
def test_an_empty_list_is_a_list_and_is_told(tmp_path, caplog, text):
    caplog.set_level("INFO")
    (tmp_path / "list.txt").write_text(text)
    (reading,) = labels.read_lists([str(tmp_path / "list.txt")], NAMER)
    assert reading.statements == []
    assert "list.txt" in caplog.text
    assert "0 statements" in caplog.text


def test_a_fits_list_among_others(tmp_path):
    Table({"EXPNUM": [346662], "REASON": ["clouds"]}).write(tmp_path / "exclude.fits")
    Table({"EXPNUM": [346662], "MJD": [57000.0]}).write(tmp_path / "survey.fits")
    (reading,) = labels.read_lists([str(tmp_path)], NAMER)
    assert [(item.expnum, from_bits(item.reasons)) for item in reading.statements] == [(346662, ["clouds"])]
    with pytest.raises(DataError, match=r"no label list that hpcqa knows \(columns found: expnum, mjd\)"):
        labels.read_lists([str(tmp_path / "survey.fits")], NAMER)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("#EXPID\tFlag\tcomments\n", "bad_expid"),
        ("\n346343-N1\n", "bad_expid"),
        ("#date     expnum ccd id ccdnum\n", "exclude"),
        ("20121101  145507  66 S14  13\n", "exclude"),
        ("20121101  145507 nan nan\n", "exclude"),
        ("2012-11-01 145507 nan nan 7\n", "exclude"),
        ("2012-11-02 145846 Telescope Moving\n", "problem"),
        ("346343.0 clouds\n", "bad_expid"),
        ("see below\n346343-N1 ghost\n346344\n430480-438486\n", "bad_expid"),
        ("day_obs,seq_num,comment\n20250501,7,x\n", "table"),
        ("expnum,p_bad\n346343,0.9\n", ""),
        ("# %ECSV 1.0\n# ---\nday_obs,seq_num,band\n20250501,7,g\n", ""),
        ("id,magnitude,name\n1231,1,Achernar\n1232,2,Canopus\n", ""),
        ("#Nite           Exposure        Problem\n", "problem"),
        ("20121102        145846          Telescope Moving\n", "problem"),
        ("2024111800077, telescope slew during exposure\n", "visits"),
        ("# %ECSV 1.0\nexposure,comment\n", "visits"),
        ("a/b/c4d_ooi.fits.fz,372546\n", "wcs"),
        ("expnum,ccdnum,verdict,reasons,severity,comment\n", "own"),
        ("title\nexpnum;alex_badexp\n1;True\n", "review"),
        ("# expnum ccdnum reason\n346662 31 ghost\n", "table"),
        ("visit,detector,comment\n2025050100123,94,glow\n", "table"),
        ("# %ECSV 1.0\n# ---\n# - {name: exposure, datatype: int64}\nexposure comment\n", "table"),
        ("expnum,mjd_obs,filter\n346662,57000.1,g\n", ""),
        ("", ""),
        ("hello world\n", ""),
    ],
)
def test_formats_are_told_by_content(text, kind):
    assert labels.detect(text.splitlines()) == kind


def test_contradictions_are_told_with_their_lines(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("expnum,ccdnum,verdict\n346343,,good\n346344,3,good\n346344,,bad\n")
    (tmp_path / "b.txt").write_text("346343-CCD3\n346344-CCD3 noisy\n346343 clouds\n")
    readings = labels.read_lists([str(tmp_path)], NAMER)
    labels.report_conflicts([item for reading in readings for item in reading.statements])
    assert "2 exposures or CCDs are good in one statement and bad in another" in caplog.text
    assert "first 346343: good in line 2 of a.csv, bad in line 3 of b.txt" in caplog.text


def test_near_misses():
    found = labels.near_misses(np.array([420479, 500001, 500002, 7]), np.array([420749, 500011, 500002, 123456]))
    assert found == [(420479, 420749), (500001, 500011)]
    assert labels.near_misses(np.array([5]), np.array([], np.int64)) == []


def test_near_misses_leave_alone_what_the_lists_name_themselves():
    assert labels.near_misses(np.array([346343, 346344]), np.array([346343])) == []


def test_near_misses_of_long_numbers():
    assert labels.near_misses(np.array([151119075127]), np.array([151119075172])) == [(151119075127, 151119075172)]


def test_near_misses_among_crowded_numbers_mean_nothing():
    crowded = np.setdiff1d(np.arange(400_000, 401_000), [400_321])
    assert labels.near_misses(np.array([400_321]), crowded) == []
    assert labels.near_misses(np.array([400_321]), np.array([500_123])) == []
