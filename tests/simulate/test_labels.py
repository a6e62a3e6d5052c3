import csv
import io
import re

import pytest

from hpcqa.instruments import get
from hpcqa.reasons import REASONS
from hpcqa.simulate import labels
from hpcqa.simulate.plan import plan_survey
from tests.simulate.conftest import small_config

NAMES = {ccd.ccdnum: ccd.ccdname for ccd in get("minicam").ccds}


@pytest.fixture(scope="module")
def config():
    return small_config(exposures=400, bad_fraction=0.6, labelled_fraction=0.5, nights=10)


@pytest.fixture(scope="module")
def plans(config):
    return plan_survey(config)


@pytest.fixture(scope="module")
def folder(config, plans, tmp_path_factory):
    path = tmp_path_factory.mktemp("lists")
    labels.write_labels(path, config, plans)
    labels.write_truth(path / "truth.csv", plans)
    return path


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_truth_names_every_exposure_once_and_ccds_beside(folder, plans):
    rows = rows_of(folder / "truth.csv")
    assert tuple(rows[0]) == labels.HEADER
    whole = {int(row["expnum"]): row for row in rows if not row["ccdnum"]}
    assert list(whole) == [plan.expnum for plan in plans]
    for row in rows:
        reasons = row["reasons"].split("|") if row["reasons"] else []
        assert set(reasons) <= set(REASONS)
        assert (row["verdict"] == "bad") == bool(reasons) == bool(row["severity"])
        if row["ccdnum"]:
            assert set(reasons) <= set(whole[int(row["expnum"])]["reasons"].split("|"))
    local = [plan for plan in plans if any(defect.local for defect in plan.defects)]
    assert {int(row["expnum"]) for row in rows if row["ccdnum"]} >= {plan.expnum for plan in local}


def test_share_that_is_labelled(config, plans):
    chosen = labels.labelled_plans(config, plans)
    known = [plan for plan in plans if not {d.reason for d in plan.defects} & set(config.simulate.novel)]
    assert len(chosen) == round(0.5 * len(known))
    assert 0.5 < sum(plan.bad for plan in chosen) / len(chosen) < 0.7


def test_novel_reasons_are_in_truth_but_in_no_list(config, plans, folder):
    novel = {p.expnum for p in plans if {d.reason for d in p.defects} & set(config.simulate.novel)}
    assert len(novel) > 5
    for name in ("bad_expid.txt", "ghost-scatter-y00.txt", "problem-y00.txt", "review.csv"):
        numbers = {int(word) for word in re.findall(r"\b13\d{5}\b", (folder / name).read_text())}
        assert numbers
        assert not numbers & novel


def test_lists_name_only_what_is_true(plans, folder):
    bad = {plan.expnum for plan in plans if plan.bad}
    for name in ("bad_expid.txt", "ghost-scatter-y00.txt", "problem-y00.txt"):
        assert {int(word) for word in re.findall(r"\b13\d{5}\b", (folder / name).read_text())} <= bad
    verdicts = {int(row["expnum"]): row["verdict"] for row in rows_of(folder / "review.csv")}
    assert all((verdict == "bad") == (expnum in bad) for expnum, verdict in verdicts.items())
    assert set(verdicts.values()) == {"good", "bad"}


def test_bad_expid_has_the_habits_of_legacypipes(folder):
    lines = (folder / "bad_expid.txt").read_text().splitlines()
    assert lines[0] == "#EXPID\tFlag\tcomments"
    entries = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"^\d{7}(-[NS]\d+)?(\s+[123])?(\s+\S.*)?$", entry) for entry in entries)
    assert any("\t" in entry for entry in entries)
    assert any(re.match(r"^\d{7}-[NS]\d+$", entry) for entry in entries)
    assert any("expfactor=" in entry for entry in entries)
    assert any(line.startswith("# Single CCDs: ") for line in lines)


def test_exclude_lists_have_the_habits_of_des(folder):
    ghosts = (folder / "ghost-scatter-y00.txt").read_text().splitlines()
    assert ghosts[0] == "#date     expnum ccd id ccdnum"
    for line in ghosts[1:]:
        night, _, identity, name, ccdnum = line.split()
        assert re.match(r"^2025\d{4}$", night)
        assert (identity, name) == ("nan", "nan") or NAMES[int(ccdnum)] == name
    problems = (folder / "problem-y00.txt").read_text().splitlines()
    assert problems[0].split() == ["#Nite", "Exposure", "Problem"]
    for line in problems[1:]:
        assert re.split(r"\s{2,}", line)[2] in labels.PROBLEMS.values()
