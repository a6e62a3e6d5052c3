"""How near a query is to bad and to good examples: ratios of distances, and novelty.

A plain vote of the neighbours forgets how far they are. The ratio of the distance to the nearest good examples and the
distance to the nearest bad ones keeps it, and the first of them alone says how new a query is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpcqa.qa import approximate, knn
from hpcqa.qa.products import Rows, SomeRows

FORMS = ("ratio", "vote", "softmax")
# Distances below this are equal for every purpose; keeps the logarithm of a duplicate finite.
TINY = 1e-6
TEMPERATURE = 0.3


@dataclass(frozen=True)
class Manner:
    """How neighbours become scores.

    Attributes:
        k: neighbours of each class.
        form: of the score that says which way they point, one of FORMS.
        device: where distances are computed.
    """

    k: int = 4
    form: str = "ratio"
    device: str = "cpu"


@dataclass(frozen=True)
class Scores:
    """Scores of each query against labelled references.

    Attributes:
        good: float64 (query,), mean distance to the k nearest good references; NaN without any.
        bad: float64 (query,), the same for bad ones; NaN without any.
        nearest_good: int64 (query, k), rows of the references, -1 for none.
        nearest_bad: int64 (query, k).
        good_distance, bad_distance: float64 (query, k), inf for none.
        form: of `leaning`, one of FORMS.
    """

    good: np.ndarray
    bad: np.ndarray
    nearest_good: np.ndarray
    nearest_bad: np.ndarray
    good_distance: np.ndarray
    bad_distance: np.ndarray
    form: str = "ratio"

    @property
    def leaning(self) -> np.ndarray:
        """Which way the neighbours point, by `form`, one of FORMS: float64 (query,), larger is worse."""
        return {"ratio": lambda: self.ratio, "vote": lambda: self.vote, "softmax": lambda: self.softmax}[self.form]()

    @property
    def ratio(self) -> np.ndarray:
        """Log of the distance to good over the distance to bad: positive if nearer to bad; 0 where one is unknown."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(np.maximum(self.good, TINY)) - np.log(np.maximum(self.bad, TINY))
        return np.where(np.isfinite(ratio), ratio, 0.0)

    @property
    def vote(self) -> np.ndarray:
        """Share of bad ones among the k nearest of both classes; 0 without any."""
        near, is_bad = self._both()
        return _share(np.isfinite(near).astype(np.float64), is_bad)

    @property
    def softmax(self) -> np.ndarray:
        """The same with weights that fall like a Gaussian of the distance in units of the k-th neighbour's.

        Weights of a softmax over similarities are those of DINO's evaluation (arXiv:2104.14294, appendix F); the local
        unit makes the temperature mean the same in every feature space.
        """
        near, is_bad = self._both()
        finite = np.isfinite(near)
        unit = np.maximum(np.where(finite, near, 0.0).max(axis=1, keepdims=True), TINY)
        weight = np.where(finite, np.exp(-np.square(np.where(finite, near, 0.0) / unit) / TEMPERATURE), 0.0)
        return _share(weight, is_bad)

    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of the k nearest of both classes, and which are bad: float64 and bool (query, k)."""
        distance = np.concatenate([self.good_distance, self.bad_distance], axis=1)
        bad = np.arange(distance.shape[1]) >= self.good_distance.shape[1]
        order = np.argsort(distance, axis=1, kind="stable")[:, : self.good_distance.shape[1]]
        return np.take_along_axis(distance, order, axis=1), bad[order]

    @property
    def novelty(self) -> np.ndarray:
        """Log of the distance to good; 0 where unknown."""
        with np.errstate(divide="ignore", invalid="ignore"):
            novelty = np.log(np.maximum(self.good, TINY))
        return np.where(np.isfinite(novelty), novelty, 0.0)


def _share(weight: np.ndarray, is_bad: np.ndarray) -> np.ndarray:
    """Share of the weight (query, neighbour) that is on bad ones; 0 where there is none: float64 (query,)."""
    total = weight.sum(axis=1)
    return np.asarray((weight * is_bad).sum(axis=1) / np.where(total > 0, total, 1.0))


class Sides:
    """Good and bad references, made ready to be searched by the queries of many exposures."""

    def __init__(
        self,
        references: np.ndarray,
        bad: np.ndarray,
        *,
        group: np.ndarray | None = None,
        indices: Mapping[bool, approximate.Index] | None = None,
        device: str = "cpu",
    ) -> None:
        """Sort them by class and group.

        Args:
            references: float32 (reference, feature).
            bad: bool (reference,).
            group: int (reference,), exposures, nights or folds: a query never finds references of its own.
            indices: approximate ones of the good (False) and the bad (True) references, for queries of no group.
            device: where distances are computed.
        """
        of_class = [np.flatnonzero(np.asarray(bad, bool) == side) for side in (False, True)]
        sides = [(rows, None if group is None else np.asarray(group)[rows]) for rows in of_class]
        approximate_ones = indices or {}
        self.good, self.bad = (
            _Side.of(references, rows, own, approximate_ones.get(bool(side)), device)
            for side, (rows, own) in enumerate(sides)
        )

    def score(self, queries: np.ndarray, manner: Manner, query_group: np.ndarray | None = None) -> Scores:
        """Score queries by their distances to the nearest good and the nearest bad references.

        Args:
            queries: float32 (query, feature).
            manner: how many neighbours of each class (fewer where there are fewer), and what becomes of them.
            query_group: int (query,), with the references' `group`.

        Returns:
            Scores with rows in the order of the references as given.
        """
        good, bad = (side.nearest(queries, manner.k, query_group) for side in (self.good, self.bad))
        return Scores(
            _mean(good.distance),
            _mean(bad.distance),
            good.index,
            bad.index,
            good.distance,
            bad.distance,
            manner.form,
        )


@dataclass(frozen=True, eq=False)
class _Side:
    """References of one class.

    Attributes:
        rows: int64 (reference,), their rows among those given, in the order of their groups.
        group: int (reference,), ascending.
    """

    rows: np.ndarray
    group: np.ndarray | None
    searcher: knn.Searcher
    index: approximate.Index | None

    @classmethod
    def of(
        cls,
        references: np.ndarray,
        rows: np.ndarray,
        group: np.ndarray | None,
        index: approximate.Index | None,
        device: str,
    ) -> _Side:
        if group is not None and np.any(group[1:] < group[:-1]):
            order = np.argsort(group, kind="stable")
            rows, group = rows[order], group[order]
        return cls(rows, group, knn.Searcher(_take(references, rows), device), index)

    def nearest(self, queries: np.ndarray, k: int, query_group: np.ndarray | None) -> knn.Neighbours:
        exclude = None
        if query_group is not None and self.group is not None:
            exclude = np.stack([np.searchsorted(self.group, query_group, side) for side in ("left", "right")], axis=1)
        if self.index is None:
            found = self.searcher.nearest(queries, k, exclude=exclude)
        else:
            found = self.index.nearest_but(queries, self.searcher, k, exclude)
        return knn.Neighbours(found.distance, np.where(found.index < 0, -1, _lookup(self.rows, found.index)))


def _lookup(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    return rows[np.maximum(index, 0)] if len(rows) else index


def _take(references: np.ndarray, rows: np.ndarray) -> Rows:
    """Rows of an array, without a copy: it may be a large mapped file that the ranks of a node share."""
    plain = np.asarray(references)
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and np.all(np.diff(rows) == 1):
        return plain[rows[0] : rows[-1] + 1]
    return SomeRows(plain, rows)


def _mean(distance: np.ndarray) -> np.ndarray:
    """Mean of the finite distances of each row; NaN where there is none."""
    finite = np.isfinite(distance)
    count = finite.sum(1)
    total = np.where(finite, distance, 0.0).sum(1)
    mean: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def nearest_of_both(scores: Scores, count: int) -> np.ndarray:
    """Rows of the nearest references of either class, nearest first, -1 for none: int64 (query, count)."""
    distance = np.concatenate([scores.good_distance, scores.bad_distance], axis=1)
    rows = np.concatenate([scores.nearest_good, scores.nearest_bad], axis=1)
    order = np.lexsort((rows, distance), axis=1)[:, :count]
    return np.take_along_axis(rows, order, axis=1)


def reason_shares(scores: Scores, reasons: np.ndarray, num_reasons: int) -> np.ndarray:
    """Share of each reason among the nearest bad references, weighted by inverse squared distance.

    Args:
        reasons: int64 (reference,), bits.

    Returns:
        float64 (query, reason); rows without bad neighbours are 0. A neighbour with two reasons counts for both.
    """
    if not len(reasons):
        return np.zeros((len(scores.nearest_bad), num_reasons))
    weight = np.where(np.isfinite(scores.bad_distance), 1.0 / (np.square(scores.bad_distance) + TINY), 0.0)
    total = weight.sum(axis=1, keepdims=True)
    weight = weight / np.where(total > 0, total, 1.0)
    bits = reasons[np.maximum(scores.nearest_bad, 0)]
    shares = [(weight * (bits >> position & 1)).sum(axis=1) for position in range(num_reasons)]
    return np.stack(shares, axis=1)


def vote(neighbours: knn.Neighbours, bad: np.ndarray) -> np.ndarray:
    """Share of bad references among the neighbours, the published score: float64 (query,); NaN without neighbours."""
    there = neighbours.index >= 0
    votes = there & np.asarray(bad, bool)[np.maximum(neighbours.index, 0)]
    with np.errstate(invalid="ignore"):
        share: np.ndarray = votes.sum(1) / there.sum(1)
    return share
