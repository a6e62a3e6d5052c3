"""The fit stage: labels and embeddings to classifier.h5."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.parts import first_own_shard
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classifier_file, search, thresholds
from hpcqa.qa.blocks import NumberScale, thin
from hpcqa.qa.classifier import Classifier
from hpcqa.qa.embedded import NETWORK, Embedded, ExposureTable, embedding_paths, read_embeddings, read_scale
from hpcqa.qa.known import Known, as_examples
from hpcqa.qa.learn import GOOD, POPULATION, UNKNOWN, Examples, Recipe, learn, learn_unlabelled, what_is_missing
from hpcqa.splits import holdout

logger = logging.getLogger(__name__)

MANIFEST_COLUMNS = ("expnum", "band", "night", "cuts", "shard")


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write classifier.h5; without usable labels one that knows novelty alone.

    Raises:
        DataError: labels were given and nothing could be learned from them. The classifier is there all the same.
    """
    if not ranks.is_first:
        return
    output = folder.output("classifier")
    lender = None if output.exists() else classifier_lender(config, folder)
    if lender is not None:
        logger.info("fit: the classifier is that of %s, whose labels are the same", lender)
        return
    paths = embedding_paths(folder)
    digest, parents = stage_digest(config, "fit"), parents_of(folder, paths)
    if store.is_current(output, catalog.CLASSIFIER, config_digest=digest, parents=parents):
        logger.info("fit: %s is current", output)
        classifier = classifier_file.read(output)
    else:
        classifier = fit(config, folder, paths)
        instrument = config.instrument.name
        classifier_file.write(output, classifier, Provenance(digest, parents, instrument=instrument))
        logger.info(
            "fit: %s classifier of %d labelled exposures and %d reference CCDs",
            classifier.mode,
            len(classifier.labelled_expnum) if not classifier.settings["missing"] else 0,
            len(classifier.ccd.expnum),
        )
    _complain(config, str(classifier.settings["missing"]))


def classifier_lender(config: Config, folder: RunFolder) -> Path | None:
    """The earlier run whose classifier a run with survey.update uses: one with the same labels and settings of fit."""
    lent = folder.find("classifier")
    if not config.survey.update or lent is None:
        return None
    labels, theirs = folder.find("labels"), lent.parent / NAMES["labels"]
    made_alike = store.read_provenance(lent).config_digest == stage_digest(config, "fit")
    if labels is None or not theirs.exists() or not made_alike:
        return None
    same = store.read_provenance(labels).content == store.read_provenance(theirs).content
    return lent.parent if same else None


def _complain(config: Config, missing: str) -> None:
    if not missing:
        return
    if not config.survey.labels:
        logger.warning("fit: %s; every exposure will be undecided, with its novelty", missing)
        return
    error = DataError(
        f"survey.labels={config.survey.labels}: {missing}, so every exposure is undecided; add labels of exposures in "
        f"this survey and run fit again."
    )
    error.goes_on = True
    raise error


def parents_of(folder: RunFolder, embeddings: list[Path]) -> dict[str, str]:
    """Content digests of everything that the classifier is made from."""
    paths = [*embeddings, folder.need("labels", "manifest"), folder.need("manifest", "manifest")]
    calibration = folder.find("calibration")
    if calibration is not None:
        paths.append(calibration)
    parents = store.digests(folder, paths)
    network = store.read_provenance(embeddings[0]).parents.get(NETWORK)
    return parents if network is None else parents | {NETWORK: network}


def fit(config: Config, folder: RunFolder, paths: list[Path]) -> Classifier:
    """Read what is labelled and learn from it."""
    columns = store.read_table(folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
    exposures = ExposureTable.of_manifest(columns, first_own_shard(folder))
    known = fit_labels(config, folder, exposures)
    recipe = recipe_of(config)
    examples, scale, number_names = read_examples(config, folder, paths, exposures, known)
    missing = _missing(known, examples)
    if missing:
        examples, scale, number_names = read_examples(config, folder, paths, exposures, known, everything=True)
    trials: tuple[search.Trial, ...] = ()
    if not missing:
        recipe, trials = search.choose(examples, recipe, left_open(config))
        for line in search.in_words(trials):
            logger.info("fit: %s", line)
    learned = learn_unlabelled(examples, scale, recipe) if missing else learn(examples, scale, recipe)
    chosen = thresholds.in_words(learned.settings.get("thresholds", {}))
    if chosen:
        logger.info("fit: %s (cross-validated, for %g bad exposures of 100)", chosen, 100 * config.fit.bad_rate)
    settings = {
        **learned.settings,
        "missing": missing,
        "number_names": list(number_names),
        "recipe": dataclasses.asdict(recipe),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    return dataclasses.replace(learned, settings=settings)


def _missing(known: Known, examples: Examples) -> str:
    if not len(known.expnum):
        return "no labelled exposures"
    return what_is_missing(examples)


def left_open(config: Config) -> tuple[str, ...]:
    """The settings of fit that are to be chosen."""
    return tuple(name for name in search.SEARCHED if getattr(config.fit, name) in (0, "auto"))


def recipe_of(config: Config) -> Recipe:
    """The settings of learning; those that are left open where the search for them starts."""
    fit = config.fit
    given = {name: getattr(fit, name) for name in search.SEARCHED if name not in left_open(config)}
    return Recipe(
        **given,
        bad_rate=fit.bad_rate,
        folds=fit.folds,
        seed=config.seed,
        clean=fit.clean,
        precision=fit.precision,
        recall=fit.recall,
    )


def fitted_recipe(classifier: Classifier) -> Recipe:
    """The settings that a classifier was learned with, those that the search chose included."""
    settings = dict(classifier.settings["recipe"])
    return Recipe(**{**settings, "channels": tuple(settings["channels"])})


def fit_labels(config: Config, folder: RunFolder, exposures: ExposureTable) -> Known:
    """The labels to learn from: of this survey, less held-out nights where there is no truth table."""
    labels = store.read_table(folder.need("labels", "manifest"), catalog.LABELS, ("expnum", "ccdnum", "bad", "reasons"))
    known = Known.of_labels(labels)
    known = known.select(np.isin(known.expnum, exposures.expnum))
    if folder.find("truth") is not None or not len(known.expnum):
        return known
    night = exposures.night[exposures.rows(known.expnum, "labels")]
    return known.select(~holdout(night, config.seed, config.evaluate.holdout))


def read_examples(
    config: Config,
    folder: RunFolder,
    paths: list[Path],
    exposures: ExposureTable,
    known: Known,
    *,
    everything: bool = False,
) -> tuple[Examples, NumberScale, tuple[str, ...]]:
    """Labelled exposures (or some of all of them) with their blocks, the scale of the numbers, and their names."""
    labelled = known.exposures()
    others = exposures.expnum[~np.isin(exposures.expnum, labelled)]
    keep = labelled
    if everything or config.fit.unlisted_good:
        keep = np.union1d(labelled, thin(others, POPULATION))
    embedded, scale = read_scaled(folder, paths, exposures, keep)
    examples = as_examples(embedded, known)
    if config.fit.unlisted_good:
        unlisted = np.isin(examples.expnum, others)
        whole = np.where(unlisted & (examples.whole == UNKNOWN), GOOD, examples.whole).astype(np.int8)
        examples = dataclasses.replace(examples, whole=whole)
    return examples, scale, embedded.number_names


def read_scaled(
    folder: RunFolder, paths: list[Path], exposures: ExposureTable, keep: np.ndarray
) -> tuple[Embedded, NumberScale]:
    """Embedded exposures with their numbers as deviations; scaled by themselves where there is no calibration."""
    scale = read_scale(folder.find("calibration"))
    embedded = read_embeddings(paths, exposures, scale, keep)
    if scale is not None:
        return embedded, scale
    numbers = embedded.raw.ccd["numbers"]
    band = np.repeat(embedded.band, embedded.raw.sizes())
    scale = NumberScale.of_numbers(numbers, band)
    raw = dataclasses.replace(
        embedded.raw, ccd={**embedded.raw.ccd, "numbers": scale.apply(numbers, embedded.ccdnum, band)}
    )
    return dataclasses.replace(embedded, raw=raw), scale
