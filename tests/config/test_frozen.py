from __future__ import annotations

import dataclasses
import shutil

import pytest

from hpcqa.config import Config
from hpcqa.config.frozen import STAGE_SECTIONS, digest, from_plain, load, settings_of, stage_digest, to_plain, to_yaml
from hpcqa.errors import ConfigError
from hpcqa.stages import STAGES


def in_folder(folder, **changes):
    config = dataclasses.replace(Config(), run=str(folder))
    return dataclasses.replace(config, **changes)


def test_plain_round_trip():
    assert from_plain(to_plain(Config())) == Config()


def test_yaml_round_trip(tmp_path):
    config = in_folder(tmp_path)
    (tmp_path / "run.yaml").write_text(to_yaml(config, ["seed=1"]))
    assert load(tmp_path / "run.yaml") == (config, ["seed=1"])


def test_a_moved_run_folder_keeps_its_digests(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    survey = dataclasses.replace(Config().survey, tables=[f"{first}/survey/t.fits"])
    config = in_folder(first, survey=survey)
    (first / "run.yaml").write_text(to_yaml(config, []))
    shutil.move(first, second)
    moved, _ = load(second / "run.yaml")
    assert moved.survey.tables == [f"{second}/survey/t.fits"]
    assert stage_digest(moved, "manifest") == stage_digest(config, "manifest")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"sslx": {}}, "sslx: no such setting"),
        ({"ssl": {"lrr": 1}}, "ssl.lrr: no such setting"),
        ({"ssl": {"lr": "fast"}}, "ssl.lr='fast': expected float"),
        ({"ssl": 3}, "ssl: expected a group"),
        ({"seed": True}, "seed=True: expected int"),
        ({"survey": {"tables": "a"}}, "survey.tables='a': expected a list"),
        ({"fit": {"k": 10**9}}, "fit.k=1000000000: expected 0 to"),
    ],
)
def test_wrong_values_are_named(plain, said):
    with pytest.raises(ConfigError) as caught:
        from_plain(plain)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", ["", "a: [", "config: 3\noverrides: []", "overrides: []"])
def test_a_damaged_run_yaml_is_a_config_error(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(tmp_path / "run.yaml")


def test_a_missing_run_yaml_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        load(tmp_path / "run.yaml")


def test_settings_that_only_change_speed_do_not_change_digests():
    slow = dataclasses.replace(Config(), shard=dataclasses.replace(Config().shard, workers=7))
    assert stage_digest(slow, "shard") == stage_digest(Config(), "shard")
    other = dataclasses.replace(Config(), shard=dataclasses.replace(Config().shard, use_masks=False))
    assert digest(other, ["shard"]) != digest(Config(), ["shard"])


def test_every_stage_has_sections_that_exist():
    assert set(STAGE_SECTIONS) == {stage.name for stage in STAGES}
    for sections in STAGE_SECTIONS.values():
        for section in sections:
            assert settings_of(Config(), [section]), section


def test_only_whole_parts_of_paths_move_with_the_folder(tmp_path):
    config = from_plain({"run": "/data/run", "survey": {"tables": ["/data/run/t.fits", "/data/run2/t.fits"]}})
    text = to_yaml(config, ['run="/data/run"', 'survey.tables=["/data/run2/t.fits"]'])
    (tmp_path / "run.yaml").write_text(text)
    moved, overrides = load(tmp_path / "run.yaml")
    assert moved.run == str(tmp_path)
    assert moved.survey.tables == [f"{tmp_path}/t.fits", "/data/run2/t.fits"]
    assert overrides == [f'run="{tmp_path}"', 'survey.tables=["/data/run2/t.fits"]']
