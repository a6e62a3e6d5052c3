"""Figures of merit of scores against what is true, with weights, so that a bootstrap is a matter of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcqa.streams import stream


@dataclass(frozen=True)
class Ranked:
    """Exposures ordered by falling score; equal scores share a threshold.

    Attributes:
        bad: bool (row,), in that order; order: int64 (row,), the rows they came from.
        ends: int64 (threshold,), last row of each group of equal scores.
        score: float64 (threshold,).
    """

    bad: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, bad: np.ndarray) -> Ranked:
        order = np.argsort(-score, kind="stable")
        values = score[order]
        ends = np.flatnonzero(np.r_[values[1:] != values[:-1], True]) if len(values) else np.zeros(0, np.int64)
        return cls(bad[order], order, ends, values[ends])

    def counts(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted bad and good ones at or above each threshold: float64 (..., threshold) from (..., row)."""
        ordered = weight[..., self.order]
        hits = np.cumsum(ordered * self.bad, axis=-1)[..., self.ends]
        return hits, np.cumsum(ordered * ~self.bad, axis=-1)[..., self.ends]


def average_precision(ranked: Ranked, weight: np.ndarray) -> np.ndarray:
    """Area under the precision-recall steps: float64 (...,), NaN without bad ones."""
    hits, false = ranked.counts(weight)
    if not hits.shape[-1]:
        return np.full(hits.shape[:-1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / (hits + false))
        gain = np.diff(hits, axis=-1, prepend=0.0) / hits[..., -1:]
    return np.asarray((precision * gain).sum(axis=-1))


def roc_area(ranked: Ranked, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: float64 (...,), NaN without both kinds."""
    hits, false = ranked.counts(weight)
    if not hits.shape[-1]:
        return np.full(hits.shape[:-1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = hits / hits[..., -1:], false / false[..., -1:]
    middle = tpr - np.diff(tpr, axis=-1, prepend=0.0) / 2
    return np.asarray((middle * np.diff(fpr, axis=-1, prepend=0.0)).sum(axis=-1))


def recall_at(ranked: Ranked, weight: np.ndarray, of: np.ndarray, rate: float = 0.01) -> np.ndarray:
    """Recall of some bad ones at the threshold where at most `rate` of the good ones pass: float64 (...,).

    Args:
        of: bool (row,), the bad ones that are counted.
    """
    _, false = ranked.counts(weight)
    if not false.shape[-1]:
        return np.full(false.shape[:-1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        allowed = false <= rate * false[..., -1:]
    last = np.where(allowed.any(axis=-1), ranked.ends[np.maximum(allowed.sum(axis=-1) - 1, 0)], -1)
    chosen = (weight * of)[..., ranked.order]
    found = np.cumsum(chosen, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        at = np.take_along_axis(found, np.maximum(last, 0)[..., None], axis=-1)[..., 0]
        return np.asarray(np.where(last >= 0, at, 0.0) / found[..., -1])


def night_weights(night: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Bootstrap weights: nights drawn with replacement, all exposures of a night together: float64 (sample, row)."""
    nights, index = np.unique(night, return_inverse=True)
    rng = stream(seed, "evaluate", "bootstrap")
    drawn = rng.multinomial(len(nights), np.full(len(nights), 1 / max(1, len(nights))), size=samples)
    return np.asarray(drawn[:, index], np.float64)


Figure = Callable[[np.ndarray], np.ndarray]


def difference(first: Figure, second: Figure) -> Figure:
    """One figure less another on the same weights.

    What makes a night hard is hard for both, so the bootstrap of a difference is much narrower than that of either.
    """
    return lambda weight: first(weight) - second(weight)


def with_interval(figure: Figure, weights: np.ndarray) -> dict[str, float]:
    """A figure on all rows, and the 5 % and 95 % quantiles of the bootstrap; NaN where it is undefined: the quantiles
    are so where there is one night, of which every sample is the same.
    """
    value = float(figure(np.ones(weights.shape[1])))
    if np.all(weights == 1):
        return {"value": value, "low": np.nan, "high": np.nan}
    samples = figure(weights)
    samples = samples[np.isfinite(samples)]
    low, high = np.quantile(samples, [0.05, 0.95]) if len(samples) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def curves(ranked: Ranked, most: int = 400) -> dict[str, dict[str, list[float]]]:
    """Precision against recall and the ROC curve, thinned to at most `most` points."""
    hits, false = ranked.counts(np.ones(len(ranked.order)))
    if not len(hits):
        return {"precision_recall": {"recall": [], "precision": []}, "roc": {"fpr": [], "tpr": []}}
    pick = np.unique(np.linspace(0, len(hits) - 1, most).astype(np.int64))
    recall, precision = hits / max(hits[-1], 1), hits / (hits + false)
    fpr = np.r_[0.0, (false / max(false[-1], 1))[pick]]
    tpr = np.r_[0.0, recall[pick]]
    return {
        "precision_recall": {"recall": recall[pick].tolist(), "precision": precision[pick].tolist()},
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
    }


def reliability(p_bad: np.ndarray, bad: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Mean probability and share of bad ones in bins of probability; empty bins are left out."""
    place = np.minimum((p_bad * bins).astype(np.int64), bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            rows.append(
                {
                    "low": number / bins,
                    "high": (number + 1) / bins,
                    "mean_p_bad": float(p_bad[inside].mean()),
                    "share_bad": float(bad[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return rows


def calibration_error(p_bad: np.ndarray, bad: np.ndarray, bins: int = 10) -> float:
    """Mean distance between probability and share over the bins of `reliability`, weighted by count."""
    rows = reliability(p_bad, bad, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["mean_p_bad"] - row["share_bad"]) for row in rows) / total if total else np.nan
