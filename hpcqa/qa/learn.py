"""Learning a classifier from labelled exposures: folds, weak labels cleaned by their neighbours, calibration.

Every score that a weight is learned from is made without the labels of its own fold of nights. Bad examples count
twice, half each: scored against all references, and against those that share none of their reasons, so that what a
problem without a class looks like is learned too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcqa.qa import thresholds
from hpcqa.qa.blocks import CHANNELS, FeatureMap, Features, NumberScale, Raw, learn_features, segment_rows, thin
from hpcqa.qa.classifier import (
    LABELLED,
    UNLABELLED,
    Calibration,
    Classifier,
    References,
    Scored,
    largest_novelty,
    score_levels,
)
from hpcqa.qa.exposure import ccd_score_names, ccd_scores, is_rarity, score_names
from hpcqa.qa.fusion import Fusion, OneSided, fit_fusion
from hpcqa.qa.scores import Manner
from hpcqa.splits import night_folds

UNKNOWN, GOOD, BAD = -1, 0, 1
# A CCD of an exposure that is bad as a whole counts as bad itself if it is further from the good CCDs than this share
# of them are.
CLEAN_QUANTILE = 0.9
# From this share of bad CCDs on, an exposure whose CCDs are labelled one by one is an example of a bad exposure.
WHOLE_SHARE = 0.25
POPULATION = 3000


@dataclass(frozen=True)
class Examples:
    """Exposures to learn from, with what labels say of them.

    Attributes:
        raw: their blocks.
        expnum: int64 (exposure,), increasing.
        night: int32 (exposure,).
        ccdnum: int32 (ccd,).
        whole: int8 (exposure,): BAD, GOOD or UNKNOWN as a whole.
        reasons: int64 (exposure,), of the exposure or of its bad CCDs.
        ccd: int8 (ccd,): what labels say of the CCD by itself.
        ccd_reasons: int64 (ccd,).
    """

    raw: Raw
    expnum: np.ndarray
    night: np.ndarray
    ccdnum: np.ndarray
    whole: np.ndarray
    reasons: np.ndarray
    ccd: np.ndarray
    ccd_reasons: np.ndarray

    def select(self, rows: np.ndarray) -> Examples:
        """Some exposures, in the order given."""
        ccds = segment_rows(self.raw.starts[rows], self.raw.sizes()[rows])
        return Examples(
            self.raw.select(rows),
            self.expnum[rows],
            self.night[rows],
            self.ccdnum[ccds],
            self.whole[rows],
            self.reasons[rows],
            self.ccd[ccds],
            self.ccd_reasons[ccds],
        )

    def exposure_of_ccd(self) -> np.ndarray:
        """Row of each CCD's exposure: int64 (ccd,)."""
        return np.repeat(np.arange(len(self.expnum)), self.raw.sizes())

    def any_bad(self) -> np.ndarray:
        """Exposures that are bad as a whole or in a CCD: bool (exposure,)."""
        return np.asarray((self.whole == BAD) | (self.share_bad() > 0))

    def share_bad(self) -> np.ndarray:
        """Share of CCDs that are labelled bad by themselves: float64 (exposure,)."""
        if not len(self.expnum):
            return np.zeros(0)
        return np.asarray(np.add.reduceat((self.ccd == BAD).astype(np.float64), self.raw.starts) / self.raw.sizes())


@dataclass(frozen=True)
class Recipe:
    """Settings of `learn`; `search.choose` can choose some."""

    k: int = 4
    score: str = "ratio"
    metric: str = "euclidean"
    pca: int = 32
    bad_rate: float = 0.02
    folds: int = 5
    seed: int = 1
    channels: tuple[str, ...] = tuple(CHANNELS)
    clean: bool = True
    precision: float = 0.0
    recall: float = 0.0

    @property
    def manner(self) -> Manner:
        return Manner(self.k, self.score)


@dataclass(frozen=True)
class Lesson:
    """Labelled examples with their scores, each made without the labels of its own fold of nights.

    Attributes:
        examples: the exposures.
        folds: int64 (exposure,).
        features: of all of them.
        ccd_bad: bool (ccd,), the bad examples among the CCDs.
        ccd, exposure: references of the two levels.
        scored: of all examples.
        bad_rows: int64, the exposures that are bad as a whole or in a CCD.
        novel: matrices of their scores, and of their CCDs', against references that share none of their reasons.
    """

    examples: Examples
    folds: np.ndarray
    features: FeatureMap
    ccd_bad: np.ndarray
    ccd: References
    exposure: References
    scored: Scored
    bad_rows: np.ndarray
    novel: tuple[np.ndarray, np.ndarray]

    @property
    def good_rows(self) -> np.ndarray:
        """Exposures that are good as a whole: int64."""
        return np.flatnonzero(self.examples.whole == GOOD)

    def without(self, fold: int, bad_rate: float) -> Fusion:
        """The exposures' fusion learned from the other folds; from all where those hold one kind alone."""
        good, bad = self.folds[self.good_rows] != fold, self.folds[self.bad_rows] != fold
        if not (good.any() and bad.any()):
            good, bad = np.ones_like(good), np.ones_like(bad)
        return self.calibrate(good, bad, bad_rate).fusion

    def calibrate(self, good: np.ndarray, bad: np.ndarray, bad_rate: float) -> Calibration:
        """The exposures' calibration from some of the good rows and some of the bad ones (masks)."""
        matrix = self.scored.matrix
        return _calibrate(
            score_names(self.features.channels),
            matrix[self.good_rows[good]],
            matrix[self.bad_rows[bad]],
            self.novel[0][bad],
            bad_rate,
        )

    def held_out(self, bad_rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """p_bad by fusions of the other folds: of good rows, of bad rows, and of these without their own reasons."""
        matrix = self.scored.matrix
        parts = (matrix[self.good_rows], self.folds[self.good_rows]), (matrix[self.bad_rows], self.folds[self.bad_rows])
        found = tuple(np.full(len(rows), np.nan) for rows in (self.good_rows, self.bad_rows, self.bad_rows))
        for fold in np.unique(self.folds):
            fusion = self.without(int(fold), bad_rate)
            for answers, (scores, folds) in zip(found, (*parts, (self.novel[0], parts[1][1])), strict=True):
                answers[folds == fold] = fusion.probability(scores[folds == fold])
        return found[0], found[1], found[2]


def prepare(examples: Examples, recipe: Recipe) -> Lesson:
    """Features, references and scores of labelled examples; `what_is_missing` must be empty."""
    folds = assign_folds(examples.night, recipe.folds, recipe.seed)
    features = learn_features(
        examples.raw, examples.whole == GOOD, recipe.channels, recipe.pca, unit_length=recipe.metric == "cosine"
    )
    found = features.apply(examples.raw)
    ccd_bad = clean_ccds(examples, found, folds, recipe) if recipe.clean else weak_ccds(examples)
    ccd = _ccd_references(examples, found.ccd, folds, ccd_bad)
    exposure = _exposure_references(examples, found.exposure, folds)
    scored = score_levels(features, ccd, exposure, examples.raw, folds, recipe.manner)
    bad_rows = np.flatnonzero(examples.any_bad())
    novel = _score_without_reasons(examples, features, ccd, exposure, folds, bad_rows, recipe.manner)
    return Lesson(examples, folds, features, ccd_bad, ccd, exposure, scored, bad_rows, novel)


def what_is_missing(examples: Examples) -> str:
    """Why nothing can be learned from these examples, in words; empty if something can."""
    good, bad = int((examples.whole == GOOD).sum()), int(examples.any_bad().sum())
    if good >= 2 and bad >= 2:
        return ""
    return f"{good} good and {bad} bad labelled exposures with usable images, at least 2 of each are needed"


def learn(examples: Examples, numbers: NumberScale, recipe: Recipe) -> Classifier:
    """Learn from labelled examples; `what_is_missing` must be empty."""
    lesson = prepare(examples, recipe)
    every = np.ones(len(lesson.good_rows), bool), np.ones(len(lesson.bad_rows), bool)
    return Classifier(
        mode=LABELLED,
        manner=recipe.manner,
        numbers=numbers,
        features=lesson.features,
        ccd=lesson.ccd,
        exposure=lesson.exposure,
        ccd_calibration=_calibrate_ccds(lesson, recipe.bad_rate),
        exposure_calibration=lesson.calibrate(*every, recipe.bad_rate),
        labelled_expnum=examples.expnum,
        labelled_fold=lesson.folds,
        labelled_bad=examples.any_bad(),
        settings={"thresholds": _thresholds(lesson, recipe)},
    )


def learn_unlabelled(examples: Examples, numbers: NumberScale, recipe: Recipe) -> Classifier:
    """A classifier of novelty alone: distance to the population, each exposure scored without itself."""
    examples = examples.select(thin(np.arange(len(examples.expnum)), POPULATION))
    everything = np.full(len(examples.expnum), GOOD, np.int8)
    folds = np.arange(len(examples.expnum), dtype=np.int64)
    channels = recipe.channels if len(everything) else ()
    features = learn_features(
        examples.raw, everything == GOOD, channels, recipe.pca, unit_length=recipe.metric == "cosine"
    )
    found = features.apply(examples.raw)
    population = Examples(
        examples.raw,
        examples.expnum,
        examples.night,
        examples.ccdnum,
        everything,
        np.zeros_like(examples.reasons),
        np.full(len(examples.ccd), GOOD, np.int8),
        np.zeros_like(examples.ccd_reasons),
    )
    ccd = _ccd_references(population, found.ccd, folds, np.zeros(len(examples.ccd), bool))
    exposure = _exposure_references(population, found.exposure, folds)
    scored = score_levels(features, ccd, exposure, examples.raw, folds, recipe.manner)
    return Classifier(
        mode=UNLABELLED,
        manner=recipe.manner,
        numbers=numbers,
        features=features,
        ccd=ccd,
        exposure=exposure,
        ccd_calibration=_no_weights(ccd_score_names(features.channels), scored.ccd_matrix),
        exposure_calibration=_no_weights(score_names(features.channels), scored.matrix),
        labelled_expnum=examples.expnum,
        labelled_fold=folds,
        labelled_bad=np.zeros(len(folds), bool),
        settings={},
    )


def assign_folds(night: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each exposure by its night; by its position where all nights fall into one fold: int64 (exposure,)."""
    assigned = night_folds(night, folds, seed)
    if len(np.unique(assigned)) > 1:
        return assigned
    return np.arange(len(night), dtype=np.int64) % folds


# Weak labels --------------------------------------------------------------------------------------------------------


def weak_ccds(examples: Examples) -> np.ndarray:
    """CCDs that are bad if a label on the exposure is taken to hold for each of its CCDs: bool (ccd,)."""
    whole = examples.whole[examples.exposure_of_ccd()]
    return np.asarray((examples.ccd == BAD) | ((whole == BAD) & (examples.ccd == UNKNOWN)))


def clean_ccds(examples: Examples, features: Features, folds: np.ndarray, recipe: Recipe) -> np.ndarray:
    """CCDs that are bad by themselves: bool (ccd,).

    A CCD label says so; a CCD of an exposure that is bad as a whole is if it lies further from the good CCDs, in any
    channel, than all but a few of the good ones.
    """
    good = _good_ccds(examples)
    channels = tuple(features.ccd)
    names = ccd_score_names(channels)
    references = _ccd_references(examples, features.ccd, folds, np.zeros(len(good), bool))
    scored = references.score(features.ccd, folds[examples.exposure_of_ccd()], recipe.manner)
    matrix = ccd_scores(scored, features.rare, channels)
    scale = OneSided.fit(matrix[good], is_rarity(names))
    novelty = largest_novelty(names, scale, matrix)
    far = novelty > np.quantile(novelty[good], CLEAN_QUANTILE)
    return np.asarray((examples.ccd == BAD) | (weak_ccds(examples) & far))


def _good_ccds(examples: Examples) -> np.ndarray:
    """CCDs that are good by their own label or their exposure's: bool (ccd,)."""
    whole = examples.whole[examples.exposure_of_ccd()]
    return np.asarray((examples.ccd == GOOD) | ((whole == GOOD) & (examples.ccd != BAD)))


# References ---------------------------------------------------------------------------------------------------------


def _ccd_references(
    examples: Examples, features: dict[str, np.ndarray], folds: np.ndarray, bad: np.ndarray
) -> References:
    owner = examples.exposure_of_ccd()
    reasons = np.where(examples.ccd == BAD, examples.ccd_reasons, examples.reasons[owner])
    rows = np.flatnonzero(bad | _good_ccds(examples))
    order = rows[np.lexsort((examples.ccdnum[rows], examples.expnum[owner[rows]], folds[owner[rows]]))]
    return References(
        expnum=examples.expnum[owner[order]],
        ccdnum=examples.ccdnum[order],
        bad=bad[order],
        reasons=np.where(bad, reasons, 0)[order],
        fold=folds[owner[order]],
        features={channel: values[order] for channel, values in features.items()},
    )


def _exposure_references(examples: Examples, features: dict[str, np.ndarray], folds: np.ndarray) -> References:
    bad = (examples.whole == BAD) | (examples.share_bad() >= WHOLE_SHARE)
    rows = np.flatnonzero(bad | (examples.whole == GOOD))
    order = rows[np.lexsort((examples.expnum[rows], folds[rows]))]
    return References(
        expnum=examples.expnum[order],
        ccdnum=np.full(len(order), -1, np.int32),
        bad=bad[order],
        reasons=np.where(bad, examples.reasons, 0)[order],
        fold=folds[order],
        features={channel: values[order] for channel, values in features.items()},
    )


# Calibration --------------------------------------------------------------------------------------------------------


def _score_without_reasons(
    examples: Examples,
    features: FeatureMap,
    ccd: References,
    exposure: References,
    folds: np.ndarray,
    rows: np.ndarray,
    manner: Manner,
) -> tuple[np.ndarray, np.ndarray]:
    """Score matrices of some bad exposures against references that share none of their reasons.

    Returns:
        (len(rows), score) and (their CCDs, score), in the order of `rows`.
    """
    combinations = examples.reasons[rows]
    sizes = examples.raw.sizes()[rows]
    matrix: np.ndarray | None = None
    ccd_matrix: np.ndarray | None = None
    for bits in np.unique(combinations):
        places = np.flatnonzero(combinations == bits)
        scored = score_levels(
            features,
            ccd.select(np.flatnonzero((ccd.reasons & bits) == 0)),
            exposure.select(np.flatnonzero((exposure.reasons & bits) == 0)),
            examples.raw.select(rows[places]),
            folds[rows[places]],
            manner,
        )
        if matrix is None or ccd_matrix is None:
            matrix = np.zeros((len(rows), scored.matrix.shape[1]))
            ccd_matrix = np.zeros((int(sizes.sum()), scored.ccd_matrix.shape[1]))
        matrix[places] = scored.matrix
        ccd_matrix[segment_rows((np.cumsum(sizes) - sizes)[places], sizes[places])] = scored.ccd_matrix
    assert matrix is not None
    assert ccd_matrix is not None
    return matrix, ccd_matrix


def _thresholds(lesson: Lesson, recipe: Recipe) -> dict[str, float]:
    """Thresholds for the precision and recall asked for, on probabilities by fusions of the other folds."""
    if not (recipe.precision or recipe.recall):
        return {}
    good, bad, _ = lesson.held_out(recipe.bad_rate)
    is_bad = np.arange(len(good) + len(bad)) >= len(good)
    return thresholds.choose(np.r_[good, bad], is_bad, recipe.bad_rate, recipe.precision, recipe.recall)


def _calibrate_ccds(lesson: Lesson, bad_rate: float) -> Calibration:
    examples, matrix = lesson.examples, lesson.scored.ccd_matrix
    good = thin(matrix[_good_ccds(examples) & ~lesson.ccd_bad])
    ccds = segment_rows(examples.raw.starts[lesson.bad_rows], examples.raw.sizes()[lesson.bad_rows])
    chosen = lesson.ccd_bad[ccds]
    names = ccd_score_names(lesson.features.channels)
    return _calibrate(names, good, matrix[ccds[chosen]], lesson.novel[1][chosen], bad_rate)


def _calibrate(
    names: Sequence[str], good: np.ndarray, bad: np.ndarray, novel: np.ndarray, bad_rate: float
) -> Calibration:
    """Fit fusion and novelty on scores of good and bad examples; `novel` are the bad ones without their own reasons."""
    if not len(bad):
        return _no_weights(names, good)
    scores = np.concatenate([good, bad, novel])
    is_bad = np.arange(len(scores)) >= len(good)
    weight = np.where(is_bad, 0.5, 1.0)
    fusion = fit_fusion(scores, is_bad, weight, bad_rate, is_rarity(names))
    return Calibration(tuple(names), fusion, _novelty_scale(names, fusion.one_sided, good))


def _no_weights(names: Sequence[str], scores: np.ndarray) -> Calibration:
    scale = OneSided.fit(scores, is_rarity(names))
    fusion = Fusion(scale, np.zeros(scores.shape[1]), 0.0)
    return Calibration(tuple(names), fusion, _novelty_scale(names, scale, scores))


def _novelty_scale(names: Sequence[str], scale: OneSided, good: np.ndarray) -> OneSided:
    return OneSided.fit(largest_novelty(names, scale, good)[:, None], np.zeros(1, bool))
