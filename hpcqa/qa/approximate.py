"""An approximate index (faiss, optional): neighbours in a few cells near the query, their distances exact.

For reference sets so large that exact search takes too long. What it misses is measured on a sample and stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.errors import EnvironmentProblem
from hpcqa.qa import knn

# Fewer references are searched faster one by one than cells are made.
FEWEST = 20000
ROWS_A_CELL = 256
CELLS_LOOKED_AT = 1 / 16
SPARE = 8
SAMPLE = 256


@dataclass(frozen=True)
class Index:
    """References in cells.

    Attributes:
        references: float32 (reference, feature).
        cells: faiss's index.
    """

    references: np.ndarray
    cells: Any

    @classmethod
    def of(cls, references: np.ndarray) -> Index:
        """Sort references into cells; the same cells for the same references.

        Raises:
            EnvironmentProblem: faiss is not installed.
        """
        try:
            import faiss
        except ImportError:
            raise EnvironmentProblem(
                "classify.index=faiss needs faiss, which is not installed; install hpcqa[ann] or use "
                "classify.index=exact."
            ) from None
        rows = np.ascontiguousarray(references, np.float32)
        count = max(1, len(rows) // ROWS_A_CELL)
        cells: Any = faiss.index_factory(rows.shape[1], f"IVF{count},Flat")
        cells.cp.seed = 1
        cells.cp.min_points_per_centroid = 1
        cells.train(rows[: 64 * count] if len(rows) > 64 * count else rows)
        cells.add(rows)
        cells.nprobe = max(1, round(count * CELLS_LOOKED_AT))
        return cls(references, cells)

    def nearest(self, queries: np.ndarray, k: int) -> knn.Neighbours:
        """The k nearest references among the cells looked at; ties by reference row."""
        wanted = min(k + SPARE, len(self.references))
        rows = np.ascontiguousarray(queries, np.float32)
        _, places = self.cells.search(rows, wanted)
        distance, index = knn.rerank(rows, self.references, places, np.zeros(places.shape), k)
        return knn.Neighbours(np.sqrt(distance), index)

    def nearest_but(
        self, queries: np.ndarray, exact: knn.Searcher, k: int, exclude: np.ndarray | None
    ) -> knn.Neighbours:
        """`nearest`, but exact for queries that may not find some of the references (see `knn.Searcher`).

        Args:
            exact: of the index's own references, in the order of `exclude`.
        """
        if exclude is None:
            return self.nearest(queries, k)
        free = exclude[:, 0] == exclude[:, 1]
        near, others = self.nearest(queries[free], k), exact.nearest(queries[~free], k, exclude=exclude[~free])
        distance = np.empty((len(queries), k))
        index = np.empty((len(queries), k), np.int64)
        distance[free], index[free] = near.distance, near.index
        distance[~free], index[~free] = others.distance, others.index
        return knn.Neighbours(distance, index)


def recall(index: Index, queries: np.ndarray, k: int) -> float:
    """Share of the true k nearest references that the index finds, on at most SAMPLE of the queries; NaN without."""
    step = max(1, len(queries) // SAMPLE)
    some = queries[::step][:SAMPLE]
    if not len(some):
        return float("nan")
    found, exact = index.nearest(some, k), knn.nearest(some, index.references, k)
    hits = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found.index, exact.index, strict=True)]
    return float(np.sum(hits) / exact.index.size)
