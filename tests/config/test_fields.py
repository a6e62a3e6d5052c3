from __future__ import annotations

import dataclasses

import pytest

from hpcqa.config import Config, check_ranges, leaves
from hpcqa.config.fields import describe_range
from hpcqa.errors import ConfigError


def test_every_setting_has_a_sentence():
    for leaf in leaves(Config()):
        assert leaf.setting.doc.endswith("."), leaf.name


def test_defaults_are_in_range():
    check_ranges(Config())


def test_names_are_unique():
    names = [leaf.name for leaf in leaves(Config())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("fit", "k", -1, "fit.k=-1: expected 0 to"),
        ("fit", "bad_rate", 2.0, "fit.bad_rate=2.0"),
        ("fit", "bad_rate", float("nan"), "fit.bad_rate=nan"),
        ("model", "arch", "huge", "expected one of"),
        ("views", "context", [128, 2], "views.context=2"),
    ],
)
def test_out_of_range_names_key_value_and_range(section, name, value, said):
    config = Config()
    wrong = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    with pytest.raises(ConfigError) as caught:
        check_ranges(wrong)
    assert said in str(caught.value)


def test_ranges_are_described_with_their_unit():
    described = {leaf.name: describe_range(leaf.setting) for leaf in leaves(Config())}
    assert described["shard.read_timeout"] == "at least 1 s"
    assert "one of" in described["model.arch"]
