import numpy as np
import pytest

from hpcqa.report.choose import interesting


@pytest.fixture
def decisions():
    return {
        "expnum": np.arange(1, 9),
        "verdict": np.array(["good", "bad", "review", "good", "bad", "undecided", "undecided", "good"], object),
        "p_bad": np.array([0.1, 0.99, 0.6, 0.4, 0.9, np.nan, np.nan, 0.01], np.float32),
        "novelty": np.array([0, 1, 2, 0, 1, np.nan, np.nan, 9], np.float32),
        "num_decided": np.array([5, 5, 5, 5, 5, 0, 3, 5]),
    }


def test_each_once_and_in_the_order_of_verdicts(decisions):
    chosen = interesting(decisions, 100)
    rows = [choice.row for choice in chosen]
    assert rows == [1, 4, 2, 3, 0, 7, 6]  # row 5 has nothing to see


def test_few_come_from_several_points_of_view(decisions):
    why = {choice.row: choice.why for choice in interesting(decisions, 4)}
    assert why == {1: "most probably bad", 2: "for review", 7: "unlike anything labelled", 3: "good, but only just"}


def test_contradictions_of_the_truth_come_early(decisions):
    chosen = interesting(decisions, 3, {1: True, 4: False, 5: False})
    assert any("truth says bad" in choice.why and choice.row == 0 for choice in chosen)
    chosen = interesting(decisions, 5, {2: False, 5: False})
    assert any("truth says good" in choice.why for choice in chosen)


def test_none_and_empty(decisions):
    assert interesting(decisions, 0) == []
    assert interesting({name: values[:0] for name, values in decisions.items()}, 10) == []
