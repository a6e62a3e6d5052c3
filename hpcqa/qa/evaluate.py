"""The evaluate stage: decisions against exposures that the classifier has not seen, and against controls.

Controls are the same neighbours on less: numbers alone, networks alone, an untrained network; and the published recipe.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.parts import first_own_shard, part_files
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classifier_file, metrics
from hpcqa.qa.blocks import EMBEDDINGS, NETWORK, NUMBERS, NumberScale, Raw, thin
from hpcqa.qa.embedded import ExposureTable, embedding_paths, read_embeddings
from hpcqa.qa.fit import MANIFEST_COLUMNS, fit_labels, fitted_recipe, read_examples
from hpcqa.qa.known import Known
from hpcqa.qa.learn import BAD, GOOD, Examples, Recipe, learn, what_is_missing
from hpcqa.qa.published import VIEW, published_scores
from hpcqa.reasons import REASONS

logger = logging.getLogger(__name__)

FEW_CCDS = 2
FALSE_RATE = 0.01
VERDICTS = ("bad", "review", "good", "undecided")


@dataclass(frozen=True)
class Truth:
    """Exposures with a known answer that the classifier has not learned from, by increasing number.

    Attributes:
        expnum: int64; night: int32; bad: bool; reasons: int64 bits.
        few: bool, bad in one or two CCDs only.
        novel: bool, bad for reasons none of which occurs in the labels.
    """

    expnum: np.ndarray
    night: np.ndarray
    bad: np.ndarray
    reasons: np.ndarray
    few: np.ndarray
    novel: np.ndarray

    def select(self, rows: np.ndarray) -> Truth:
        return Truth(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write evaluation.json; a sentence instead of figures where there is nothing to compare with."""
    if not ranks.is_first:
        return
    output, parents = folder.output("evaluation"), _parents(folder)
    digest = stage_digest(config, "evaluate")
    if _is_current(output, digest, parents):
        logger.info("evaluate: %s is current", output)
        return
    content = {"config_digest": digest, "parents": parents, **evaluate(config, folder)}
    store.write_json(output, content)
    if content["missing"]:
        logger.warning("evaluate: %s", content["missing"])
        return
    found = content["figures"]["average_precision"]
    interval = f"{found['low']:.3f} to {found['high']:.3f}" if np.isfinite(found["low"]) else "one night, no interval"
    logger.info(
        "evaluate: average precision %.3f (%s) on %d exposures against %s",
        *(found["value"], interval, content["exposures"], content["against"]),
    )


def _parents(folder: RunFolder) -> dict[str, str]:
    names = (("decisions", "classify"), ("ccd_decisions", "classify"), ("labels", "manifest"))
    paths = [folder.need(name, stage) for name, stage in names]
    paths += [path for path in [folder.find("truth")] if path is not None]
    paths += part_files(folder, "embeddings-untrained")
    return store.digests(folder, paths)


def _is_current(path: Path, digest: str, parents: Mapping[str, str]) -> bool:
    if not path.exists():
        return False
    content = store.read_json(path)
    return bool(content.get("config_digest") == digest and content.get("parents") == dict(parents))


def evaluate(config: Config, folder: RunFolder) -> dict[str, Any]:
    """The content of evaluation.json."""
    columns = store.read_table(folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
    exposures = ExposureTable.of_manifest(columns, first_own_shard(folder))
    known = fit_labels(config, folder, exposures)
    truth, against = find_truth(folder, exposures, known)
    decisions = store.read_table(folder.need("decisions", "classify"), catalog.DECISIONS)
    place = np.searchsorted(decisions["expnum"], truth.expnum)
    p_bad, verdict = decisions["p_bad"][place].astype(np.float64), decisions["verdict"][place]
    decided = np.isfinite(p_bad)
    chosen = truth.select(decided)
    content: dict[str, Any] = {
        "against": against,
        "exposures": len(chosen.expnum),
        "bad": int(chosen.bad.sum()),
        "undecided": int((~decided).sum()),
        "nights": len(np.unique(chosen.night)),
        "missing": "",
        "confusion": confusion(truth.bad, verdict),
    }
    if not chosen.bad.any() or chosen.bad.all():
        what = f"{int(chosen.bad.sum())} bad and {int((~chosen.bad).sum())} good"
        content["missing"] = f"{what} decided exposures with a known answer outside the labels, both kinds are needed"
        return content
    weights = metrics.night_weights(chosen.night, config.evaluate.bootstrap, config.seed)
    content |= describe(chosen, p_bad[decided], weights)
    named = [str(text).split(",") for text in decisions["reasons"][place][decided]]
    content["reasons"] = by_reason(chosen, p_bad[decided], named, known, weights)
    content["ccds"] = of_ccds(config, folder, chosen)
    scores = control_scores(config, folder, exposures, known, chosen)
    content["controls"] = [
        {"name": name, "doc": doc, **figures(chosen, score, weights)} for name, (doc, score) in scores.items()
    ]
    content["differences"] = [
        {"name": name, "less": less, "doc": doc, **differences(chosen, scores[name][1], scores[less][1], weights)}
        for name, less, doc in DIFFERENCES
        if name in scores and less in scores
    ]
    return content


def of_ccds(config: Config, folder: RunFolder, truth: Truth) -> dict[str, Any]:
    """Figures over the CCDs of exposures: of all, and of those that are bad in some of their CCDs alone."""
    table = store.read_table(
        folder.need("ccd_decisions", "classify"), catalog.CCD_DECISIONS, ("expnum", "ccdnum", "p_bad")
    )
    rows = np.flatnonzero(np.isin(table["expnum"], truth.expnum) & np.isfinite(table["p_bad"]))
    expnum, p_bad = table["expnum"][rows], table["p_bad"][rows].astype(np.float64)
    bad, local = bad_ccds(read_answers(folder)[0], expnum, table["ccdnum"][rows])
    night = truth.night[np.searchsorted(truth.expnum, expnum)]
    found: dict[str, Any] = {}
    for name, chosen in (("all", np.arange(len(rows))), ("local", np.flatnonzero(local))):
        chosen = thin(chosen)
        if not bad[chosen].any() or bad[chosen].all():
            continue
        weights = metrics.night_weights(night[chosen], config.evaluate.bootstrap, config.seed)
        ranked = metrics.Ranked.of(p_bad[chosen], bad[chosen])
        found[name] = {
            "ccds": len(chosen),
            "bad": int(bad[chosen].sum()),
            "average_precision": metrics.with_interval(functools.partial(metrics.average_precision, ranked), weights),
            "roc_area": metrics.with_interval(functools.partial(metrics.roc_area, ranked), weights),
        }
    return found


def bad_ccds(answers: Known, expnum: np.ndarray, ccdnum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which CCDs are bad, and which belong to exposures that are so in some CCDs alone: bool (ccd,) each.

    Where an answer names CCDs, those are bad and the others are not; else all of a bad exposure are.
    """
    named = answers.select((answers.ccdnum >= 0) & answers.bad)
    local = np.isin(expnum, named.expnum)
    whole, _ = answers.whole(expnum)
    own, _ = answers.ccds(expnum, ccdnum)
    return np.where(local, own == BAD, whole == BAD), local


def read_answers(folder: RunFolder) -> tuple[Known, str]:
    """What is known of every exposure: the truth table, or else the labels; and which of them it is."""
    path = folder.find("truth")
    statements = store.read_table(path or folder.need("labels", "manifest"), catalog.LABELS)
    return Known.of_labels(statements), "truth" if path is not None else "labels"


def find_truth(folder: RunFolder, exposures: ExposureTable, known: Known) -> tuple[Truth, str]:
    """Exposures outside `known` with a known answer, and what says so."""
    everything, name = read_answers(folder)
    outside = np.isin(everything.expnum, exposures.expnum) & ~np.isin(everything.expnum, known.exposures())
    truth = as_truth(everything.select(outside), exposures, known)
    return truth, "the truth table, on exposures without a label" if name == "truth" else "labels of held-out nights"


def as_truth(answers: Known, exposures: ExposureTable, known: Known) -> Truth:
    """Answers on exposures: an exposure is bad as a whole or in a CCD, and good only if said so of the whole."""
    expnum = answers.exposures()
    whole, reasons = answers.whole(expnum)
    single = answers.select((answers.ccdnum >= 0) & answers.bad)
    place = np.searchsorted(expnum, single.expnum)
    num_ccds = np.bincount(place, minlength=len(expnum))
    of_ccds = np.zeros(len(expnum), np.int64)
    np.bitwise_or.at(of_ccds, place, single.reasons)
    few = (num_ccds > 0) & (num_ccds <= FEW_CCDS) & (reasons & ~of_ccds == 0)
    bad = (whole == BAD) | (num_ccds > 0)
    seen = int(np.bitwise_or.reduce(known.reasons)) if len(known.reasons) else 0
    every = reasons | of_ccds
    night = exposures.night[exposures.rows(expnum, "truth")]
    truth = Truth(expnum, night, bad, every, few, bad & (every & seen == 0))
    return truth.select(np.flatnonzero(bad | (whole == GOOD)))


def confusion(bad: np.ndarray, verdict: np.ndarray) -> dict[str, Any]:
    """Counts of verdicts for good and for bad exposures."""
    return {
        "verdicts": list(VERDICTS),
        "good": [int((~bad & (verdict == name)).sum()) for name in VERDICTS],
        "bad": [int((bad & (verdict == name)).sum()) for name in VERDICTS],
    }


@dataclass(frozen=True)
class Measure:
    """A figure as a function of weights, and how many bad exposures it is about (None: all)."""

    figure: metrics.Figure
    count: int | None = None

    def found(self, weights: np.ndarray) -> dict[str, float]:
        """Value, interval and count."""
        counted = {} if self.count is None else {"count": self.count}
        return {**metrics.with_interval(self.figure, weights), **counted}


def measures(truth: Truth, score: np.ndarray) -> dict[str, Measure]:
    """Average precision, ROC areas and recalls at the false-positive rate.

    Few exposures pass a false-positive rate of 1 %, which makes recalls noisy; the ROC area of the same exposures
    against the good ones uses all of them.
    """
    ranked = metrics.Ranked.of(score, truth.bad)
    found = {
        "average_precision": Measure(lambda weight: metrics.average_precision(ranked, weight)),
        "roc_area": Measure(lambda weight: metrics.roc_area(ranked, weight)),
    }
    for name, rows in (("", truth.bad), ("_few_ccds", truth.few), ("_novel", truth.novel)):
        found[f"recall{name}"] = _recall(ranked, rows)
        if name:
            found[f"roc_area{name}"] = Measure(_roc_area_of(ranked, rows | ~truth.bad), int(rows.sum()))
    return found


def _recall(ranked: metrics.Ranked, rows: np.ndarray) -> Measure:
    return Measure(lambda weight: metrics.recall_at(ranked, weight, rows, FALSE_RATE), int(rows.sum()))


def _roc_area_of(ranked: metrics.Ranked, rows: np.ndarray) -> metrics.Figure:
    return lambda weight: metrics.roc_area(ranked, weight * rows)


def figures(truth: Truth, score: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Every measure of a score with its interval."""
    return {name: measure.found(weights) for name, measure in measures(truth, score).items()}


def differences(truth: Truth, first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Every measure of the first score less that of the second, with the interval of the difference."""
    one, other = measures(truth, first), measures(truth, second)
    return {
        name: Measure(metrics.difference(one[name].figure, other[name].figure), one[name].count).found(weights)
        for name in one
    }


def describe(truth: Truth, p_bad: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Figures, curves and calibration of probabilities."""
    return {
        "false_rate": FALSE_RATE,
        "figures": figures(truth, p_bad, weights),
        "curves": metrics.curves(metrics.Ranked.of(p_bad, truth.bad)),
        "reliability": metrics.reliability(p_bad, truth.bad),
        "calibration_error": metrics.calibration_error(p_bad, truth.bad),
    }


def by_reason(
    truth: Truth, p_bad: np.ndarray, named: list[list[str]], known: Known, weights: np.ndarray
) -> list[dict[str, Any]]:
    """Recall at the false-positive rate, and how often the reason was named, for each reason that occurs."""
    ranked = metrics.Ranked.of(p_bad, truth.bad)
    rows = []
    for position, name in enumerate(REASONS):
        inside = (truth.reasons >> position & 1).astype(bool)
        if not inside.any():
            continue
        labelled = len(np.unique(known.expnum[(known.reasons >> position & 1).astype(bool)]))
        right = np.mean([name in named[row] for row in np.flatnonzero(inside)])
        rows.append(
            {"reason": name, "labelled": labelled, "named": float(right), **_recall(ranked, inside).found(weights)}
        )
    return rows


# Controls -----------------------------------------------------------------------------------------------------------

# Name, sentence, whose embeddings, channels.
CONTROLS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("numbers", "the measured numbers alone", "embeddings", NUMBERS),
    ("untrained", "the untrained network alone", "embeddings-untrained", EMBEDDINGS),
    ("network", "the trained network alone", "embeddings", NETWORK),
    (
        "numbers+untrained",
        "numbers and the untrained network",
        "embeddings-untrained",
        (*NUMBERS, *EMBEDDINGS),
    ),
    ("numbers+network", "numbers and the trained network", "embeddings", (*NUMBERS, *NETWORK)),
)


# What is compared exposure by exposure: name, less which, what that tells.
DIFFERENCES = (
    ("network", "untrained", "what training gives the network"),
    ("numbers+network", "numbers", "what the trained network gives beside the numbers"),
    ("numbers+network", "numbers+untrained", "what training gives beside the numbers"),
    ("numbers+untrained", "numbers", "what the untrained network gives beside the numbers"),
)


def control_scores(
    config: Config, folder: RunFolder, exposures: ExposureTable, known: Known, truth: Truth
) -> dict[str, tuple[str, np.ndarray]]:
    """Sentence and scores of each control, on the same exposures and with the decisions' settings of fit."""
    recipe = fitted_recipe(classifier_file.read(folder.need("classifier", "fit")))
    scores: dict[str, tuple[str, np.ndarray]] = {}
    for artifact in ("embeddings", "embeddings-untrained"):
        if folder.find(artifact) is None:
            continue
        task = _Task.of(config, folder, exposures, known, truth, artifact)
        if task is None:
            continue
        for name, doc, source, channels in CONTROLS:
            if source == artifact:
                scores[name] = doc, task.score(dataclasses.replace(recipe, channels=channels))
        if VIEW in task.examples.raw.ccd:
            doc = f"the published recipe on the {VIEW} view, {'un' if 'un' in artifact else ''}trained network"
            name = "published-untrained" if "untrained" in artifact else "published"
            scores[name] = doc, published_scores(task.examples, task.raw)
    return scores


@dataclass(frozen=True)
class _Task:
    """Labelled exposures and those to score, from one folder of embeddings."""

    examples: Examples
    scale: NumberScale
    raw: Raw
    expnum: np.ndarray

    @classmethod
    def of(
        cls,
        config: Config,
        folder: RunFolder,
        exposures: ExposureTable,
        known: Known,
        truth: Truth,
        artifact: str,
    ) -> _Task | None:
        paths = embedding_paths(folder, artifact)
        examples, scale, _ = read_examples(config, folder, paths, exposures, known)
        embedded = read_embeddings(paths, exposures, scale, truth.expnum)
        if what_is_missing(examples) or not np.array_equal(embedded.expnum, truth.expnum):
            return None
        return cls(examples, scale, embedded.raw, embedded.expnum)

    def score(self, recipe: Recipe) -> np.ndarray:
        learned = learn(self.examples, self.scale, recipe)
        return np.asarray(learned.decide(self.raw, self.expnum).p_bad)
