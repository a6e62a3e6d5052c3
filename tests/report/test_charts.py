import numpy as np
import pytest

from hpcqa.report import charts
from hpcqa.report import evaluation as module
from hpcqa.report.collect import Known
from tests.report.made_up import EVALUATION

EMPTY = {name: np.array([], object) for name in ("expnum", "verdict", "reasons")}


def titles(found):
    return [chart.title for chart in found]


def test_a_step_that_was_run_again_counts_as_it_was_last():
    metrics = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"loss": 9.0}, {"step": 3}]
    steps, values = charts.series(metrics, "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [5, 3])


def test_loss_terms_are_summed_over_views():
    metrics = [{"step": 1, "loss": 6.0, "loss_dino_context": 1.0, "loss_dino_detail": 2.0, "loss_ibot_context": 3.0}]
    found = {name: values.tolist() for name, (_, values) in charts.loss_terms(metrics).items()}
    assert found == {"sum": [6.0], "dino": [3.0], "ibot": [3.0]}


def test_training_shows_what_was_recorded():
    assert charts.training([]) == []
    assert charts.training([{"step": 1, "lr": 0.1}]) == []
    metrics = [{"step": 1, "rank_context": 3.0}, {"step": 2, "knn_ap": 0.7, "knn_ap_untrained": 0.6, "knn_classes": 2}]
    found = charts.training(metrics)
    assert titles(found) == ["Embedding rank", "Nearest-neighbour check"]
    assert [row[0] for row in found[1].rows] == ["this network", "untrained"]


def test_null_metrics_are_left_out():
    assert charts.training([{"step": 1, "knn_ap": None}, {"step": 2, "loss": None}]) == []


def test_distributions_need_decisions():
    verdict = np.array(["undecided", "undecided"], object)
    nothing = {"verdict": verdict, "p_bad": np.full(2, np.nan), "novelty": np.full(2, np.nan)}
    assert charts.distributions(nothing) == []
    some = {"verdict": np.array(["good", "bad"], object), "p_bad": np.array([0.1, 0.9]), "novelty": np.full(2, np.nan)}
    assert titles(charts.distributions(some)) == ["Probability of being bad"]


def test_no_evaluation_and_nothing_to_compare_with():
    assert not module.evaluation({}, EMPTY, {}).present
    found = module.evaluation({"missing": "0 bad and 5 good <exposures>"}, EMPTY, {})
    assert found.present
    assert "0 bad and 5 good" in found.lead
    assert found.charts == ()


def test_everything_is_shown():
    found = module.evaluation(EVALUATION, EMPTY, {})
    assert titles(found.charts) == [
        *("Controls", "What training gives", "Precision and recall", "ROC", "Reliability", "Recall by reason"),
        "Verdicts against truth",
    ]
    assert found.tiles[0].value == "0.91"
    assert "19 exposures" in found.tiles[2].more
    assert [row[0] for row in found.charts[0].rows][:3] == [
        *("these decisions", "numbers + trained network", "numbers + untrained network"),
    ]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        *[("controls", ["Controls"]), ("differences", ["What training gives"])],
        *[("curves", ["Precision and recall", "ROC"]), ("reliability", ["Reliability"])],
        *[("reasons", ["Recall by reason"]), ("confusion", ["Verdicts against truth"]), ("figures", [])],
    ],
)
def test_any_other_entry_may_be_absent(key, shown):
    found = module.evaluation({"exposures": 5, key: EVALUATION[key]}, EMPTY, {})
    assert titles(found.charts) == shown
    assert bool(found.tiles) == (key == "figures")


def test_figures_that_are_null_are_not_shown():
    nothing = {"value": None, "low": None, "high": None}
    content = {
        "exposures": 5,
        "figures": {"average_precision": nothing},
        "controls": [{"name": "x", "recall": nothing}],
    }
    found = module.evaluation(content, EMPTY, {})
    assert (found.tiles, found.charts) == ([], [])


def test_one_night_has_no_intervals_and_says_so():
    figure = {"value": 0.842, "low": None, "high": None}
    ccds = {"all": {"average_precision": figure, "bad": 3, "ccds": 60}}
    content = {"exposures": 5, "bad": 2, "nights": 1, "figures": {"average_precision": figure}, "ccds": ccds}
    found = module.evaluation(content, EMPTY, {})
    assert "of one night" in found.lead
    assert "no intervals" in found.lead
    assert [tile.more for tile in found.tiles] == ["", "3 of 60 bad"]


def test_words_of_a_figure():
    assert module.in_words({"value": 0.914, "low": 0.87, "high": 0.94}) == "0.91 (0.87–0.94)"
    assert module.in_words({"value": None}) == "–"
    assert module.in_words(None) == "–"
    assert module.in_words(0.5) == "0.50"


def test_differences_say_their_sign():
    assert module.signed({"value": 0.0312, "low": -0.012, "high": 0.05}) == "+0.031 (-0.012 to +0.050)"
    assert module.signed(None) == "–"
    (chart,) = module.evaluation({"exposures": 5, "differences": EVALUATION["differences"]}, EMPTY, {}).charts
    assert chart.rows[0][:2] == (
        "trained network only less untrained network only",
        "+0.040 (-0.010 to +0.090)",
    )


def test_wilson_interval():
    low, high = module.wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 10, 0]))
    assert low[0] == 0
    assert 0.15 < high[0] < 0.25
    assert low[1] == pytest.approx(1 - high[1])
    assert high[2] == 1


def test_named_pairs():
    decisions = {
        "expnum": np.arange(1, 7),
        "verdict": np.array(["bad", "bad", "good", "good", "undecided", "review"], object),
        "reasons": np.array(["ghost,psf", "clouds", "", "", "", ""], object),
    }
    truth = {
        1: Known(True, "", ("psf", "ghost")),
        2: Known(True, "", ("noise", "psf")),
        3: Known(True, "", ("noise",)),
        4: Known(False, "good"),
        5: Known(False, "good"),
        6: Known(False, "good"),
    }
    assert module.named_pairs(decisions, truth) == {
        ("ghost", "ghost"): 1,
        ("noise", "clouds"): 1,
        ("noise", "good"): 1,
        ("good", "good"): 1,
        ("good", "other"): 1,
    }
