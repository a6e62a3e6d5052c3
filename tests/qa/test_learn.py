from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hpcqa.artifacts.schema import Provenance
from hpcqa.qa import classifier_file
from hpcqa.qa.blocks import NUMBERS
from hpcqa.qa.classifier import Classifier
from hpcqa.qa.known import Known, as_examples
from hpcqa.qa.learn import (
    BAD,
    GOOD,
    UNKNOWN,
    Examples,
    Recipe,
    assign_folds,
    clean_ccds,
    learn,
    learn_unlabelled,
    prepare,
    weak_ccds,
    what_is_missing,
)
from hpcqa.qa.scores import FORMS
from hpcqa.reasons import BIT, REASONS
from tests.qa.synthetic import KINDS, number_scale, survey

RECIPE = Recipe(bad_rate=0.4, pca=8)


@pytest.fixture(scope="module")
def halves() -> tuple[Examples, Examples]:
    examples = survey()
    rows = np.arange(len(examples.expnum))
    return examples.select(rows[rows % 2 == 0]), examples.select(rows[rows % 2 == 1])


@pytest.fixture(scope="module")
def learned(halves: tuple[Examples, Examples]) -> Classifier:
    return learn(halves[0], number_scale(), RECIPE)


def test_unseen_exposures_and_ccds_are_told_apart(learned: Classifier, halves: tuple[Examples, Examples]) -> None:
    test = halves[1]
    answers = learned.decide(test.raw, test.expnum)
    bad = test.any_bad()
    assert answers.p_bad[bad].min() > np.quantile(answers.p_bad[~bad], 0.9)
    assert np.median(answers.novelty[~bad]) == pytest.approx(0, abs=1)
    named = answers.reason.argmax(axis=1)
    right = [KINDS.index(REASONS[named[row]]) for row in np.flatnonzero(bad)]
    assert np.mean([BIT[KINDS[kind]] == bits for kind, bits in zip(right, test.reasons[bad], strict=True)]) > 0.9


def test_a_kind_that_no_label_covers_is_found(halves: tuple[Examples, Examples]) -> None:
    train, test = halves
    known = np.flatnonzero(train.reasons != BIT["noise"])
    learned = learn(train.select(known), number_scale(), RECIPE)
    answers = learned.decide(test.raw, test.expnum)
    new = test.reasons == BIT["noise"]
    assert np.median(answers.p_bad[new]) > 0.8
    assert answers.novelty[new].min() > np.quantile(answers.novelty[~test.any_bad()], 0.9)


def test_a_labelled_exposure_is_scored_without_its_own_label(halves: tuple[Examples, Examples]) -> None:
    """Calling one good exposure bad does not change what is said of it, as long as others outweigh it."""
    train = halves[0]
    row = int(np.flatnonzero(train.whole == GOOD)[3])
    whole = train.whole.copy()
    whole[row] = BAD
    wrong = dataclasses.replace(train, whole=whole, reasons=np.where(whole == BAD, BIT["ghost"], train.reasons))
    for examples in (train, wrong):
        answers = learn(examples, number_scale(), RECIPE).decide(train.raw, train.expnum)
        assert answers.p_bad[row] < 0.5


def test_good_ccds_of_a_bad_exposure_are_cleaned_away() -> None:
    """Whole-exposure labels on exposures where one CCD alone is bad."""
    examples = survey(3)
    local = examples.share_bad() > 0
    truly_bad = examples.ccd == BAD
    whole = np.where(local, BAD, examples.whole).astype(np.int8)
    weak = dataclasses.replace(examples, whole=whole, ccd=np.full_like(examples.ccd, UNKNOWN))
    features = learn(weak, number_scale(), RECIPE).features.apply(weak.raw)
    folds = assign_folds(weak.night, 5, 1)
    inside = local[weak.exposure_of_ccd()]
    naive, cleaned = weak_ccds(weak), clean_ccds(weak, features, folds, RECIPE)
    assert naive[inside].all()
    assert cleaned[inside & truly_bad].mean() > 0.9
    assert cleaned[inside & ~truly_bad].mean() < 0.2


def test_results_do_not_depend_on_the_order_or_number_of_exposures(
    learned: Classifier, halves: tuple[Examples, Examples]
) -> None:
    test = halves[1]
    whole = learned.decide(test.raw, test.expnum)
    backwards = np.arange(len(test.expnum))[::-1]
    for rows in np.array_split(backwards, 7):
        part = learned.decide(test.raw.select(rows), test.expnum[rows])
        assert np.allclose(part.p_bad, whole.p_bad[rows], rtol=1e-5)
        assert np.array_equal(part.nearest, whole.nearest[rows])


def test_held_out_probabilities_know_nothing_of_their_own_fold(halves: tuple[Examples, Examples]) -> None:
    """Other labels of a fold's exposures change nothing of what the other folds' fusion learns."""
    lesson = prepare(halves[0], RECIPE)
    fold = int(lesson.folds[lesson.bad_rows[0]])
    good, bad = lesson.folds[lesson.good_rows] != fold, lesson.folds[lesson.bad_rows] != fold
    expected = lesson.calibrate(good, bad, RECIPE.bad_rate).fusion
    inside = lesson.folds[lesson.bad_rows] == fold
    rows = lesson.bad_rows[inside]
    _, found, novel = lesson.held_out(RECIPE.bad_rate)
    assert np.array_equal(found[inside], expected.probability(lesson.scored.matrix[rows]))
    assert np.array_equal(novel[inside], expected.probability(lesson.novel[0][inside]))


@pytest.mark.parametrize("score", FORMS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_every_form_of_score_tells_bad_from_good(halves: tuple[Examples, Examples], score: str, metric: str) -> None:
    train, test = halves
    learned = learn(train, number_scale(), dataclasses.replace(RECIPE, score=score, metric=metric))
    answers = learned.decide(test.raw, test.expnum)
    assert roc_auc_score(test.any_bad(), answers.p_bad) > 0.9


def test_a_view_that_says_nothing_does_not_drown_the_others() -> None:
    """Wide scatter in star stamps, beside maps that hardly show the defects."""
    examples, rng = survey(exposures=240), np.random.default_rng(4)
    shape = examples.raw.ccd["background"].shape
    blocks = {"background": examples.raw.ccd["background"] + rng.normal(size=shape).astype("f4")}
    blocks["detail"] = 30.0 * rng.normal(size=(shape[0], 64)).astype("f4")
    found = {}
    for channels in (("maps",), ("maps", "detail")):
        raw = dataclasses.replace(examples.raw, ccd=blocks)
        whole = dataclasses.replace(examples, raw=raw)
        rows = np.arange(len(examples.expnum))
        train, test = whole.select(rows[::2]), whole.select(rows[1::2])
        answers = learn(train, number_scale(), dataclasses.replace(RECIPE, channels=channels)).decide(
            test.raw, test.expnum
        )
        found[channels] = roc_auc_score(test.any_bad(), answers.p_bad)
    assert found["maps",] > 0.8
    assert found["maps", "detail"] > found["maps",] - 0.02


def test_a_network_of_the_focal_plane_alone_counts_for_exposures() -> None:
    examples = survey()
    plane = examples.raw.exposure["focal_plane"] + 8.0 * examples.any_bad()[:, None].astype("f4")
    raw = dataclasses.replace(
        examples.raw, ccd={"numbers": examples.raw.ccd["numbers"]}, exposure={"focal_plane": plane}
    )
    examples = dataclasses.replace(examples, raw=raw)
    recipe = dataclasses.replace(RECIPE, channels=("maps", "context", "defects"))
    learned = learn(examples, number_scale(), recipe)
    assert learned.features.channels == ("maps",)
    answers = learned.decide(raw, examples.expnum)
    assert roc_auc_score(examples.any_bad(), answers.p_bad) > 0.95


def test_one_number_far_out_on_one_ccd_is_found(halves: tuple[Examples, Examples]) -> None:
    """A number that good CCDs hold still, on a single CCD: neighbours among many numbers hardly see it."""
    test, recipe = halves[1], dataclasses.replace(RECIPE, channels=NUMBERS)
    learned = learn(halves[0], number_scale(), recipe)
    good = np.flatnonzero(~test.any_bad())
    numbers = test.raw.ccd["numbers"].copy()
    changed = good[::2]
    numbers[test.raw.starts[changed] + 1, 3] = 25.0
    raw = dataclasses.replace(test.raw, ccd={**test.raw.ccd, "numbers": numbers})
    answers = learned.decide(raw, test.expnum)
    kept = np.setdiff1d(good, changed)
    assert np.median(answers.p_bad[changed]) > np.quantile(answers.p_bad[kept], 0.9)
    worst = [np.argmax(part) for part in np.split(answers.ccd_p_bad, test.raw.starts[1:])]
    assert np.mean([worst[row] == 1 for row in changed]) > 0.9


def test_a_classifier_survives_its_file(learned: Classifier, halves: tuple[Examples, Examples], tmp_path: Path) -> None:
    kept = dataclasses.replace(learned, settings={"missing": ""})
    first = classifier_file.write(tmp_path / "a.h5", kept, Provenance("d"))
    again = classifier_file.read(tmp_path / "a.h5")
    second = classifier_file.write(tmp_path / "b.h5", again, Provenance("d"))
    assert first.content == second.content
    test = halves[1]
    expected, found = learned.decide(test.raw, test.expnum), again.decide(test.raw, test.expnum)
    for field in dataclasses.fields(expected):
        assert np.array_equal(getattr(expected, field.name), getattr(found, field.name)), field.name


def test_an_unlabelled_classifier_knows_novelty_alone(tmp_path: Path) -> None:
    examples = survey(5)
    learned = learn_unlabelled(examples, number_scale(), RECIPE)
    answers = learned.decide(examples.raw, examples.expnum)
    assert np.isnan(answers.p_bad).all()
    assert np.isnan(answers.ccd_p_bad).all()
    bad = examples.any_bad()
    # Two of the three views say nothing, and the largest of all novelties counts.
    assert roc_auc_score(bad, answers.novelty) > 0.75
    classifier_file.write(tmp_path / "u.h5", dataclasses.replace(learned, settings={}), Provenance("d"))
    assert classifier_file.read(tmp_path / "u.h5").mode == "unlabelled"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_survey_of_next_to_nothing_is_learned_too(count: int) -> None:
    examples = survey().select(np.arange(count))
    learned = learn_unlabelled(examples, number_scale(), RECIPE)
    if count:
        assert np.isfinite(learned.decide(examples.raw, examples.expnum).novelty).all()


def test_what_is_missing_is_said() -> None:
    examples = survey()
    assert what_is_missing(examples) == ""
    good = examples.select(np.flatnonzero(examples.whole == GOOD))
    assert "0 bad labelled exposures" in what_is_missing(good)


def test_two_of_each_are_enough() -> None:
    examples = survey()
    rows = np.r_[np.flatnonzero(examples.whole == GOOD)[:2], np.flatnonzero(examples.whole == BAD)[:2]]
    learned = learn(examples.select(np.sort(rows)), number_scale(), RECIPE)
    answers = learned.decide(examples.raw, examples.expnum)
    assert np.isfinite(answers.p_bad).all()


def test_folds_follow_nights_unless_there_is_one_night() -> None:
    night = np.array([20250101, 20250101, 20250102, 20250103, 20250104, 20250105])
    folds = assign_folds(night, 5, 1)
    assert folds[0] == folds[1]
    assert len(np.unique(assign_folds(np.full(6, 20250101), 3, 1))) == 3


def test_an_exposure_called_bad_for_its_ccds_is_not_bad_as_a_whole() -> None:
    from tests.qa.run_folder import make_labels

    examples = survey()
    labels = make_labels(examples)
    known = Known.of_labels(labels)
    local = int(examples.expnum[np.flatnonzero(examples.share_bad() > 0)[0]])
    bits = int(known.reasons[known.expnum == local][0])
    extra = {"expnum": local, "ccdnum": -1, "bad": True, "reasons": bits}
    more = {name: np.append(values, extra.get(name, values[-1])) for name, values in labels.items()}
    both = Known.of_labels(more)
    raw = examples.raw
    from hpcqa.qa.embedded import Embedded

    none = np.zeros(0, np.int64)
    embedded = Embedded(raw, examples.expnum, examples.ccdnum, none, examples.night, none, none, none, (), ())
    found = as_examples(embedded, both)
    row = int(np.flatnonzero(found.expnum == local)[0])
    assert found.whole[row] == UNKNOWN
    assert found.any_bad()[row]
    extra["reasons"] = bits | BIT["wonky"]
    more = {name: np.append(values, extra.get(name, values[-1])) for name, values in labels.items()}
    assert as_examples(embedded, Known.of_labels(more)).whole[row] == BAD
