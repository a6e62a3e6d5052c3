"""Exact nearest neighbours by blocked matrix products, on CPU or GPU, the same for any batching.

Distances are Euclidean. Between rows of unit length (`of_unit_length`) their square is twice one less the cosine, so
that neighbours by cosine are those of rows that were brought to it, as fit.metric=cosine stores them.

The products only find candidates: references of which a lower bound of the distance is smallest (products.py). Their
distances are then computed again in float64 from the differences and ordered by (distance, row of the reference set).
A query whose last neighbour is not nearer than all that the other references may be is searched again by the next, more
careful stage. So results are exact, ties go to the smaller row (keep references sorted by key), and they do not depend
on how queries are grouped into blocks, threads or ranks.

There are up to four stages. Wide features are first compared by a few leading components and the length of what these
leave over, which never overestimates a distance; or else all features are multiplied in bfloat16 where the processor
has it. A few queries tell whether such a stage pays and how many candidates it needs. What is left is multiplied in
float32, then again with many candidates; the last resort are plain differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpcqa.qa import products
from hpcqa.qa.products import UNIT, Products, Rows

# Candidates beyond the neighbours wanted: of a stage that is not tried out before, of one with few features, whose
# products are hardly rounded, and at most.
SPARE, FEW_SPARE, MOST_SPARE = 8, 2, 118
# From here on a stage that is tried out before may pay.
FEW_QUERIES, TRIED = 1024, 48
MOST_OPEN = 0.1
# Multiplying fewer features takes no longer than what else there is to do.
BF16_WIDTH = 48
# Leading components, and when to look for them.
LEADING, LEADING_WIDTH, LEADING_ROWS = 63, 256, 1 << 14
LEADING_SHARE = 0.9  # of the variance, at least
FIT_ROWS, ITERATIONS = 2048, 4


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of each query, nearest first.

    Attributes:
        distance: float64 (query, k); inf where there are fewer than k references.
        index: int64 (query, k), rows of the reference set; -1 where there is none.
    """

    distance: np.ndarray
    index: np.ndarray


def of_unit_length(rows: np.ndarray) -> np.ndarray:
    """Rows over their lengths, each by itself; rows of zeros as they are: float32 (row, feature).

    A row of zeros is 1 from every other row, and 0 from another of zeros.
    """
    exact = np.asarray(rows, np.float64)
    length = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(exact, length, where=length > 0, out=np.zeros_like(exact)), np.float32)


@dataclass(eq=False)
class Searcher:
    """References made ready once, to be searched as often as there are queries.

    On a CPU as many threads as torch is set to share the queries.

    Attributes:
        references: float32 (reference, feature), finite; an array, or some rows of a mapped file.
        device: where the products run.
        precision: fp32, bf16, or auto: bf16 where that is faster. The result is the same.
        leading: look at leading components first where features are many. The result is the same.
    """

    references: Rows
    device: str = "cpu"
    precision: str = "auto"
    leading: bool = True

    def __post_init__(self) -> None:
        self._stages = _Stages(self.references, self.device, self.precision, self.leading)

    def nearest(self, queries: np.ndarray, k: int, *, exclude: np.ndarray | None = None) -> Neighbours:
        """The k nearest references of each query.

        Args:
            queries: float32 (query, feature), finite.
            k: neighbours wanted, at least 1.
            exclude: int (query, 2), the range [start, stop) of reference rows that a query may not find.

        Returns:
            Neighbours; exact, ties by reference row.
        """
        found = Neighbours(np.full((len(queries), k), np.inf), np.full((len(queries), k), -1, np.int64))
        if not len(queries) or not len(self.references):
            return found
        queries = np.ascontiguousarray(queries, np.float32)
        ranges = np.zeros((len(queries), 2), np.int64) if exclude is None else np.asarray(exclude, np.int64)
        with _workers(self.device) as spread:
            search = _Search(queries, self.references, k, ranges, found, spread)
            for stage in self._stages.of(search):
                search.by(stage)
            search.by_differences()
        return Neighbours(np.sqrt(found.distance, out=found.distance), found.index)


def nearest(
    queries: np.ndarray, references: Rows, k: int, *, exclude: np.ndarray | None = None, **settings: Any
) -> Neighbours:
    """The k nearest references of each query, of references that are searched once.

    Args:
        settings: see `Searcher`.
    """
    return Searcher(references, **settings).nearest(queries, k, exclude=exclude)


@contextmanager
def _workers(device: str) -> Iterator[products.Spread]:
    """How to do the same to several blocks.

    Each thread multiplies by itself: products whose threads wait for each other while other threads select are several
    times slower (spinning, seen with OpenMP on two cores).
    """
    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1:
        yield products.one_by_one
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda work, parts: list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


@dataclass(eq=False)
class _Search:
    """Queries on their way through the stages.

    Attributes:
        found: squared distances and rows so far.
        left: int64 (query,), those that no stage has settled yet.
    """

    queries: np.ndarray
    references: Rows
    k: int
    ranges: np.ndarray
    found: Neighbours
    spread: products.Spread

    def __post_init__(self) -> None:
        self.left = np.arange(len(self.queries))

    def by(self, stage: _Stage) -> None:
        """Search what is left, and keep as left what the stage leaves open."""

        def settle(some: np.ndarray) -> np.ndarray:
            distance, index, needed = stage.search(self.queries[some], self.references, self.k, self.ranges[some])
            self.found.distance[some], self.found.index[some] = distance, index
            return some[needed < 0]

        self.left = self._in_blocks(settle, products.QUERY_ROWS)

    def by_differences(self) -> None:
        def settle(some: np.ndarray) -> np.ndarray:
            for row in some:
                result = _search(self.queries[row], self.references, self.k, self.ranges[row])
                self.found.distance[row], self.found.index[row] = result
            return some[:0]

        self.left = self._in_blocks(settle, 1)

    def try_out(self, stage: _Stage) -> _Stage | None:
        """A stage with the candidates that it needs, from a few queries; None if it leaves too many open."""
        some = np.linspace(0, len(self.queries) - 1, TRIED).astype(int)
        _, _, needed = stage.search(self.queries[some], self.references, self.k, self.ranges[some])
        if np.mean(needed < 0) > MOST_OPEN:
            return None
        most = int(np.quantile(needed, 0.95)) - self.k
        return replace(stage, spare=int(np.clip(2 * most, SPARE, stage.spare)))

    def _in_blocks(self, settle: Callable[[np.ndarray], np.ndarray], rows: int) -> np.ndarray:
        if not len(self.left):
            return self.left
        parts = np.split(self.left, np.arange(rows, len(self.left), rows))
        return np.concatenate(self.spread(settle, parts))


# Stages -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Stages:
    """The ways to find candidates among some references, made when first needed.

    Attributes:
        asked: queries so far.
    """

    references: Rows
    device: str
    precision: str
    leading: bool
    asked: int = 0

    def __post_init__(self) -> None:
        self._made: dict[str, _Stage | None] = {}
        self._tried: dict[int, _Stage | None] = {}
        if len(self.references):
            self._centre = np.asarray(np.mean(_sample(self.references), axis=0, dtype=np.float64), np.float32)

    def of(self, search: _Search) -> Iterator[_Stage]:
        """One after the other, as long as queries are left."""
        self.asked += len(search.queries)
        first = self._first(search)
        if first is not None:
            yield first
            if len(search.left) > MOST_OPEN * len(search.queries):
                # Not what the queries were that it was tried out with.
                del self._tried[search.k]
        if len(search.left):
            full = self._once("full", lambda: self._in_float32(search.spread))
            assert full is not None
            yield full
            yield replace(full, spare=MOST_SPARE)

    def _first(self, search: _Search) -> _Stage | None:
        """What leaves little for the careful stages, if there is such a thing."""
        if search.k not in self._tried:
            if self.asked < FEW_QUERIES and self.precision != "bf16":
                return None
            tried = (search.try_out(stage) for stage in self._quick(search.spread))
            self._tried[search.k] = next((stage for stage in tried if stage is not None), None)
        return self._tried[search.k]

    def _quick(self, spread: products.Spread) -> Iterator[_Stage]:
        count, width = self.references.shape
        if self.leading and self.asked >= FEW_QUERIES and width >= LEADING_WIDTH and count >= LEADING_ROWS:
            stage = self._once("leading", lambda: _leading_stage(self.references, self._centre, self.device, spread))
            if stage is not None:
                yield stage
        fast = self.precision == "auto" and width >= BF16_WIDTH and products.multiplies_bf16(self.device)
        if fast or self.precision == "bf16":
            # To select more candidates than there are features takes longer than bfloat16 saves.
            spare = min(MOST_SPARE, width)
            stage = self._once("rounded", lambda: self._of_all(torch.bfloat16, spare, spread))
            if stage is not None:
                yield stage

    def _in_float32(self, spread: products.Spread) -> _Stage:
        made = self._of_all(torch.float32, SPARE, spread)
        return replace(made, spare=FEW_SPARE) if made.products.is_tiled else made

    def _of_all(self, dtype: torch.dtype, spare: int, spread: products.Spread) -> _Stage:
        return _Stage(Products.of(self.references, self._centre, self.device, dtype, spread), spare)

    def _once(self, name: str, make: Callable[[], _Stage | None]) -> _Stage | None:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


@dataclass(frozen=True)
class _Leading:
    """The leading components of centred rows, and the length of the rest as one more.

    Distances between such rows are never larger than those between the rows themselves: what is left over of two rows
    is at least as far apart as its lengths differ.

    Attributes:
        centre: float32 (feature,); components: float32 (feature, LEADING), orthonormal.
    """

    centre: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, references: Rows, centre: np.ndarray) -> _Leading | None:
        """From some of the references; None where a few components hold too little of the variance.

        Subspace iteration: any orthonormal components serve, and nearly the best ones are found in a few products.
        """
        sample = torch.from_numpy(_sample(references) - centre)
        variance = torch.mm(sample.T, sample).double()
        components = variance[:, torch.linspace(0, len(variance) - 1, LEADING).long()]
        for _ in range(ITERATIONS):
            components, _ = torch.linalg.qr(torch.mm(variance, components))
        held = torch.trace(components.T @ variance @ components)
        if held < LEADING_SHARE * torch.trace(variance):
            return None
        return cls(centre, np.ascontiguousarray(components.numpy(), np.float32))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Leading components and the length of the rest: float32 (row, LEADING + 1)."""
        centred = torch.from_numpy(rows - self.centre)
        components = torch.from_numpy(self.components)
        made = torch.empty(len(rows), LEADING + 1)
        torch.mm(centred, components, out=made[:, :LEADING])
        rest = torch.addmm(centred, made[:, :LEADING], components.T, alpha=-1.0)
        torch.linalg.vector_norm(rest, dim=1, out=made[:, LEADING])
        return made.numpy()

    @property
    def error(self) -> float:
        """How far a row may be from what exact sums would make it, as a share of its length.

        A sum of n products errs by at most n units of the lengths of its factors, in any order; each component is one
        over the features, each feature of the rest one over the components, their length one over the features again.
        """
        features, components = self.components.shape
        return float(UNIT * np.sqrt(components + 1) * (3 * features + 2 * components))


def _leading_stage(references: Rows, centre: np.ndarray, device: str, spread: products.Spread) -> _Stage | None:
    """None where a few components hold too little of the variance."""
    leading = _Leading.fit(references, centre)
    if leading is None:
        return None
    short = np.empty((len(references), LEADING + 1), np.float32)

    def shorten(start: int) -> None:
        rows = products.block(references, start)
        short[start : start + len(rows)] = leading.apply(rows)

    spread(shorten, products.starts(references))
    of_short = np.asarray(np.mean(short, axis=0, dtype=np.float64), np.float32)
    made = Products.of(short, of_short, device, torch.float32, spread)
    longest = float(np.sqrt(np.square(short).sum(1).max()))
    return _Stage(made, MOST_SPARE, leading, longest)


@dataclass(frozen=True)
class _Stage:
    """One way to find candidates.

    Attributes:
        products: bounds of distances by products.
        spare: candidates beyond k.
        leading: how queries become what `products` compares; None: they are it.
        longest: length of the longest reference from the centre, with `leading`.
    """

    products: Products
    spare: int
    leading: _Leading | None = None
    longest: float = 0.0

    def search(
        self, block: np.ndarray, references: Rows, k: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distances and rows of the k nearest candidates, and how many candidates it took to be sure of them:
        int64 (query,), -1 where others may be as near.
        """
        compared = block if self.leading is None else self.leading.apply(block)
        found = self.products.candidates(compared, k + self.spare, ranges)
        least, limit = found.least, found.limit
        if self.leading is not None:
            slack = 1.01 * self.leading.error * (np.linalg.norm(compared, axis=1) + self.longest)
            least, limit = _nearer(least, slack[:, None]), _nearer(limit, slack)
        distance, index = rerank(block, references, found.rows, least, k)
        worst = distance[:, -1]
        needed = (least <= worst[:, None]).sum(1)
        return distance, index, np.where(np.isfinite(limit) & ~(worst < limit), -1, needed)


def _nearer(squared: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """The squares of distances that are less by some slack."""
    return np.asarray(np.square(np.maximum(np.sqrt(np.maximum(squared, 0.0)) - slack, 0.0)))


def _sample(references: Rows) -> np.ndarray:
    """Some rows from all over: float32 (row, feature)."""
    step = max(1, len(references) // FIT_ROWS)
    return np.asarray(references[::step][:FIT_ROWS], np.float32)


# Exact distances ----------------------------------------------------------------------------------------------------


def rerank(
    block: np.ndarray, references: Rows, candidates: np.ndarray, least: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact squared distances of the candidates, the k smallest by (distance, row): float64 and int64 (query, k).

    Args:
        candidates: int64 (query, candidate), -1 for none, by growing `least`.
        least: float64 (query, candidate), what their squared distances are not below.
    """
    squared = np.full(candidates.shape, np.inf)
    first = min(k, candidates.shape[1])
    _fill(squared, block, references, candidates, (np.arange(candidates.shape[1]) < first) & (candidates >= 0))
    worst = squared[:, :first].max(axis=1)
    rest = (least <= worst[:, None]) & (candidates >= 0)
    rest[:, :first] = False
    _fill(squared, block, references, candidates, rest)
    return _smallest(squared, candidates, k)


def _fill(squared: np.ndarray, block: np.ndarray, references: Rows, candidates: np.ndarray, chosen: np.ndarray) -> None:
    """Set the chosen squared distances, from differences in float64."""
    query, place = np.nonzero(chosen)
    step = max(1, (1 << 18) // max(1, block.shape[1]))
    for start in range(0, len(query), step):
        some, where = query[start : start + step], place[start : start + step]
        squared[some, where] = _exact(block[some], references[candidates[some, where]])


def _smallest(squared: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, squared), axis=1)[:, :k]
    distance = np.full((len(squared), k), np.inf)
    index = np.full((len(squared), k), -1, np.int64)
    distance[:, : order.shape[1]] = np.take_along_axis(squared, order, 1)
    index[:, : order.shape[1]] = np.take_along_axis(rows, order, 1)
    index[np.isinf(distance)] = -1
    return distance, index


def _search(query: np.ndarray, references: Rows, k: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of one query from differences alone; slow and exact."""
    starts = products.starts(references)
    squared = np.concatenate([_exact(query, products.block(references, start)) for start in starts])
    squared[excluded[0] : excluded[1]] = np.inf
    distance, index = _smallest(squared[None], np.arange(len(references))[None], k)
    return distance[0], index[0]


def _exact(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Squared distance of each row from one query, or from a query each: float64 (row,)."""
    difference = references.astype(np.float64)
    difference -= queries
    return np.asarray(np.square(difference, out=difference).sum(1))
