"""The smallest few of many distances on a CPU: one pass over what a matrix product just left in the cache."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

CHUNK = 64


@numba.njit(nogil=True, fastmath={"nsz", "nnan"})  # type: ignore[untyped-decorator]
def _smallest(
    products: np.ndarray, norms: np.ndarray, first: int, ranges: np.ndarray, values: np.ndarray, places: np.ndarray
) -> None:
    wanted, width = values.shape[1], products.shape[1]
    for query in range(products.shape[0]):
        row, best, where = products[query], values[query], places[query]
        low, high = ranges[query, 0] - first, ranges[query, 1] - first
        worst = best[wanted - 1]
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            least = np.float32(np.inf)
            for column in range(start, stop):
                row[column] += norms[column]
                least = min(least, row[column])
            if not least < worst:
                continue
            for column in range(start, stop):
                value = row[column]
                if value < worst and not (low <= column < high):
                    place = wanted - 1
                    while place > 0 and best[place - 1] > value:
                        best[place], where[place] = best[place - 1], where[place - 1]
                        place -= 1
                    best[place], where[place] = value, first + column
                    worst = best[wanted - 1]


def smallest(
    products: np.ndarray,
    norms: np.ndarray,
    first: int,
    ranges: np.ndarray,
    values: np.ndarray,
    places: np.ndarray,
    threads: int,
) -> None:
    """Take what is smaller into the sorted lists of the smallest.

    Args:
        products: float32 (query, column), changed: `norms` is added.
        norms: float32 (column,).
        first: number of the first column.
        ranges: int64 (query, 2), numbers of columns [start, stop) that a query leaves out.
        values: float32 (query, wanted), ascending; places: int64 (query, wanted), their numbers. Both are updated.
        threads: that share the queries.
    """
    if threads <= 1 or len(products) < 2 * threads:
        _smallest(products, norms, first, ranges, values, places)
        return
    edges = np.linspace(0, len(products), threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        for done in [
            pool.submit(_smallest, products[part], norms, first, ranges[part], values[part], places[part])
            for part in parts
        ]:
            done.result()
