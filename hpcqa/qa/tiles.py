"""Few features on a CPU: bounds and the selection of the smallest in one loop over tiles of references.

A matrix product of few features takes longer to write down its result than to multiply, and the selection (select.py)
has to read it again. Here the bounds of a tile for a few queries stay in the first cache: they begin as
`low - slope * length` and the products are added, so their rounding grows with low too, for which it leaves room (see
products.py). The loops over a tile have a fixed length and no branches: compilers turn them into vector instructions.
"""

from __future__ import annotations

import numpy as np

from hpcqa.kernels import fast_kernel
from hpcqa.qa.select import insert

TILE = 128
# Queries and features of one pass over a tile.
TOGETHER, STEP = 4, 4


def tiled(factors: np.ndarray, lows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """References as tiles of TILE, what is left of the last one further away than anything.

    Args:
        factors: float32 (reference, feature).
        lows, lengths: float32 (reference,).

    Returns:
        float32 (tile, line, TILE): a line for each feature, lines of zeros up to a multiple of STEP, then the lows and
        the lengths.
    """
    count, width = factors.shape
    tiles, lines = -(-count // TILE), -(-width // STEP) * STEP
    made = np.zeros((lines + 2, tiles * TILE), np.float32)
    made[:width, :count] = factors.T
    made[lines, :count], made[lines, count:] = lows, np.inf
    made[lines + 1, :count] = lengths
    return np.ascontiguousarray(made.reshape(lines + 2, tiles, TILE).transpose(1, 0, 2))


def padded(factors: np.ndarray) -> np.ndarray:
    """Queries as `smallest` wants them: float32, rows of zeros and features of zeros up to multiples."""
    count, width = factors.shape
    made = np.zeros((-(-count // TOGETHER) * TOGETHER, -(-width // STEP) * STEP), np.float32)
    made[:count, :width] = factors
    return made


@fast_kernel
def smallest(
    queries: np.ndarray,
    tiles: np.ndarray,
    slopes: np.ndarray,
    first: int,
    ranges: np.ndarray,
    values: np.ndarray,
    places: np.ndarray,
) -> None:
    """Take what is smaller into the sorted lists of the smallest `product + low - slope * length`.

    Args:
        queries: float32 (query, feature), `padded`.
        tiles: float32 (tile, line, TILE), see `tiled`.
        slopes: float32 (query,), as many as there are queries without padding.
        first: number of the first reference.
        ranges: int64 (query, 2), numbers of references [start, stop) that a query leaves out.
        values: float32 (query, wanted), ascending; places: int64 (query, wanted), their numbers. Both are updated.
    """
    bounds = np.empty(TOGETHER * TILE, np.float32)
    features, last, wanted = queries.shape[1], slopes.shape[0] - 1, values.shape[1]
    # Unsigned: numba's wraparound of negative indices keeps a loop from becoming vectors.
    low, length = np.uintp(features), np.uintp(features + 1)
    second, third, fourth = np.uintp(TILE), np.uintp(2 * TILE), np.uintp(3 * TILE)
    for tile in range(tiles.shape[0]):
        at = np.uintp(tile)
        # All in one function: to call one for a few queries and a tile takes a tenth of the time.
        for query in range(0, queries.shape[0], TOGETHER):
            slope0, slope1 = slopes[query], slopes[min(query + 1, last)]
            slope2, slope3 = slopes[min(query + 2, last)], slopes[min(query + 3, last)]
            for offset in range(TILE):
                column = np.uintp(offset)
                start, size = tiles[at, low, column], tiles[at, length, column]
                bounds[column] = start - slope0 * size
                bounds[column + second] = start - slope1 * size
                bounds[column + third] = start - slope2 * size
                bounds[column + fourth] = start - slope3 * size
            for feature in range(0, features, STEP):
                a0, a1, a2, a3 = _four(queries, query, feature)
                b0, b1, b2, b3 = _four(queries, query + 1, feature)
                c0, c1, c2, c3 = _four(queries, query + 2, feature)
                d0, d1, d2, d3 = _four(queries, query + 3, feature)
                line = np.uintp(feature)
                for offset in range(TILE):
                    column = np.uintp(offset)
                    r0, r1 = tiles[at, line, column], tiles[at, line + np.uintp(1), column]
                    r2, r3 = tiles[at, line + np.uintp(2), column], tiles[at, line + np.uintp(3), column]
                    bounds[column] += a0 * r0 + a1 * r1 + a2 * r2 + a3 * r3
                    bounds[column + second] += b0 * r0 + b1 * r1 + b2 * r2 + b3 * r3
                    bounds[column + third] += c0 * r0 + c1 * r1 + c2 * r2 + c3 * r3
                    bounds[column + fourth] += d0 * r0 + d1 * r1 + d2 * r2 + d3 * r3
            for place in range(min(TOGETHER, slopes.shape[0] - query)):
                worst, near, begin = values[query + place, wanted - 1], False, np.uintp(place * TILE)
                for offset in range(TILE):
                    near |= bounds[begin + np.uintp(offset)] < worst
                if near:
                    _take(bounds, place, first + tile * TILE, ranges, values, places, query + place)


@fast_kernel
def _four(queries: np.ndarray, query: int, feature: int) -> tuple[float, float, float, float]:
    return (
        queries[query, feature],
        queries[query, feature + 1],
        queries[query, feature + 2],
        queries[query, feature + 3],
    )


@fast_kernel
def _take(
    bounds: np.ndarray,
    place: int,
    first: int,
    ranges: np.ndarray,
    values: np.ndarray,
    places: np.ndarray,
    query: int,
) -> None:
    """Take the bounds of one query that are smaller into its list."""
    best, where = values[query], places[query]
    low, high = ranges[query, 0] - first, ranges[query, 1] - first
    worst = best[-1]
    for column in range(TILE):
        value = bounds[place * TILE + column]
        if value < worst and not (low <= column < high):
            insert(value, first + column, best, where)
            worst = best[-1]
