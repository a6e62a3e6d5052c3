"""Thresholds of p_bad from what is asked for: how much of what is called bad is bad, how much of what is bad is found.

They are chosen on probabilities that each labelled exposure gets from the other folds of nights, references and weights
alike, and for the share of bad exposures that is expected where the classifier is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcqa.config import ClassifyConfig


def rates(p_bad: np.ndarray, bad: np.ndarray, bad_rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall at each threshold, falling: float64 (threshold,) each.

    Half a good exposure more than were seen counts as wrong, so that a few labelled ones can't promise perfection.
    """
    rising, place = np.unique(p_bad, return_inverse=True)
    threshold = rising[::-1]
    hits, false = (np.cumsum(np.bincount(place[kind], minlength=len(rising))[::-1]) for kind in (bad, ~bad))
    found = bad_rate * hits / max(1, int(bad.sum()))
    wrong = (1.0 - bad_rate) * (false + 0.5) / (int((~bad).sum()) + 1.0)
    return threshold, found / (found + wrong), hits / max(1, int(bad.sum()))


def choose(p_bad: np.ndarray, bad: np.ndarray, bad_rate: float, precision: float, recall: float) -> dict[str, float]:
    """Thresholds for what is asked for, and what they reach; nothing for what is 0.

    Args:
        p_bad: float64 (row,), held out; bad: bool (row,), both kinds present.
        bad_rate: expected share of bad exposures.
        precision: share of the exposures called bad that are bad.
        recall: share of the bad exposures that are called bad or sent to review.

    Returns:
        bad_above and its precision, review_above and its recall. A precision that is out of reach gives the best one.
    """
    threshold, precisions, recalls = rates(p_bad, bad, bad_rate)
    found: dict[str, float] = {}
    if precision:
        enough = np.flatnonzero(precisions >= precision)
        place = int(enough[-1]) if len(enough) else int(np.argmax(precisions))
        found |= {"bad_above": float(threshold[place]), "precision": float(precisions[place])}
    if recall:
        place = int(np.argmax(recalls >= recall))
        found |= {"review_above": float(threshold[place]), "recall": float(recalls[place])}
    return found


def in_words(found: Mapping[str, float]) -> str:
    """What was chosen, for the log."""
    said = []
    if "bad_above" in found:
        said.append(f"bad from p_bad {found['bad_above']:.3f} on, precision {found['precision']:.2f}")
    if "review_above" in found:
        said.append(f"review from p_bad {found['review_above']:.3f} on, recall {found['recall']:.2f}")
    return "; ".join(said)


def applied(settings: ClassifyConfig, classifier_settings: Mapping[str, Any]) -> ClassifyConfig:
    """The thresholds of a classifier in place of the configured ones, where it has some; review is not above bad."""
    found = classifier_settings.get("thresholds", {})
    bad_above = float(found.get("bad_above", settings.bad_above))
    review_above = min(bad_above, float(found.get("review_above", settings.review_above)))
    return dataclasses.replace(settings, bad_above=bad_above, review_above=review_above)
