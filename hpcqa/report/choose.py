"""Which exposures get pictures: the most interesting ones, from several points of view in turn. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """A row of the decisions and why it is shown."""

    row: int
    why: str


def interesting(
    decisions: Mapping[str, np.ndarray], count: int, truth: Mapping[int, bool] | None = None
) -> list[Choice]:
    """Up to `count` exposures, each once, taken in turn from: the most probably bad, the most novel, those next to the
    threshold on either side, the ones that the truth contradicts, and undecided ones with at least one CCD seen.

    Args:
        decisions: verdict, p_bad, novelty, num_decided, expnum of each exposure (row,).
        truth: whether an exposure is bad, by expnum, where that is known.

    Returns:
        Choices ordered by verdict (bad, review, good, undecided), then by falling p_bad, then by expnum.
    """
    queues = [(why, iter(rows)) for why, rows in _points_of_view(decisions, truth or {})]
    chosen: dict[int, str] = {}
    while queues and len(chosen) < count:
        for entry in list(queues):
            row = next((row for row in entry[1] if row not in chosen), None)
            if row is None:
                queues.remove(entry)
            elif len(chosen) < count:
                chosen[row] = entry[0]
    order = {"bad": 0, "review": 1, "good": 2}
    p_bad = np.nan_to_num(decisions["p_bad"], nan=-1.0)

    def place(row: int) -> tuple[int, float, int]:
        return order.get(str(decisions["verdict"][row]), 3), -float(p_bad[row]), int(decisions["expnum"][row])

    return [Choice(row, chosen[row]) for row in sorted(chosen, key=place)]


def _points_of_view(decisions: Mapping[str, np.ndarray], truth: Mapping[int, bool]) -> Iterator[tuple[str, list[int]]]:
    verdict, expnum = decisions["verdict"], decisions["expnum"]
    p_bad = decisions["p_bad"]
    known = np.array([truth.get(int(number), None) for number in expnum], object)
    seen = decisions["num_decided"] > 0
    yield "most probably bad", _sorted(p_bad, verdict == "bad")
    yield "for review", _sorted(p_bad, verdict == "review")
    yield "missed: the truth says bad", _sorted(p_bad, (known == True) & (verdict == "good"))  # noqa: E712
    yield "false alarm: the truth says good", _sorted(p_bad, (known == False) & (verdict == "bad"))  # noqa: E712
    yield "unlike anything labelled", _sorted(decisions["novelty"], (verdict != "undecided"))
    yield "good, but only just", _sorted(p_bad, verdict == "good")
    yield "undecided", np.flatnonzero((verdict == "undecided") & seen).tolist()


def _sorted(values: np.ndarray, where: np.ndarray) -> list[int]:
    """Rows where `where`, by falling value; NaN last, ties in order."""
    rows = np.flatnonzero(where)
    keys = np.nan_to_num(values[rows].astype(np.float64), nan=-np.inf, posinf=np.inf)
    ordered: list[int] = rows[np.argsort(-keys, kind="stable")].tolist()
    return ordered
