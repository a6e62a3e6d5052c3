"""fit, classify and evaluate on a run folder, as the command line runs them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import EvaluateConfig, FitConfig, SurveyConfig
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classifier_file, classify, evaluate, fit
from tests.qa.run_folder import CUT_EXPNUM, FAILED_EXPNUM, make_run, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with half of its exposures labelled, evaluated."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    config = settings(folder.path)
    for stage in (fit, classify, evaluate):
        stage.run(config, folder, Ranks())
    return folder


def test_neighbours_by_cosine_are_a_setting(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    config = settings(tmp_path, fit=FitConfig(bad_rate=0.4, pca=8, metric="cosine"))
    for stage in (fit, classify):
        stage.run(config, folder, Ranks())
    learned = classifier_file.read(folder.output("classifier"))
    for references in (learned.ccd, learned.exposure):
        for rows in references.features.values():
            lengths = np.linalg.norm(rows, axis=1)
            assert np.allclose(lengths[lengths > 0], 1.0, atol=1e-6)
    truth = store.read_table(folder.output("truth"), catalog.LABELS)
    decisions = decisions_of(folder)
    seen = decisions["verdict"] != "undecided"
    bad = np.isin(decisions["expnum"], truth["expnum"][truth["bad"] & (truth["ccdnum"] < 0)])
    assert np.mean(decisions["p_bad"][seen & bad]) > 0.5 > np.mean(decisions["p_bad"][seen & ~bad])


def decisions_of(folder: RunFolder) -> dict[str, np.ndarray]:
    return store.read_table(folder.output("decisions"), catalog.DECISIONS)


def test_every_row_of_the_manifest_has_a_decision_or_a_reason(finished: RunFolder) -> None:
    manifest = store.read_table(finished.output("manifest"), catalog.MANIFEST)
    ccds = store.read_table(finished.output("ccd_decisions"), catalog.CCD_DECISIONS)
    assert np.array_equal(ccds["expnum"], manifest["expnum"])
    assert np.array_equal(ccds["table_row"], manifest["table_row"])
    undecided = ccds["verdict"] == "undecided"
    assert set(ccds["expnum"][undecided].tolist()) == {FAILED_EXPNUM, CUT_EXPNUM}
    assert all(ccds["why"][undecided])
    decisions = decisions_of(finished)
    assert decisions["expnum"].tolist() == sorted(set(manifest["expnum"].tolist()))


def test_undecided_exposures_say_why(finished: RunFolder) -> None:
    decisions = decisions_of(finished)
    why = dict(zip(decisions["expnum"].tolist(), decisions["why"].tolist(), strict=True))
    assert why[FAILED_EXPNUM] == "no CCD was seen: the image file cannot be read or is not FITS (2)"
    assert why[CUT_EXPNUM] == "no CCD was seen: exptime 5 s is shorter than 10 s (2)"
    undecided = decisions["verdict"] == "undecided"
    assert np.isnan(decisions["p_bad"][undecided]).all()


def test_unseen_exposures_are_found_with_their_reasons(finished: RunFolder) -> None:
    content = store.read_json(finished.output("evaluation"))
    assert content["missing"] == ""
    assert content["figures"]["average_precision"]["value"] > 0.97
    assert content["figures"]["recall_few_ccds"]["value"] > 0.8
    assert {row["reason"] for row in content["reasons"]} == {"ghost", "clouds", "psf", "noise"}
    assert all(row["named"] > 0.7 for row in content["reasons"])


def test_ccds_are_evaluated_too(finished: RunFolder) -> None:
    found = store.read_json(finished.output("evaluation"))["ccds"]
    truth = store.read_table(finished.output("truth"), catalog.LABELS)
    assert 0 < found["local"]["bad"] <= int((truth["bad"] & (truth["ccdnum"] >= 0)).sum())
    assert found["local"]["ccds"] < found["all"]["ccds"]
    for part in found.values():
        assert part["average_precision"]["value"] > 0.8 > part["bad"] / part["ccds"]
        assert part["average_precision"]["low"] <= part["average_precision"]["value"]


def test_controls_rank_as_they_were_made(finished: RunFolder) -> None:
    content = store.read_json(finished.output("evaluation"))
    precision = {row["name"]: row["average_precision"]["value"] for row in content["controls"]}
    assert set(precision) == {
        *("numbers", "network", "numbers+network", "untrained", "numbers+untrained"),
        *("published", "published-untrained"),
    }
    assert precision["network"] > precision["untrained"] + 0.2
    assert precision["numbers+network"] == pytest.approx(content["figures"]["average_precision"]["value"], abs=0.01)


def test_controls_are_compared_exposure_by_exposure(finished: RunFolder) -> None:
    content = store.read_json(finished.output("evaluation"))
    controls = {row["name"]: row for row in content["controls"]}
    found = {(row["name"], row["less"]): row for row in content["differences"]}
    assert set(found) == {
        ("network", "untrained"),
        ("numbers+network", "numbers"),
        ("numbers+network", "numbers+untrained"),
        ("numbers+untrained", "numbers"),
    }
    trained = found["network", "untrained"]
    for key in ("average_precision", "roc_area_few_ccds", "recall"):
        assert trained[key]["value"] == pytest.approx(
            controls["network"][key]["value"] - controls["untrained"][key]["value"]
        )
    assert trained["average_precision"]["low"] > 0.1
    assert trained["roc_area_few_ccds"]["count"] == controls["network"]["recall_few_ccds"]["count"]


def test_exposures_with_one_bad_ccd_are_not_thrown_away_whole(finished: RunFolder) -> None:
    decisions = decisions_of(finished)
    truth = store.read_table(finished.output("truth"), catalog.LABELS)
    local = np.unique(truth["expnum"][truth["ccdnum"] >= 0])
    rows = np.isin(decisions["expnum"], local) & (decisions["verdict"] == "bad")
    assert rows.sum() > 5
    assert np.mean(decisions["extent"][rows] == "ccds") > 0.8


def test_a_second_run_changes_nothing(finished: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    names = ("classifier", "decisions", "ccd_decisions", "evaluation")
    before = {name: finished.output(name).stat().st_mtime_ns for name in names}
    with caplog.at_level(logging.INFO, "hpcqa"):
        for stage in (fit, classify, evaluate):
            stage.run(settings(finished.path), finished, Ranks())
    assert before == {name: finished.output(name).stat().st_mtime_ns for name in names}


def test_changed_settings_are_fitted_again(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, bases=(finished.path,))
    config = settings(tmp_path, fit=FitConfig(bad_rate=0.02, pca=8))
    fit.run(config, folder, Ranks())
    classify.run(config, folder, Ranks())
    rare, common = decisions_of(folder), decisions_of(finished)
    known = np.isfinite(rare["p_bad"])
    assert np.nanmean(rare["p_bad"]) < np.nanmean(common["p_bad"])
    assert np.array_equal(np.argsort(rare["p_bad"][known])[-5:], np.argsort(common["p_bad"][known])[-5:]) or known.any()


@pytest.mark.parametrize("labelled", ["good", "elsewhere"])
def test_useless_labels_end_with_an_error_but_the_survey_goes_on(tmp_path: Path, labelled: str) -> None:
    folder = make_run(tmp_path, labelled=labelled)
    config = settings(tmp_path)
    with pytest.raises(DataError, match="every exposure is undecided") as caught:
        fit.run(config, folder, Ranks())
    assert caught.value.goes_on
    classify.run(config, folder, Ranks())
    evaluate.run(config, folder, Ranks())
    decisions = decisions_of(folder)
    assert set(decisions["verdict"].tolist()) == {"undecided"}
    assert np.isfinite(decisions["novelty"][decisions["num_decided"] > 0]).all()
    assert "no labelled exposures" in decisions["why"].tolist()
    with pytest.raises(DataError):  # and again, when all is current
        fit.run(config, folder, Ranks())


def test_a_survey_without_labels_gets_novelty_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path, labelled="none")
    config = settings(tmp_path, survey=SurveyConfig())
    logging.getLogger("hpcqa").propagate = True
    with caplog.at_level(logging.WARNING, "hpcqa"):
        fit.run(config, folder, Ranks())
    assert "no labelled exposures" in caplog.text
    classify.run(config, folder, Ranks())
    decisions = decisions_of(folder)
    bad = np.isin(decisions["expnum"], _bad_exposures(folder))
    seen = decisions["num_decided"] > 0
    assert np.median(decisions["novelty"][seen & bad]) > np.median(decisions["novelty"][seen & ~bad]) + 0.7


def _bad_exposures(folder: RunFolder) -> np.ndarray:
    truth = store.read_table(folder.output("truth"), catalog.LABELS)
    return np.unique(truth["expnum"][truth["bad"]])


def test_without_truth_nights_are_held_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, truth=False)
    config = settings(tmp_path, evaluate=EvaluateConfig(bootstrap=20, holdout=0.4))
    for stage in (fit, classify, evaluate):
        stage.run(config, folder, Ranks())
    content = store.read_json(folder.output("evaluation"))
    assert content["against"] == "labels of held-out nights"
    assert 0 < content["exposures"] < 60


def test_unlisted_exposures_may_serve_as_good_ones(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    config = settings(tmp_path)
    plain = fit.fit(config, folder, fit.embedding_paths(folder))
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, unlisted_good=True))
    more = fit.fit(config, folder, fit.embedding_paths(folder))
    assert (~more.exposure.bad).sum() > (~plain.exposure.bad).sum()


def test_embeddings_of_an_unknown_exposure_are_an_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    manifest = store.read_table(folder.output("manifest"), catalog.MANIFEST)
    kept = {name: values[60:] for name, values in manifest.items()}
    store.write_table(folder.output("manifest"), catalog.MANIFEST, kept, store.Provenance("d"))
    fit.run(settings(tmp_path), folder, Ranks())
    with pytest.raises(DataError, match="not in the manifest"):
        classify.run(settings(tmp_path), folder, Ranks())
