from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException

from hpcqa import compose
from hpcqa.config import Config
from hpcqa.config.frozen import load
from hpcqa.errors import ConfigError


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_defaults_compose_to_the_dataclasses_defaults():
    composed = compose.compose([])
    assert composed.fit == Config().fit
    assert composed.views == Config().views


def test_groups_and_values_compose(tmp_path):
    config = compose.compose(["instrument=decam", "fit.k=7", "run=here", "survey.tables=[a.fits,/b/*.fits]"])
    assert config.instrument.name == "decam"
    assert config.views.context == [512, 256]
    assert config.fit.k == 7
    assert config.run == str(tmp_path / "here")
    assert config.survey.tables == [str(tmp_path / "a.fits"), "/b/*.fits"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ssl.lrr=1", "ssl.lrr: no such setting; did you mean ssl.lr"),
        ("fit.k=many", "fit.k=many: expected a whole number."),
        ("fit.bad_rate=[1]", "fit.bad_rate=[1]: expected a number."),
        ("fit.clean=perhaps", "fit.clean=perhaps: expected true or false."),
        ("manifest.bands=r", "manifest.bands=r: expected a list, as in manifest.bands=[a,b]."),
        ("ssl.mix=[a]", "ssl.mix=[a]: expected a list, as in ssl.mix=[0.25,1.0,0.25]."),
        ("experiment=dmeo", "experiment=dmeo: no such experiment; did you mean demo?"),
        ("cluster=mine", "cluster=mine: no such cluster; there are generic, perlmutter_cpu, perlmutter_gpu."),
        ("instrument.name=hubble", "instrument.name=hubble: no such camera; known are decam, minicam."),
        ("manifest.bands=[g,R]", "manifest.bands: no camera has a band R; minicam has u, g"),
        ("ssl.init_from=none.pth", "ssl.init_from=none.pth: no such file"),
        ("run=", "run=: expected a folder"),
        ("views.context=[64]", "views.context=[64]: expected 2 numbers, found 1."),
        ("views.context=[100,64]", "views.context=[100,64]: both sides must be multiples of model.patch=16."),
        ("views.stamp=48", "views.detail=[128, 128]: both sides must be multiples of views.stamp=48."),
        ("ssl.mask_share=[0.9,0.1]", "ssl.mask_share=[0.9, 0.1]: expected the smaller number first."),
        ("ssl.mix=[1]", "ssl.mix=[1.0]: expected one share for each of ssl.views"),
        ("ssl.views=[]", "ssl.views=[]: expected at least one view."),
        ("classify.bad_above=0.2", "classify.review_above=0.3: expected at most classify.bad_above=0.2"),
        ("fit.k=-1", "fit.k=-1: expected 0 to 1000"),
        ("instrument=hubble", "hubble"),
        ("seed", "seed: expected key=value"),
        ("fit.k=[1", "fit.k=[1"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, said):
    with pytest.raises(ConfigError) as caught:
        compose.compose([override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "é ü", "a=b", "(x)", "per%cent", "a'b", "日本"])
def test_any_path_may_be_typed_without_quotes(tmp_path, name):
    overrides = compose.remembered(compose.in_quotes([f"run={name}", "fit.k=7"]))
    compose.freeze(compose.compose(overrides), overrides)
    again = compose.compose(compose.remembered(compose.in_quotes([f"run={tmp_path}/{name}"])))
    assert (again.run, again.fit.k) == (f"{tmp_path}/{name}", 7)


def test_lists_of_paths_may_be_typed_without_quotes(tmp_path):
    words = compose.in_quotes(["survey.labels=[é/a.txt, b=c/*.csv]", "survey.tables=[t.fits]"])
    assert words[1] == "survey.tables=[t.fits]"
    assert compose.compose(words).survey.labels == [str(tmp_path / "é/a.txt"), str(tmp_path / "b=c/*.csv")]


def test_an_interruption_is_no_mistake_of_the_configuration(monkeypatch):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        finally:
            raise ConfigCompositionException

    monkeypatch.setattr(compose, "hydra_compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compose.compose([])


def test_a_run_folder_remembers_its_overrides(tmp_path):
    overrides = compose.remembered(["run=first", "fit.k=7", "survey.tables=[t.fits]"])
    compose.freeze(compose.compose(overrides), overrides)
    again = compose.remembered([f"run={tmp_path}/first", "seed=1"])
    config = compose.compose(again)
    assert config.fit.k == 7
    assert config.survey.tables == [str(tmp_path / "t.fits")]


def test_a_remembered_path_means_the_same_from_elsewhere(tmp_path, monkeypatch):
    overrides = ["run=first", "survey.tables=[t.fits]"]
    compose.freeze(compose.compose(overrides), overrides)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = compose.compose(compose.remembered(["run=../first"]))
    assert config.survey.tables == [str(tmp_path / "t.fits")]


def test_the_newest_word_counts():
    overrides = ["run=first", "fit.k=7"]
    compose.freeze(compose.compose(overrides), overrides)
    assert compose.compose(compose.remembered(["run=first", "fit.k=9"])).fit.k == 9


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    overrides = ["run=first", "manifest.min_exptime=10"]
    folder = compose.freeze(compose.compose(overrides), overrides)
    folder.output("manifest").write_text("made")
    changed = compose.remembered(["run=first", "manifest.min_exptime=20"])
    with pytest.raises(ConfigError) as caught:
        compose.freeze(compose.compose(changed), changed)
    assert "manifest.min_exptime=10.0 (now 20.0)" in str(caught.value)
    assert "base=" in str(caught.value)
    assert load(tmp_path / "first" / "run.yaml")[0].manifest.min_exptime == 10


def test_settings_that_only_change_speed_may_change(tmp_path):
    overrides = ["run=first"]
    folder = compose.freeze(compose.compose(overrides), overrides)
    folder.output("shards").mkdir()
    changed = compose.remembered(["run=first", "shard.workers=3"])
    compose.freeze(compose.compose(changed), changed)
    assert load(tmp_path / "first" / "run.yaml")[0].shard.workers == 3


def test_a_base_run_lends_its_overrides(tmp_path):
    overrides = ["run=first", "fit.k=7"]
    compose.freeze(compose.compose(overrides), overrides)
    config = compose.compose(compose.remembered(["run=second", "base=first", "seed=5"]))
    assert (config.fit.k, config.seed) == (7, 5)
    assert config.run == str(tmp_path / "second")
    assert config.base == str(tmp_path / "first")


def test_a_base_that_is_not_there_is_named():
    overrides = ["run=second", "base=nowhere"]
    with pytest.raises(ConfigError, match="no such run folder"):
        compose.freeze(compose.compose(overrides), overrides)


@pytest.mark.parametrize("group", ["instrument", "survey", "model", "launch", "cluster", "stage", "experiment"])
def test_every_file_of_conf_composes(group, request):
    files = sorted((request.config.rootpath / "conf" / group).glob("*.yaml"))
    assert files
    for file in files:
        compose.compose([f"{group}={file.stem}"])


def test_what_is_said_of_one_command_is_not_remembered(tmp_path):
    overrides = ["run=first", "launch.wait=true"]
    compose.freeze(compose.compose(overrides), overrides)
    assert not load(tmp_path / "first" / "run.yaml")[0].launch.wait
    assert "launch.wait=true" not in compose.remembered(["run=first"])


def test_a_dry_run_writes_nothing(tmp_path):
    overrides = ["run=first", "launch.dry_run=true"]
    compose.freeze(compose.compose(overrides), overrides)
    assert not list(tmp_path.iterdir())
