"""Exact nearest neighbours by blocked matrix products, Euclidean, on CPU or GPU, the same for any batching.

The products only find candidates. Their distances are then computed again in float64 from the differences, ordered by
(distance, row of the reference set), and a row whose candidates might lack a true neighbour because of the products'
rounding is searched again without them. So results are exact, ties go to the smaller row (keep references sorted by
key), and they do not depend on how queries are grouped into blocks or ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

QUERY_ROWS = 1024
REFERENCE_ROWS = 1 << 17
SPARE = 8
# Bound of the relative rounding error of a float32 product sum, with room for blocked accumulation.
ROUNDING = 16 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of each query, nearest first.

    Attributes:
        distance: float64 (query, k); inf where there are fewer than k references.
        index: int64 (query, k), rows of the reference set; -1 where there is none.
    """

    distance: np.ndarray
    index: np.ndarray


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    device: str = "cpu",
) -> Neighbours:
    """The k nearest references of each query.

    Args:
        queries: float32 (query, feature), finite.
        references: float32 (reference, feature), finite.
        k: neighbours wanted, at least 1.
        exclude: int (query, 2), the range [start, stop) of reference rows that a query may not find.
        device: where the products run.

    Returns:
        Neighbours; exact, ties by reference row.
    """
    count, rows = len(queries), len(references)
    found = Neighbours(np.full((count, k), np.inf), np.full((count, k), -1, np.int64))
    if not count or not rows:
        return found
    ranges = np.zeros((count, 2), np.int64) if exclude is None else np.asarray(exclude, np.int64)
    prepared = _Prepared.of(references, device)
    for start in range(0, count, QUERY_ROWS):
        stop = min(start + QUERY_ROWS, count)
        block = np.ascontiguousarray(queries[start:stop], np.float32)
        candidates, limit = prepared.candidates(block, min(k + SPARE, rows), ranges[start:stop])
        distance, index = _rerank(block, references, candidates, k)
        unsure = np.flatnonzero(_unsure(distance, limit, prepared.error(block)))
        for row in unsure:
            distance[row], index[row] = _search(block[row], references, k, ranges[start + row])
        found.distance[start:stop], found.index[start:stop] = np.sqrt(distance), index
    return found


@dataclass(frozen=True)
class _Prepared:
    """References with their centre and their squared distances from it. The references stay where they are: they may be
    a mapped file that the ranks of a node share.
    """

    references: np.ndarray
    device: str
    centre: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, references: np.ndarray, device: str) -> _Prepared:
        # Centring keeps the norms, and with them the rounding of the products, as small as the spread allows.
        centre = np.asarray(np.mean(references, axis=0, dtype=np.float64), np.float32)
        blocks = [np.square(block - centre).sum(1) for _, block in _blocks(references)]
        return cls(references, device, centre, np.concatenate(blocks))

    def error(self, block: np.ndarray) -> np.ndarray:
        """Bound of the error of a squared distance found by products: float64 (query,)."""
        own = np.square(block.astype(np.float64) - self.centre).sum(1)
        growth = max(1.0, float(np.sqrt(block.shape[1])) / 8)
        return np.asarray(ROUNDING * growth * (own + float(self.norms.max())))

    def candidates(self, block: np.ndarray, wanted: int, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the `wanted` smallest approximate distances, and the squared distance beyond which others lie.

        Returns:
            int64 (query, wanted) with -1 for none, and float64 (query,), inf where no reference was left out.
        """
        queries = torch.from_numpy(block - self.centre).to(self.device)
        values = torch.empty((len(block), 0), device=self.device)
        places = torch.empty((len(block), 0), dtype=torch.int64, device=self.device)
        for start, part in _blocks(self.references):
            rows = torch.from_numpy(part - self.centre).to(self.device)
            norms = torch.from_numpy(self.norms[start : start + len(part)]).to(self.device)
            squared = torch.addmm(norms, queries, rows.T, alpha=-2.0)
            _blank(squared, ranges, start)
            some, where = squared.topk(min(wanted, len(part)), dim=1, largest=False, sorted=False)
            values, places = torch.cat([values, some], 1), torch.cat([places, where + start], 1)
            if values.shape[1] > wanted:
                values, keep = values.topk(wanted, dim=1, largest=False, sorted=False)
                places = places.gather(1, keep)
        places = torch.where(torch.isinf(values), -1, places)
        own = torch.square(queries).sum(1)
        limit = (values.max(1).values + own).cpu().numpy().astype(np.float64)
        left_out = len(self.references) > wanted
        return places.cpu().numpy(), limit if left_out else np.full(len(block), np.inf)


def _blocks(references: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
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


def _rerank(block: np.ndarray, references: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact squared distances of the candidates, the k smallest by (distance, row): float64 and int64 (query, k)."""
    gathered = references[np.maximum(candidates, 0)].astype(np.float64)
    squared = np.square(gathered - block[:, None, :].astype(np.float64)).sum(2)
    squared[candidates < 0] = np.inf
    return _smallest(squared, candidates, k)


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


def _search(query: np.ndarray, references: np.ndarray, k: int, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of one query from differences alone; slow and exact."""
    squared = np.concatenate(
        [
            np.square(references[start : start + 65536].astype(np.float64) - query.astype(np.float64)).sum(1)
            for start in range(0, len(references), 65536)
        ]
    )
    squared[excluded[0] : excluded[1]] = np.inf
    distance, index = _smallest(squared[None], np.arange(len(references))[None], k)
    return distance[0], index[0]
