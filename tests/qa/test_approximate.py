from __future__ import annotations

import sys

import numpy as np
import pytest

from hpcqa.errors import EnvironmentProblem
from hpcqa.qa import approximate, knn
from hpcqa.qa.classifier import References
from hpcqa.qa.scores import Manner


def clustered(rows: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(40, 12)) * 4
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, rows)] + rng.normal(size=(rows, 12))).astype("f4")


def test_most_neighbours_are_found_and_their_distances_are_exact() -> None:
    pytest.importorskip("faiss")
    references, queries = clustered(6000, 1), clustered(100, 2)
    index = approximate.Index.of(references)
    found, exact = index.nearest(queries, 5), knn.nearest(queries, references, 5)
    share = approximate.recall(index, queries, 5)
    assert 0.5 < share <= 1.0
    same = found.index == exact.index
    assert np.array_equal(found.distance[same], exact.distance[same])
    assert np.all(np.diff(found.distance, axis=1) >= 0)
    again = approximate.Index.of(references).nearest(queries, 5)
    assert np.array_equal(again.index, found.index)


def test_scores_are_nearly_those_of_the_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "FEWEST", 1000)
    features, count = clustered(6000, 3), 6000
    fold = np.random.default_rng(1).integers(0, 4, count)
    bad = np.arange(count) % 3 == 0
    zeros = np.zeros(count, np.int64)
    exact = References(np.arange(count), np.full(count, -1), bad, zeros, fold, {"numbers": features})
    near, least = exact.indexed(4)
    assert set(near.indices["numbers"]) == {False, True}
    assert 0.5 < least <= 1.0
    queries, own = clustered(80, 4), np.repeat([-1, 2], 40)
    expected = exact.score({"numbers": queries}, own, Manner(4))["numbers"]
    found = near.score({"numbers": queries}, own, Manner(4))["numbers"]
    assert np.array_equal(found.ratio[40:], expected.ratio[40:])
    assert np.mean(np.isclose(found.ratio, expected.ratio)) > 0.5
    assert np.all(found.good >= expected.good)


def test_without_faiss_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EnvironmentProblem, match=r"classify\.index=exact"):
        approximate.Index.of(clustered(10, 1))
