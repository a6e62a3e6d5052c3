from __future__ import annotations

import numpy as np
import pytest

from hpcqa.qa import knn, scores
from hpcqa.reasons import BIT, REASONS

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]], "f4")
BAD = np.array([False, False, False, True, True])


def score(
    queries: np.ndarray,
    references: np.ndarray,
    bad: np.ndarray,
    manner: scores.Manner,
    *,
    query_group: np.ndarray | None = None,
    reference_group: np.ndarray | None = None,
) -> scores.Scores:
    return scores.Sides(references, bad, group=reference_group).score(queries, manner, query_group)


def test_ratio_is_positive_near_bad_examples() -> None:
    found = score(np.array([[0.5], [10.5]], "f4"), LINE, BAD, scores.Manner(2))
    assert found.ratio[0] < 0 < found.ratio[1]
    assert found.ratio[1] == pytest.approx(np.log(9.0 / 0.5))
    assert found.novelty[1] > found.novelty[0]


def test_rows_are_those_of_the_references_as_given() -> None:
    shuffled = np.array([3, 0, 4, 2, 1])
    found = score(np.array([[10.1]], "f4"), LINE[shuffled], BAD[shuffled], scores.Manner(2))
    assert LINE[shuffled][found.nearest_bad[0], 0].tolist() == [10.0, 11.0]
    assert LINE[shuffled][found.nearest_good[0], 0].tolist() == [2.0, 1.0]


def test_a_query_does_not_find_its_own_group() -> None:
    group = np.array([2, 0, 1, 1, 0])  # not sorted
    found = score(LINE, LINE, BAD, scores.Manner(1), query_group=group, reference_group=group)
    own = np.concatenate([found.nearest_good, found.nearest_bad], axis=1)
    for row, neighbours in enumerate(own):
        assert all(group[place] != group[row] for place in neighbours if place >= 0)
    strangers = score(LINE, LINE, BAD, scores.Manner(1), query_group=np.full(5, -1), reference_group=group)
    assert strangers.good[0] == 0


def test_one_class_alone_gives_no_ratio_but_novelty() -> None:
    found = score(np.array([[5.0]], "f4"), LINE, np.zeros(5, bool), scores.Manner(2))
    assert found.ratio.tolist() == [0.0]
    assert np.isnan(found.bad[0])
    assert found.novelty[0] == pytest.approx(np.log(3.5))
    assert score(LINE, LINE, np.ones(5, bool), scores.Manner(2)).novelty.tolist() == [0.0] * 5


def test_a_duplicate_of_an_example_stays_finite() -> None:
    found = score(LINE, LINE, BAD, scores.Manner(1))
    assert np.isfinite(found.ratio).all()
    assert np.isfinite(found.novelty).all()


def test_reasons_are_weighted_by_nearness() -> None:
    reasons = np.array([0, 0, 0, BIT["ghost"], BIT["ghost"] | BIT["clouds"]])
    found = score(np.array([[9.0]], "f4"), LINE, BAD, scores.Manner(2))
    shares = scores.reason_shares(found, reasons, len(REASONS))[0]
    assert shares[REASONS.index("ghost")] == pytest.approx(1.0)
    assert shares[REASONS.index("clouds")] == pytest.approx((1 / 4) / (1 + 1 / 4), rel=1e-4)
    assert shares.sum() < 1.3


def test_reasons_without_bad_neighbours_are_nothing() -> None:
    found = score(LINE, LINE, np.zeros(5, bool), scores.Manner(2))
    assert not scores.reason_shares(found, np.zeros(5, np.int64), len(REASONS)).any()
    assert scores.reason_shares(found, np.zeros(0, np.int64), 3).shape == (5, 3)


def test_nearest_of_both_kinds_in_order() -> None:
    found = score(np.array([[6.5]], "f4"), LINE, BAD, scores.Manner(2))
    assert LINE[scores.nearest_of_both(found, 3)[0], 0].tolist() == [10.0, 2.0, 11.0]


def test_vote_is_the_share_of_bad_neighbours() -> None:
    found = knn.nearest(np.array([[6.5], [0.0]], "f4"), LINE, 3)
    assert scores.vote(found, BAD).tolist() == [pytest.approx(2 / 3), 0.0]


@pytest.mark.parametrize(("form", "expected"), [("vote", [0.0, 0.5, 1.0]), ("ratio", None), ("softmax", None)])
def test_every_form_leans_the_right_way(form: str, expected: list[float] | None) -> None:
    manner = scores.Manner(2, form)
    found = score(np.array([[0.5], [6.0], [10.5]], "f4"), LINE, BAD, manner).leaning
    assert found[0] < found[1] < found[2]
    if expected:
        assert found.tolist() == expected


def test_softmax_weighs_by_distance_in_units_of_the_farthest_neighbour() -> None:
    found = score(np.array([[9.0]], "f4"), LINE, BAD, scores.Manner(2, "softmax"))
    near, far = np.exp(-np.square([1 / 2, 1.0]) / scores.TEMPERATURE)
    assert found.softmax[0] == pytest.approx(1.0)
    mixed = score(np.array([[7.0]], "f4"), LINE, BAD, scores.Manner(3, "softmax"))
    weight = np.exp(-np.square(np.array([3.0, 4.0, 5.0]) / 5.0) / scores.TEMPERATURE)
    assert mixed.softmax[0] == pytest.approx((weight[0] + weight[1]) / weight.sum())
    assert near > far


def test_forms_without_any_neighbour_say_nothing() -> None:
    none = score(LINE, LINE[:0], BAD[:0], scores.Manner(2))
    assert none.vote.tolist() == none.softmax.tolist() == none.ratio.tolist() == [0.0] * 5
