from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hpcqa.qa import search
from hpcqa.qa.learn import GOOD, Examples, Recipe
from tests.qa.synthetic import survey

RECIPE = Recipe(bad_rate=0.4, pca=8)


def noisy(scale: float) -> Examples:
    """A survey whose embeddings hardly show the defects."""
    examples, rng = survey(), np.random.default_rng(9)
    ccd = {
        name: values + scale * rng.normal(size=values.shape).astype("f4") for name, values in examples.raw.ccd.items()
    }
    return dataclasses.replace(examples, raw=dataclasses.replace(examples.raw, ccd=ccd))


def test_a_setting_that_costs_much_is_left_and_others_stay() -> None:
    """The defects change how long the features are: by cosine much of them is lost."""
    start = dataclasses.replace(RECIPE, metric="cosine", channels=("maps",))
    chosen, trials = search.choose(noisy(3.0), start, ["metric", "score"])
    assert chosen == dataclasses.replace(start, metric="euclidean")
    for trial in trials:
        assert trial.kept == (trial.gain > search.STANDARD_ERRORS * trial.error)
        assert 0 <= trial.figure <= 1


def test_the_search_is_the_same_every_time() -> None:
    examples = survey()
    assert search.choose(examples, RECIPE, ["score"]) == search.choose(examples, RECIPE, ["score"])


def test_nothing_is_chosen_where_nothing_is_asked_or_examples_are_few() -> None:
    examples = survey()
    assert search.choose(examples, RECIPE, []) == (RECIPE, ())
    rows = np.r_[np.flatnonzero(examples.whole == GOOD)[:30], np.flatnonzero(examples.any_bad())[:5]]
    assert search.choose(examples.select(np.sort(rows)), RECIPE, ["score", "k"]) == (RECIPE, ())


@pytest.mark.parametrize("name", ["score", "metric", "k", "pca"])
def test_candidates_differ_from_what_is_set(name: str) -> None:
    for recipe in (RECIPE, dataclasses.replace(RECIPE, k=1, pca=2, score="vote", metric="cosine")):
        others = search.candidates(recipe, name)
        assert others
        assert getattr(recipe, name) not in others


def test_trials_are_told_in_words() -> None:
    trial = search.Trial("k", 8, 0.91, 0.02, 0.005, True)
    assert search.in_words([trial]) == ["k=8: average precision 0.910, +0.020 +- 0.005, taken"]
