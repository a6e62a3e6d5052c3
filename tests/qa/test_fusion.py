from __future__ import annotations

import numpy as np
import pytest

from hpcqa.qa.fusion import Fusion, OneSided, fit_fusion

NONE_LINEAR = np.zeros(3, bool)


def sample(seed: int = 0, rows: int = 600, shift: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Three scores: one that tells, one of noise, one that tells the other way round."""
    rng = np.random.default_rng(seed)
    bad = rng.random(rows) < 0.4
    scores = rng.normal(size=(rows, 3))
    scores[:, 0] += shift * bad
    scores[:, 2] -= shift * bad
    return scores, bad


def test_weights_are_never_negative_and_noise_gets_little() -> None:
    scores, bad = sample()
    fusion = fit_fusion(scores, bad, np.ones(len(bad)), 0.4, NONE_LINEAR)
    assert (fusion.weight >= 0).all()
    assert fusion.weight[0] > 5 * fusion.weight[1]
    assert fusion.weight[2] < 0.05


def test_a_score_that_looks_good_excuses_nothing() -> None:
    scores, bad = sample()
    fusion = fit_fusion(scores, bad, np.ones(len(bad)), 0.4, NONE_LINEAR)
    suspicious = np.array([[6.0, 0.0, 0.0]])
    excused = np.array([[6.0, -50.0, -50.0]])
    assert fusion.logit(excused)[0] >= fusion.logit(suspicious)[0] - 0.2
    assert fusion.probability(np.array([[7.0, 0.0, 0.0]]))[0] > fusion.probability(suspicious)[0]


def test_probabilities_are_calibrated_on_the_sample() -> None:
    scores, bad = sample(1, 4000, 2.0)
    fusion = fit_fusion(scores, bad, np.ones(len(bad)), float(bad.mean()), NONE_LINEAR)
    p_bad = fusion.probability(scores)
    for low in (0.1, 0.5, 0.8):
        inside = (p_bad >= low) & (p_bad < low + 0.2)
        assert bad[inside].mean() == pytest.approx(p_bad[inside].mean(), abs=0.1)


def test_the_expected_rate_shifts_the_odds_by_bayes_rule() -> None:
    scores, bad = sample()
    common = fit_fusion(scores, bad, np.ones(len(bad)), 0.4, NONE_LINEAR)
    rare = fit_fusion(scores, bad, np.ones(len(bad)), 0.02, NONE_LINEAR)
    odds = np.log(0.4 / 0.6) - np.log(0.02 / 0.98)
    assert common.intercept - rare.intercept == pytest.approx(odds)
    assert np.allclose(common.weight, rare.weight)


def test_scale_of_constant_or_missing_scores() -> None:
    constant = OneSided.fit(np.ones((10, 2)), np.zeros(2, bool))
    assert constant.apply(np.array([[1.0, 3.0]]))[0, 0] == 0.0
    empty = OneSided.fit(np.zeros((0, 2)), np.zeros(2, bool))
    assert empty.centre.tolist() == [0.0, 0.0]


def test_log_odds_are_bounded() -> None:
    fusion = Fusion(OneSided(np.zeros(1), np.ones(1), np.zeros(1, bool)), np.array([1e6]), 0.0)
    assert 0.99999 < fusion.probability(np.array([[1e9]]))[0] < 1.0


def test_a_linear_score_grows_without_bending() -> None:
    scale = OneSided(np.zeros(2), np.ones(2), np.array([False, True]))
    found = scale.apply(np.array([[20.0, 20.0], [-5.0, -5.0]]))
    assert found[0].tolist() == [pytest.approx(np.arcsinh(20.0)), 20.0]
    assert found[1].tolist() == [0.0, 0.0]
