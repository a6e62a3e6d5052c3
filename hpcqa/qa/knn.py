"""Exact nearest neighbours by blocked matrix products, Euclidean or cosine, on CPU or GPU, the same for any batching.

The products only find candidates. Their distances are then computed again in float64 from the differences, ordered by
(distance, row of the reference set), and a row whose candidates might lack a true neighbour is searched again by the
next, more careful stage. So results are exact, ties go to the smaller row (keep references sorted by key), and they do
not depend on how queries are grouped into blocks or ranks.

There are up to three stages. Wide features are first compared by a few leading components and the length of what these
leave over, which never overestimates a distance. Then all features are multiplied, in bfloat16 where the processor has
it and in float32 otherwise; what bfloat16 leaves open in float32. The last resort are plain differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from hpcqa.qa import select

METRICS = ("euclidean", "cosine")
QUERY_ROWS = 1024
# A block of products stays in the cache of a core or two.
REFERENCE_ROWS = 1 << 12
SPARE = 8
EPS = float(np.finfo(np.float32).eps)
# Bound of the relative rounding error of a float32 product sum, with room for blocked accumulation.
ROUNDING = 16 * EPS
# Half the spacing of bfloat16 numbers, relative.
BF16_ROUNDING = 2.0**-8
BF16_CANDIDATES = 96
# Leading components of a first look, when it pays, and what it may cost: queries that it leaves open.
LEADING, LEADING_CANDIDATES = 63, 128
LEADING_WIDTH, LEADING_ROWS, FEW_QUERIES = 256, 1 << 14, 1024
LEADING_SHARE = 0.9  # of the variance, at least
MOST_OPEN = 0.3
FIT_ROWS = 4096
# Centred references up to this size are kept, larger ones centred again for every block of queries.
KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of each query, nearest first.

    Attributes:
        distance: float64 (query, k); inf where there are fewer than k references.
        index: int64 (query, k), rows of the reference set; -1 where there is none.
    """

    distance: np.ndarray
    index: np.ndarray


class Rows(Protocol):
    """References: an array, or what gives its rows when asked for them."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class _UnitRows:
    """Rows brought to unit length as they are read: a mapped file stays where it is."""

    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return of_unit_length(self.rows[rows])


def of_unit_length(rows: np.ndarray) -> np.ndarray:
    """Rows over their lengths, each by itself; rows of zeros as they are: float32 (row, feature)."""
    exact = np.asarray(rows, np.float64)
    length = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(exact, length, where=length > 0, out=np.zeros_like(exact)), np.float32)


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    device: str = "cpu",
    metric: str = "euclidean",
    precision: str = "auto",
    leading: bool = True,
) -> Neighbours:
    """The k nearest references of each query.

    Args:
        queries: float32 (query, feature), finite.
        references: float32 (reference, feature), finite.
        k: neighbours wanted, at least 1.
        exclude: int (query, 2), the range [start, stop) of reference rows that a query may not find.
        device: where the products run.
        metric: euclidean, or cosine: Euclidean between rows of unit length, whose square is twice one less the cosine.
            A row of zeros stays one: 1 from every other row, 0 from another of zeros.
        precision: fp32, bf16, or auto: bf16 where the processor multiplies it. The result is the same.
        leading: look at leading components first where features are many. The result is the same.

    Returns:
        Neighbours; exact, ties by reference row.

    Raises:
        ValueError: no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is none of {', '.join(METRICS)}.")
    if metric == "cosine":
        return _nearest(of_unit_length(queries), _UnitRows(references), k, exclude, device, precision, leading=leading)
    return _nearest(queries, references, k, exclude, device, precision, leading=leading)


def _nearest(
    queries: np.ndarray,
    references: Rows,
    k: int,
    exclude: np.ndarray | None,
    device: str,
    precision: str,
    *,
    leading: bool,
) -> Neighbours:
    count, rows = len(queries), len(references)
    found = Neighbours(np.full((count, k), np.inf), np.full((count, k), -1, np.int64))
    if not count or not rows:
        return found
    ranges = np.zeros((count, 2), np.int64) if exclude is None else np.asarray(exclude, np.int64)
    stages = _stages(references, count, device, precision, leading=leading)
    for start in range(0, count, QUERY_ROWS):
        stop = min(start + QUERY_ROWS, count)
        block = np.ascontiguousarray(queries[start:stop], np.float32)
        distance, index = _neighbours(block, references, k, ranges[start:stop], stages)
        found.distance[start:stop], found.index[start:stop] = np.sqrt(distance), index
    return found


def _neighbours(
    block: np.ndarray, references: Rows, k: int, ranges: np.ndarray, stages: list[_Stage]
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and rows of the k nearest of some queries: float64 and int64 (query, k)."""
    distance = np.full((len(block), k), np.inf)
    index = np.full((len(block), k), -1, np.int64)
    left = np.arange(len(block))
    for stage in list(stages):
        if not len(left):
            break
        some, which, unsure = stage.search(block[left], references, k, ranges[left])
        distance[left], index[left] = some, which
        if stage is not stages[-1] and unsure.mean() > MOST_OPEN:
            stages.remove(stage)  # these features do not suit it
        left = left[unsure]
    for row in left:
        distance[row], index[row] = _search(block[row], references, k, ranges[row])
    return distance, index


# Stages -------------------------------------------------------------------------------------------------------------


def _stages(references: Rows, count: int, device: str, precision: str, *, leading: bool) -> list[_Stage]:
    full = _Products.of(references, device)
    stages = [_Stage(full, SPARE)]
    if precision == "bf16" or (precision == "auto" and count >= FEW_QUERIES and multiplies_bf16(device)):
        stages.insert(0, _Stage(full.in_bf16(), BF16_CANDIDATES))
    rows, width = references.shape
    if leading and width >= LEADING_WIDTH and rows >= LEADING_ROWS and count >= FEW_QUERIES:
        found = _Leading.fit(references, full.centre)
        if found is not None:
            stages.insert(0, _leading_stage(found, references, full, device))
    return stages


def multiplies_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    # torch names no public question for it: oneDNN's own answer is whether the processor has AVX-512 BF16 or AMX.
    question = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(question is not None and question() and "AVX512" in torch.backends.cpu.get_cpu_capability())


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
        """From some of the references; None where a few components hold too little of the variance."""
        sample = (_sample(references) - centre).astype(np.float64)
        values, vectors = np.linalg.eigh(sample.T @ sample)
        if values[-LEADING:].sum() < LEADING_SHARE * values.sum():
            return None
        return cls(centre, np.ascontiguousarray(vectors[:, -LEADING:], np.float32))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        centred = rows - self.centre
        leading = centred @ self.components
        rest = np.linalg.norm(centred - leading @ self.components.T, axis=1)
        return np.concatenate([leading, rest[:, None]], axis=1)


def _leading_stage(leading: _Leading, references: Rows, full: _Products, device: str) -> _Stage:
    parts = [leading.apply(np.asarray(part, np.float32)) for _, part in _blocks(references)]
    products = _Products.of(np.concatenate(parts), device)
    # Its own rounding, and that of the components, whose errors grow with the whole rows.
    return _Stage(products, LEADING_CANDIDATES, leading, 4 * ROUNDING * float(full.norms.max()))


@dataclass(frozen=True, eq=False)
class _Stage:
    """One way to find candidates.

    Attributes:
        products: distances by products.
        spare: candidates beyond k.
        leading: how queries become what `products` compares; None: they are it.
        slack: error of squared distances beyond that of the products.
    """

    products: _Products
    spare: int
    leading: _Leading | None = None
    slack: float = 0.0

    def search(
        self, block: np.ndarray, references: Rows, k: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distances and rows of the k nearest candidates, and whether others may be nearer: bool (query,)."""
        compared = block if self.leading is None else self.leading.apply(block)
        places, approximate, limit = self.products.candidates(compared, k + self.spare, ranges)
        error = self.products.error(compared) + self.slack
        if self.leading is not None:
            error = error + 4 * ROUNDING * np.square(block.astype(np.float64) - self.leading.centre).sum(1)
        distance, index = rerank(block, references, places, approximate - error[:, None], k)
        return distance, index, _unsure(distance, limit, error)


@dataclass(frozen=True)
class _Products:
    """References with their centre and their squared distances from it. The references stay where they are: they may be
    a mapped file that the ranks of a node share.
    """

    references: Rows
    device: str
    centre: np.ndarray
    norms: np.ndarray
    dtype: torch.dtype = torch.float32
    kept: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, references: Rows, device: str) -> _Products:
        # Centring keeps the norms, and with them the rounding of the products, as small as the spread allows.
        centre = np.asarray(np.mean(_sample(references), axis=0, dtype=np.float64), np.float32)
        products = cls(references, device, centre, np.empty(len(references), np.float32))
        for start in range(0, len(references), REFERENCE_ROWS):
            rows = products._centred(start)
            products.norms[start : start + len(rows)] = np.einsum("ij,ij->i", rows, rows)
            if len(references) * rows[0].nbytes <= KEPT_BYTES:
                products.kept[start] = products._as_factor(rows)
        return products

    def in_bf16(self) -> _Products:
        """The same references, multiplied in bfloat16."""
        return _Products(self.references, self.device, self.centre, self.norms, torch.bfloat16)

    def error(self, block: np.ndarray) -> np.ndarray:
        """Bound of the error of a squared distance found by products: float64 (query,)."""
        own = np.square(block.astype(np.float64) - self.centre).sum(1)
        largest = float(self.norms.max())
        growth = max(1.0, float(np.sqrt(block.shape[1])) / 8)
        error = ROUNDING * growth * (own + largest)
        if self.dtype == torch.bfloat16:
            # Both factors and the product are rounded: three times half a spacing of |q| |r|, twice in the square.
            error = error + 6.1 * BF16_ROUNDING * np.sqrt(own * largest)
        return np.asarray(error)

    def candidates(
        self, block: np.ndarray, wanted: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the `wanted` smallest approximate squared distances, these, and beyond what others lie.

        Returns:
            int64 and float64 (query, wanted or fewer), nearest first, -1 and inf for none; float64 (query,), inf where
            no reference was left out.
        """
        queries = block - self.centre
        own = np.square(queries, dtype=np.float64).sum(1)
        factors = torch.from_numpy(queries).to(self.device, self.dtype)
        search = self._on_cpu if self.device == "cpu" else self._on_device
        values, places = search(factors, wanted, ranges)
        approximate = values.astype(np.float64) + own[:, None]
        left_out = len(self.references) > wanted
        limit = approximate[:, -1] if left_out else np.full(len(block), np.inf)
        return np.where(np.isinf(values), -1, places), approximate, limit

    def _on_cpu(self, factors: torch.Tensor, wanted: int, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and rows of the smallest, ascending: float32 and int64 (query, wanted)."""
        values = np.full((len(factors), wanted), np.inf, np.float32)
        places = np.full((len(factors), wanted), -1, np.int64)
        room = np.empty((len(factors), min(REFERENCE_ROWS, len(self.references))), np.float32)
        for start in range(0, len(self.references), REFERENCE_ROWS):
            rows = self._part(start)
            products = room[:, : len(rows)]
            if self.dtype == torch.float32:
                # numpy's BLAS was measured up to 1.4 times faster than torch's where one side is narrow.
                np.matmul(factors.numpy(), rows.numpy().T, out=products)
            else:
                products[:] = torch.mm(factors, rows.T).float().numpy()
            norms = self.norms[start : start + len(rows)]
            select.smallest(products, norms, start, ranges, values, places, torch.get_num_threads())
        return values, places

    def _on_device(self, factors: torch.Tensor, wanted: int, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = torch.empty((len(factors), 0), device=self.device)
        places = torch.empty((len(factors), 0), dtype=torch.int64, device=self.device)
        for start in range(0, len(self.references), REFERENCE_ROWS):
            rows = self._part(start)
            norms = torch.from_numpy(self.norms[start : start + len(rows)]).to(self.device)
            squared = torch.mm(factors, rows.T).float().add_(norms)
            _blank(squared, ranges, start)
            some, where = squared.topk(min(wanted, len(rows)), dim=1, largest=False, sorted=False)
            values, places = torch.cat([values, some], 1), torch.cat([places, where + start], 1)
            if values.shape[1] > wanted:
                values, keep = values.topk(wanted, dim=1, largest=False, sorted=False)
                places = places.gather(1, keep)
        values, order = values.sort(dim=1)
        return values.cpu().numpy(), places.gather(1, order).cpu().numpy()

    def _centred(self, start: int) -> np.ndarray:
        rows: np.ndarray = np.asarray(self.references[start : start + REFERENCE_ROWS], np.float32) - self.centre
        return rows

    def _as_factor(self, rows: np.ndarray) -> torch.Tensor:
        """Centred references times -2, which is exact, as products need them."""
        return torch.from_numpy(np.multiply(rows, np.float32(-2.0), out=rows)).to(self.device, self.dtype)

    def _part(self, start: int) -> torch.Tensor:
        """References from a row on, as products need them."""
        if start in self.kept:
            return self.kept[start]
        rows = self._as_factor(self._centred(start))
        if self.device != "cpu" or len(self.references) * rows[0].nbytes <= KEPT_BYTES:
            self.kept[start] = rows
        return rows


def _sample(references: Rows) -> np.ndarray:
    """Some rows from all over: float32 (row, feature)."""
    step = max(1, len(references) // FIT_ROWS)
    return np.asarray(references[::step][:FIT_ROWS], np.float32)


def _blocks(references: Rows) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(references), REFERENCE_ROWS):
        yield start, np.ascontiguousarray(references[start : start + REFERENCE_ROWS], np.float32)


def _blank(squared: torch.Tensor, ranges: np.ndarray, start: int) -> None:
    """Set the excluded reference rows of every query to inf; equal ranges of consecutive queries go together."""
    width = squared.shape[1]
    changes = np.flatnonzero(np.any(ranges[1:] != ranges[:-1], axis=1)) + 1
    for first, last in zip(np.r_[0, changes], np.r_[changes, len(ranges)], strict=True):
        low, high = np.clip(ranges[first] - start, 0, width)
        if high > low:
            squared[first:last, low:high] = torch.inf


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
    step = max(1, (1 << 21) // max(1, block.shape[1]))
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


def _unsure(distance: np.ndarray, limit: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Queries for which a reference that is no candidate may be as near as the last neighbour: bool (query,)."""
    worst: np.ndarray = distance[:, -1]
    return np.asarray(np.isfinite(limit) & ~(worst < limit - 2 * error))


def _search(query: np.ndarray, references: Rows, k: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of one query from differences alone; slow and exact."""
    squared = np.concatenate([_exact(query, part) for _, part in _blocks(references)])
    squared[excluded[0] : excluded[1]] = np.inf
    distance, index = _smallest(squared[None], np.arange(len(references))[None], k)
    return distance[0], index[0]


def _exact(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Squared distance of each row from one query, or from a query each: float64 (row,)."""
    difference = references.astype(np.float64)
    difference -= queries
    return np.asarray(np.square(difference, out=difference).sum(1))
