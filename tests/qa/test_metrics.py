from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from hpcqa.qa import metrics


@given(st.integers(0, 10**6), st.integers(2, 60), st.booleans())
@settings(max_examples=80, deadline=None)
def test_areas_agree_with_sklearn(seed: int, rows: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    bad = rng.random(rows) < 0.4
    bad[:2] = True, False
    score = rng.integers(0, 4, rows).astype(float) if ties else rng.random(rows)
    weight = rng.integers(1, 4, rows).astype(float)
    ranked = metrics.Ranked.of(score, bad)
    expected = average_precision_score(bad, score, sample_weight=weight)
    assert float(metrics.average_precision(ranked, weight)) == pytest.approx(expected)
    assert float(metrics.roc_area(ranked, weight)) == pytest.approx(roc_auc_score(bad, score, sample_weight=weight))


def test_weights_of_many_samples_at_once() -> None:
    rng = np.random.default_rng(0)
    ranked = metrics.Ranked.of(rng.random(30), rng.random(30) < 0.5)
    weights = rng.integers(0, 3, (5, 30)).astype(float)
    together = metrics.average_precision(ranked, weights)
    apart = [float(metrics.average_precision(ranked, weight)) for weight in weights]
    assert together.tolist() == pytest.approx(apart)


def test_recall_at_a_false_positive_rate() -> None:
    score = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    bad = np.array([True, True, False, True, False, True])
    ranked = metrics.Ranked.of(score, bad)
    ones = np.ones(6)
    assert float(metrics.recall_at(ranked, ones, bad, 0.0)) == 0.5
    assert float(metrics.recall_at(ranked, ones, bad, 0.5)) == 0.75
    assert float(metrics.recall_at(ranked, ones, bad & (score < 8), 0.0)) == 0.0
    assert np.isnan(metrics.recall_at(ranked, ones, np.zeros(6, bool), 0.0))


def test_recall_is_zero_if_a_good_one_has_the_highest_score() -> None:
    ranked = metrics.Ranked.of(np.array([3.0, 2.0, 1.0]), np.array([False, True, True]))
    assert float(metrics.recall_at(ranked, np.ones(3), np.array([False, True, True]), 0.0)) == 0.0


def test_a_night_is_drawn_whole() -> None:
    night = np.array([1, 1, 2, 3, 3, 3])
    weights = metrics.night_weights(night, 200, seed=4)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 5])
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(weights, metrics.night_weights(night, 200, seed=4))


def test_the_interval_holds_the_value() -> None:
    rng = np.random.default_rng(1)
    night = rng.integers(0, 20, 400)
    bad = rng.random(400) < 0.4
    ranked = metrics.Ranked.of(bad + rng.normal(size=400), bad)
    weights = metrics.night_weights(night, 200, 1)
    found = metrics.with_interval(lambda weight: metrics.average_precision(ranked, weight), weights)
    assert found["low"] < found["value"] < found["high"]


def test_one_night_has_no_interval() -> None:
    bad, score = np.array([True, False, True]), np.array([0.3, 0.2, 0.1])
    ranked = metrics.Ranked.of(score, bad)
    weights = metrics.night_weights(np.array([7, 7, 7]), 50, 1)
    found = metrics.with_interval(lambda weight: metrics.average_precision(ranked, weight), weights)
    assert found["value"] == pytest.approx(5 / 6)
    assert np.isnan([found["low"], found["high"]]).all()


def test_reliability_of_honest_probabilities() -> None:
    rng = np.random.default_rng(2)
    p_bad = rng.random(20000)
    bad = rng.random(20000) < p_bad
    assert metrics.calibration_error(p_bad, bad) < 0.02
    assert metrics.calibration_error(np.full(100, 0.9), np.zeros(100, bool)) == pytest.approx(0.9)
    rows = metrics.reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [row["count"] for row in rows] == [1, 1]
    assert rows[1]["high"] == 1.0


def test_curves_end_at_full_recall() -> None:
    rng = np.random.default_rng(3)
    bad = rng.random(2000) < 0.3
    found = metrics.curves(metrics.Ranked.of(rng.random(2000), bad), most=50)
    assert found["roc"]["tpr"][-1] == found["roc"]["fpr"][-1] == 1.0
    assert len(found["precision_recall"]["recall"]) <= 50
    assert metrics.curves(metrics.Ranked.of(np.zeros(0), np.zeros(0, bool)))["roc"]["fpr"] == []


def test_a_difference_is_known_better_than_its_parts() -> None:
    rng = np.random.default_rng(5)
    night, bad = rng.integers(0, 20, 400), rng.random(400) < 0.4
    score = bad + 1.2 * rng.normal(size=400)
    weights = metrics.night_weights(night, 300, 1)

    def precision(noise: float) -> metrics.Figure:
        ranked = metrics.Ranked.of(score + noise * rng.normal(size=400), bad)
        return lambda weight: metrics.average_precision(ranked, weight)

    better, worse = precision(0.0), precision(0.7)
    found = metrics.with_interval(metrics.difference(better, worse), weights)
    alone = metrics.with_interval(better, weights)
    assert found["value"] == pytest.approx(alone["value"] - metrics.with_interval(worse, weights)["value"])
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] < alone["high"] - alone["low"]
    assert metrics.with_interval(metrics.difference(better, better), weights) == {"value": 0, "low": 0, "high": 0}
