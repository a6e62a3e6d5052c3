"""Which stages a run borrows from the run that it is based on."""

from __future__ import annotations

import pytest

from hpcqa import compose
from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import ConfigError
from hpcqa.launch.pipeline import lenders, planned, upstream
from hpcqa.stages import STAGES, stage


def made(folder: RunFolder, *names: str) -> None:
    for name in names:
        for artifact in stage(name).writes:
            folder.output(artifact).touch()


def frozen(*overrides: str):
    words = compose.remembered(list(overrides))
    config = compose.compose(words)
    return config, compose.freeze(config, words)


@pytest.fixture
def first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, folder = frozen("run=first", "survey.tables=[t.fits]")
    made(folder, *(entry.name for entry in STAGES if entry.name != "simulate"))
    return folder


def test_what_comes_before_a_changed_setting_is_borrowed(first):
    config, folder = frozen("run=second", "base=first", "fit.k=2")
    assert set(lenders(config, folder)) == {"manifest", "shard", "calibrate", "pretrain", "embed"}


def test_a_changed_setting_early_on_borrows_nothing_after_it(first):
    config, folder = frozen("run=second", "base=first", "views.stamp=16")
    assert set(lenders(config, folder)) == {"manifest"}


def test_what_this_run_has_made_is_not_borrowed(first):
    config, folder = frozen("run=second", "base=first", "evaluate.bootstrap=50")
    made(folder, "manifest")
    assert "shard" not in lenders(config, folder)


def test_a_simulated_survey_is_borrowed_with_its_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, base = frozen("run=first", "survey=simulated")
    base.output("survey").mkdir()
    made(base, *(entry.name for entry in STAGES if entry.name != "simulate"))
    config, folder = frozen("run=second", "base=first", "fit.k=2")
    assert config.survey.truth == str(base.output("survey") / "truth.csv")
    assert {"simulate", "manifest", "embed"} <= set(lenders(config, folder))


def test_bases_form_a_chain_and_never_a_circle(first, tmp_path):
    frozen("run=second", "base=first")
    _, third = frozen("run=third", "base=second")
    assert third.bases == (tmp_path / "second", tmp_path / "first")
    assert third.find("shards") == tmp_path / "first" / "shards"
    with pytest.raises(ConfigError, match="based on itself"):
        frozen("run=third", "base=third")


def test_upstream_reaches_the_manifest():
    assert upstream(stage("embed")) == {"embed", "shard", "calibrate", "pretrain", "manifest"}


def test_a_real_survey_is_not_simulated(first):
    config, _ = frozen("run=first")
    assert "simulate" not in [entry.name for entry in planned(config)]
