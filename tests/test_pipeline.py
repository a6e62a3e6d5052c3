"""Which stages a run borrows from the run that it is based on."""

from __future__ import annotations

import pytest

from hpcqa import compose
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.errors import ConfigError
from hpcqa.launch.pipeline import lenders, planned, upstream
from hpcqa.launch.progress import PER_SHARD, standing_file
from hpcqa.stages import STAGES, stage
from tests.launch.test_status import write_manifest


def made(folder: RunFolder, *names: str) -> None:
    """Leave behind what says that stages are done; the manifest asks for one shard."""
    for artifact in [artifact for name in names for artifact in stage(name).writes]:
        path = standing_file(folder, artifact)
        if artifact == "manifest":
            write_manifest(folder, 1)
            continue
        if artifact in PER_SHARD:
            path = path / shard_name(0)
        path.parent.mkdir(exist_ok=True)
        path.touch()


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


def test_what_a_base_run_has_not_finished_is_not_borrowed(first):
    (first.output("shards") / shard_name(0)).unlink()
    config, folder = frozen("run=second", "base=first")
    assert "shard" not in lenders(config, folder)
    assert "manifest" in lenders(config, folder)


def test_a_changed_setting_early_on_borrows_nothing_after_it(first):
    config, folder = frozen("run=second", "base=first", "views.stamp=16")
    assert set(lenders(config, folder)) == {"manifest"}


def test_other_label_lists_borrow_nothing_but_are_taken_in_the_same_folder(first):
    config, folder = frozen("run=second", "base=first", "survey.labels=[votes.csv]")
    assert lenders(config, folder) == {}
    config, folder = frozen("run=first", "survey.labels=[votes.csv]")
    assert config.survey.labels[0].endswith("votes.csv")
    with pytest.raises(ConfigError, match="its manifest"):
        frozen("run=first", "survey.tables=[other.fits]")


def test_what_this_run_has_made_is_not_borrowed(first):
    config, folder = frozen("run=second", "base=first", "evaluate.bootstrap=50")
    made(folder, "manifest")
    assert "shard" not in lenders(config, folder)


def test_a_simulated_survey_is_borrowed_with_its_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, base = frozen("run=first", "survey=simulated")
    made(base, *(entry.name for entry in STAGES))
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
