"""Streaks of satellites and airplanes among the sources of a CCD, so that their pieces are not taken for stars.

The detection breaks a streak into dozens of elongated pieces, often more than there are stars, all of one size. What
tells them from the stars of a trailed exposure: they lie on one line across the CCD, along their own axis. Trailed
stars lie anywhere, or, where a long trail is broken itself, on many lines of one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_ELLIPTICITY = 0.5
FEWEST_PIECES = 5
# Of the elongated sources, the share that a piece sees along its own axis: two streaks of equally many pieces leave
# half to each, trailed stars a twentieth (the angle below, over a right angle).
LEAST_SHARE = 0.3
WITHIN = np.radians(5.0)
MOST_STREAKS = 4
LEAST_SPAN = 0.5  # of the line's length across the CCD
LEAST_WIDTH = 6.0  # px; what the binning of the image that sources are found on smears


@dataclass(frozen=True)
class Streak:
    """A straight line across the CCD.

    Attributes:
        x, y: a point on it, px.
        angle: of the line against the rows, from -pi / 2 to pi / 2.
        width: half of the width of what belongs to it, px.
    """

    x: float
    y: float
    angle: float
    width: float

    def covers(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Which places lie on it: bool, as x and y (px)."""
        return np.asarray(np.abs(_aside(x - self.x, y - self.y, self.angle)) <= self.width)


def _aside(x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    """How far places lie beside a line of an angle through the origin."""
    return np.asarray(y * np.cos(angle) - x * np.sin(angle))


def erase(found: np.ndarray, streaks: tuple[Streak, ...], step: int) -> np.ndarray:
    """A detection map (r, c) without streaks; `step` native pixels along a side of one of its pixels."""
    if not streaks:
        return found
    rows, cols = np.nonzero(found)
    y, x = (rows + 0.5) * step, (cols + 0.5) * step
    on = np.logical_or.reduce([streak.covers(x, y) for streak in streaks])
    left = found.copy()
    left[rows[on], cols[on]] = False
    return left


def find_streaks(
    x: np.ndarray, y: np.ndarray, e1: np.ndarray, e2: np.ndarray, sigma: np.ndarray, shape: tuple[int, int]
) -> tuple[Streak, ...]:
    """Lines across the CCD on which many elongated sources lie, the richest first.

    Args:
        x, y: (n,) centres, px.
        e1, e2: (n,) ellipticities of the sources, along the columns' numbers and along the diagonals.
        sigma: (n,) their sizes, px.
        shape: rows and columns of the CCD.
    """
    left = np.flatnonzero(np.hypot(e1, e2) > LEAST_ELLIPTICITY)
    found: list[Streak] = []
    seen: list[Streak] = []
    while len(left) >= FEWEST_PIECES and len(seen) < MOST_STREAKS:
        across = sigma[left] * np.sqrt(np.maximum(1.0 - np.hypot(e1[left], e2[left]), 0.0))
        streak = _richest(x[left], y[left], 0.5 * np.arctan2(e2[left], e1[left]), across)
        if streak is None:
            break
        if any(abs(np.sin(streak.angle - other.angle)) < np.sin(WITHIN) for other in seen):
            return ()  # parallel lines: the telescope moved
        seen.append(streak)
        on = streak.covers(x[left], y[left])
        if _span(streak, x[left[on]], y[left[on]]) >= LEAST_SPAN * _chord(streak, shape):
            found.append(streak)
        left = left[~on]
    return tuple(found)


def _span(streak: Streak, x: np.ndarray, y: np.ndarray) -> float:
    """Distance between the first and the last piece along the line."""
    return float(np.ptp(x * np.cos(streak.angle) + y * np.sin(streak.angle))) if len(x) else 0.0


def _chord(streak: Streak, shape: tuple[int, int]) -> float:
    """Length of the line across the CCD."""
    low, high = -np.inf, np.inf
    for at, along, size in ((streak.x, np.cos(streak.angle), shape[1]), (streak.y, np.sin(streak.angle), shape[0])):
        if abs(along) > 1e-9:
            first, last = sorted(((0 - at) / along, (size - at) / along))
            low, high = max(low, first), min(high, last)
    return float(max(high - low, 0.0))


def _richest(x: np.ndarray, y: np.ndarray, axis: np.ndarray, across: np.ndarray) -> Streak | None:
    """The line with the most pieces, if it has enough of them; `across` are their widths (px)."""
    toward = np.arctan2(y[None, :] - y[:, None], x[None, :] - x[:, None])
    aligned = (np.abs(np.sin(toward - axis[:, None])) < np.sin(WITHIN)) & ~np.eye(len(x), dtype=bool)
    seed = int(np.argmax(aligned.sum(axis=1)))
    pieces = np.flatnonzero(aligned[seed] | (np.arange(len(x)) == seed))
    if len(pieces) < max(FEWEST_PIECES, LEAST_SHARE * len(x)):
        return None
    centre_x, centre_y, angle = _line(x[pieces], y[pieces])
    width = max(3.0 * float(np.median(across[pieces])), LEAST_WIDTH)
    streak = Streak(centre_x, centre_y, angle, width)
    # Once more with those that lie on the line: the seed's own axis is uncertain by degrees.
    pieces = np.flatnonzero(streak.covers(x, y))
    if len(pieces) < max(FEWEST_PIECES, LEAST_SHARE * len(x)):
        return None
    return Streak(*_line(x[pieces], y[pieces]), width)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """A point on the straight line through places, and its angle; medians keep strangers from tilting it."""
    centre_x, centre_y = float(np.median(x)), float(np.median(y))
    for _ in range(2):
        spread = np.cov(x - centre_x, y - centre_y)
        angle = 0.5 * float(np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1]))
        aside = _aside(x - centre_x, y - centre_y, angle)
        near = np.abs(aside) <= 3.0 * max(float(np.median(np.abs(aside))), 0.5)
        if near.sum() < FEWEST_PIECES or near.all():
            break
        x, y = x[near], y[near]
        centre_x, centre_y = float(np.median(x)), float(np.median(y))
    # The median's point lies on the line only as far as the places do evenly; the mean offset puts it there.
    middle = float(np.mean(_aside(x - centre_x, y - centre_y, angle)))
    return centre_x - middle * np.sin(angle), centre_y + middle * np.cos(angle), angle
