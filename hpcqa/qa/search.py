"""Choosing how neighbours are scored: cross-validation over nights, with the reasons of bad examples left out in turn.

Every trial learns from the labelled exposures and scores each without its own fold of nights, references and weights
alike; bad ones also against references that share none of their reasons, so that a setting that only knows what it has
seen does not win. A setting changes only for a gain of more than two standard errors over nights: several are tried,
and a survey's classifier should not change by chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.qa import metrics
from hpcqa.qa.blocks import thin
from hpcqa.qa.learn import GOOD, Examples, Lesson, Recipe, prepare
from hpcqa.qa.scores import FORMS

SEARCHED = ("score", "metric", "k", "pca")
FEWEST = 20  # of good and of bad exposures
MOST = 200  # of either: enough to see differences that matter, and minutes for sixty CCDs an exposure
SAMPLES = 200
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        name, value: the setting.
        figure: mean of the average precision with and without the reasons of bad exposures among the references.
        gain, error: against the best setting so far, and its standard error over nights.
        kept: whether it became the best.
    """

    name: str
    value: Any
    figure: float
    gain: float
    error: float
    kept: bool


def candidates(recipe: Recipe, name: str) -> list[Any]:
    """Other values of a setting that are worth a trial."""
    value = getattr(recipe, name)
    others: dict[str, list[Any]] = {
        "score": list(FORMS),
        "metric": ["euclidean", "cosine"],
        "k": [max(1, value // 2), 2 * value] if name == "k" else [],
        "pca": [max(2, value // 2), 2 * value] if name == "pca" else [],
    }
    return [other for other in others[name] if other != value]


def choose(examples: Examples, recipe: Recipe, names: Sequence[str]) -> tuple[Recipe, tuple[Trial, ...]]:
    """The recipe with its named settings chosen, and every trial; as it was where examples are too few to tell."""
    chosen = _some(examples)
    if not names or min((chosen.whole == GOOD).sum(), chosen.any_bad().sum()) < FEWEST:
        return recipe, ()
    weights = _Weights.of(chosen, recipe.seed)
    best = weights.figures(prepare(chosen, recipe), recipe.bad_rate)
    trials = []
    for name in names:
        for value in candidates(recipe, name):
            other = dataclasses.replace(recipe, **{name: value})
            found = weights.figures(prepare(chosen, other), recipe.bad_rate)
            gain, error = float(found[0] - best[0]), float(np.std(found[1:] - best[1:]))
            better = gain > STANDARD_ERRORS * error
            trials.append(Trial(name, value, float(found[0]), gain, error, better))
            if better:
                recipe, best = other, found
    return recipe, tuple(trials)


def in_words(trials: Sequence[Trial]) -> list[str]:
    """A line for each trial, for the log."""
    return [
        f"{trial.name}={trial.value}: average precision {trial.figure:.3f}, {trial.gain:+.3f} +- {trial.error:.3f}, "
        + ("taken" if trial.kept else "not taken")
        for trial in trials
    ]


def _some(examples: Examples) -> Examples:
    """At most MOST good and MOST bad exposures, evenly spaced in time."""
    bad = examples.any_bad()
    rows = np.concatenate([thin(np.flatnonzero(bad), MOST), thin(np.flatnonzero(~bad), MOST)])
    return examples.select(np.sort(rows))


@dataclass(frozen=True)
class _Weights:
    """Weights of good and of bad exposures: ones, then bootstrap samples over nights: float64 (1 + sample, row)."""

    good: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, examples: Examples, seed: int) -> _Weights:
        drawn = metrics.night_weights(examples.night, SAMPLES, seed)
        weights = np.concatenate([np.ones((1, drawn.shape[1])), drawn])
        return cls(weights[:, examples.whole == GOOD], weights[:, examples.any_bad()])

    def figures(self, lesson: Lesson, bad_rate: float) -> np.ndarray:
        """Mean average precision of known and of unknown reasons, for each weight: float64 (1 + sample,)."""
        good, *kinds = lesson.held_out(bad_rate)
        weights = np.concatenate([self.good, self.bad], axis=1)
        is_bad = np.arange(weights.shape[1]) >= len(good)
        found = [
            metrics.average_precision(metrics.Ranked.of(np.concatenate([good, bad]), is_bad), weights) for bad in kinds
        ]
        return np.asarray(np.nan_to_num(np.mean(found, axis=0)))
