from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.artifacts.schema import Provenance
from hpcqa.config import ClassifyConfig
from hpcqa.qa import classifier_file, thresholds
from hpcqa.qa.learn import Recipe, learn
from tests.qa.synthetic import number_scale, survey


def sample(good: int = 2000, bad: int = 200, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(0, 1, good), rng.normal(3, 1, bad)])
    return 1 / (1 + np.exp(-scores)), np.arange(good + bad) >= good


def test_the_thresholds_keep_what_they_promise_on_new_exposures() -> None:
    found = thresholds.choose(*sample(), 0.02, 0.8, 0.95)
    p_bad, bad = sample(100000, 10000, seed=2)
    called = p_bad >= found["bad_above"]
    true, false = called[bad].mean(), called[~bad].mean()
    assert 0.02 * true / (0.02 * true + 0.98 * false) == pytest.approx(0.8, abs=0.06)
    assert (p_bad[bad] >= found["review_above"]).mean() == pytest.approx(0.95, abs=0.03)
    assert found["precision"] >= 0.8
    assert found["recall"] >= 0.95


def test_rarer_bad_exposures_need_a_higher_threshold() -> None:
    p_bad, bad = sample()
    levels = [thresholds.choose(p_bad, bad, rate, 0.7, 0)["bad_above"] for rate in (0.3, 0.03, 0.003)]
    assert levels == sorted(levels)
    assert levels[0] < levels[2]


def test_a_few_good_exposures_promise_no_perfection() -> None:
    p_bad, bad = np.array([0.1, 0.2, 0.9, 0.95]), np.array([False, False, True, True])
    found = thresholds.choose(p_bad, bad, 0.02, 0.99, 0)
    assert found["bad_above"] == 0.9
    assert found["precision"] < 0.2


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_recall_is_reached_by_the_highest_threshold(rows: list[tuple[int, bool]], recall: float) -> None:
    bad = np.array([row[1] for row in rows])
    bad[0] = True
    p_bad = np.array([row[0] for row in rows]) / 5
    found = thresholds.choose(p_bad, bad, 0.1, 0, recall)
    assert (p_bad[bad] >= found["review_above"]).mean() >= recall
    higher = p_bad > found["review_above"]
    assert higher[bad].mean() < recall


def test_nothing_asked_nothing_chosen() -> None:
    assert thresholds.choose(*sample(), 0.02, 0, 0) == {}
    assert thresholds.in_words({}) == ""
    assert thresholds.applied(ClassifyConfig(), {}) == ClassifyConfig()


def test_review_is_never_above_bad() -> None:
    changed = thresholds.applied(ClassifyConfig(), {"thresholds": {"bad_above": 0.1, "review_above": 0.6}})
    assert (changed.bad_above, changed.review_above) == (0.1, 0.1)
    assert thresholds.applied(ClassifyConfig(), {"thresholds": {"bad_above": 0.9}}).review_above == 0.3


def test_what_is_asked_for_is_in_the_classifier_and_its_digest(tmp_path: Path) -> None:
    examples, recipe = survey(), Recipe(bad_rate=0.3, pca=6)
    plain = learn(examples, number_scale(), recipe)
    asked = learn(examples, number_scale(), dataclasses.replace(recipe, precision=0.8, recall=0.9))
    assert plain.settings["thresholds"] == {}
    chosen = asked.settings["thresholds"]
    assert chosen["recall"] >= 0.9
    assert 0 < chosen["review_above"] < 1
    said = thresholds.in_words(chosen)
    assert "precision" in said
    assert "recall" in said
    first = classifier_file.write(tmp_path / "a.h5", plain, Provenance("d"))
    second = classifier_file.write(tmp_path / "b.h5", asked, Provenance("d"))
    assert first.content != second.content
    assert classifier_file.read(tmp_path / "b.h5").settings["thresholds"] == chosen
    assert classifier_file.read(tmp_path / "a.h5").settings["thresholds"] == {}
