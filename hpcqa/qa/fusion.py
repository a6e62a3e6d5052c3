"""Several scores to one calibrated probability, one-sided: no score that looks good excuses one that looks bad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

# Prior on the weights, worth so many examples: it keeps a hundred from trusting one score alone, which costs problems
# that the others see (one or two bad CCDs, kinds without a label), and is nothing to ten thousand.
RIDGE = 30.0
SIZE_RIDGE = 0.2
MAX_LOGIT = 12.0


@dataclass(frozen=True)
class OneSided:
    """Scores in units of the good examples' scatter, floored at their median.

    Attributes:
        centre, scale: float64 (score,).
        linear: bool (score,), those that are logarithms by themselves.
    """

    centre: np.ndarray
    scale: np.ndarray
    linear: np.ndarray

    @classmethod
    def fit(cls, good: np.ndarray, linear: np.ndarray) -> OneSided:
        """From the scores of good examples, float64 (row, score)."""
        if not len(good):
            return cls(np.zeros(good.shape[1]), np.ones(good.shape[1]), linear)
        centre = np.median(good, axis=0)
        deviation = np.abs(good - centre)
        scale = np.maximum(1.4826 * np.median(deviation, axis=0), 0.5 * np.quantile(deviation, 0.95, axis=0))
        return cls(centre, np.where(scale > 1e-9, scale, 1.0), linear)

    def deviation(self, scores: np.ndarray) -> np.ndarray:
        """Units of scatter above the median, either sign."""
        return np.asarray((scores - self.centre) / self.scale)

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Non-negative and growing like a logarithm: asinh of the deviation above the median, or that itself."""
        above = np.maximum(self.deviation(scores), 0.0)
        return np.asarray(np.where(self.linear, above, np.arcsinh(above)))


@dataclass(frozen=True)
class Fusion:
    """A logistic model with non-negative weights on one-sided scores.

    Attributes:
        one_sided: how each score is scaled.
        weight: float64 (score,).
        intercept: fits the share of bad ones that is expected.
    """

    one_sided: OneSided
    weight: np.ndarray
    intercept: float

    def logit(self, scores: np.ndarray) -> np.ndarray:
        """Log odds of bad: float64 (row,)."""
        odds = self.one_sided.apply(scores) @ self.weight + self.intercept
        return np.asarray(np.clip(odds, -MAX_LOGIT, MAX_LOGIT))

    def probability(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(expit(self.logit(scores)))


def fit_fusion(
    scores: np.ndarray, bad: np.ndarray, sample_weight: np.ndarray, bad_rate: float, linear: np.ndarray
) -> Fusion:
    """Fit the fusion on scores that were made without the rows' own labels.

    Args:
        scores: float64 (row, score).
        bad: bool (row,), both kinds present.
        sample_weight: float64 (row,).
        bad_rate: share of bad ones where the classifier will be used; the intercept is shifted from the sample's share.
        linear: bool (score,), see `OneSided`.
    """
    one_sided = OneSided.fit(scores[~bad], linear)
    features = one_sided.apply(scores)
    weight = _logistic(features, bad, sample_weight, RIDGE)[:-1]
    # The prior makes all weights small together; their common size is what the sample says.
    size, intercept = _logistic((features @ weight)[:, None], bad, sample_weight, SIZE_RIDGE)
    share = float(sample_weight[bad].sum() / sample_weight.sum())
    return Fusion(one_sided, size * weight, float(intercept + logit(bad_rate) - logit(share)))


def _logistic(features: np.ndarray, bad: np.ndarray, sample_weight: np.ndarray, prior: float) -> np.ndarray:
    """Non-negative slopes and an intercept: float64 (feature + 1,); `prior` is the ridge in examples."""
    weight = sample_weight / sample_weight.sum()
    ridge = prior / float(sample_weight.sum())
    sign = np.where(bad, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = parameters[:-1], parameters[-1]
        margin = sign * (features @ slope + intercept)
        value = float(np.sum(weight * np.logaddexp(0.0, -margin)) + 0.5 * ridge * np.sum(slope**2))
        pull = -weight * sign * expit(-margin)
        return value, np.r_[features.T @ pull + ridge * slope, pull.sum()]

    count = features.shape[1]
    start = np.r_[np.full(count, 1.0 / count), logit(float(weight[bad].sum()))]
    bounds = [(0.0, None)] * count + [(None, None)]
    # Only here: classify has no need of it, and it is a fifth of its imports.
    from scipy.optimize import minimize

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "ftol": 1e-12})
    return np.asarray(np.r_[np.maximum(found.x[:-1], 0.0), found.x[-1]])
