"""The classify stage: every exposure and every CCD of the manifest gets a decision, or is told why not."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path

from hpcqa import __version__, instruments
from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.parts import first_own_shard
from hpcqa.artifacts.schema import Provenance, Schema
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.observe import track
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import set_threads
from hpcqa.qa import classifier_file
from hpcqa.qa.classifier import Classifier
from hpcqa.qa.decisions import Part, ccd_table, exposure_table, make_part, merge_parts
from hpcqa.qa.embedded import NETWORK, ExposureTable, embedding_paths, read_embedding
from hpcqa.qa.exports import Source, write_exports
from hpcqa.qa.thresholds import applied

logger = logging.getLogger(__name__)

OUTPUTS: tuple[tuple[str, Schema], ...] = (
    ("ccd_decisions", catalog.CCD_DECISIONS),
    ("decisions", catalog.DECISIONS),
)

MANIFEST_COLUMNS = (
    *("expnum", "ccdnum", "ccdname", "camera", "band", "night", "plver", "plprocid"),
    *("table", "table_row", "cuts", "cut_detail", "ccd_cuts"),
)


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write decisions.parquet and ccd_decisions.parquet, the same for any number of ranks."""
    paths = embedding_paths(folder)
    parents = mpi.broadcast(_parents(folder, paths) if ranks.is_first else {}, ranks)
    digest = stage_digest(config, "classify")
    current = [
        store.is_current(folder.output(name), schema, config_digest=digest, parents=parents) for name, schema in OUTPUTS
    ]
    if mpi.broadcast(all(current), ranks):
        logger.info("classify: %s is current", folder.output("decisions"))
        return
    classifier = _with_index(classifier_file.read(folder.need("classifier", "fit")), config.classify.index, ranks)
    parts, words = _decide_share(config, folder, ranks, paths, classifier)
    gathered = mpi.gather((parts, words), ranks)
    if gathered is None:
        return
    everything = [part for some, _ in gathered for part in some]
    words = next((names for _, names in gathered if names), ())
    _write(config, folder, classifier, merge_parts(everything), words, Provenance(digest, parents))


def _with_index(classifier: Classifier, index: str, ranks: Ranks) -> Classifier:
    """The classifier with what `classify.index` asks for."""
    if index == "exact":
        return classifier
    ccd, of_ccds = classifier.ccd.indexed(classifier.manner.k)
    exposure, of_exposures = classifier.exposure.indexed(classifier.manner.k)
    if ranks.is_first:
        count = sum(len(sides) for level in (ccd, exposure) for sides in level.indices.values())
        least = min(of_ccds, of_exposures)
        logger.info("classify: %d approximate indices, which find %.4f of the true neighbours or more", count, least)
    return dataclasses.replace(classifier, ccd=ccd, exposure=exposure)


def _parents(folder: RunFolder, paths: list[Path]) -> dict[str, str]:
    """Content digests of what the decisions are made from.

    Raises:
        DataError: the classifier was made by another network, or from other labels than there are now.
    """
    classifier = folder.need("classifier", "fit")
    made = {path: store.read_provenance(path) for path in [*paths, classifier, folder.need("manifest", "manifest")]}
    _refuse_other_network(classifier, made[classifier].parents, {path: made[path].parents for path in paths})
    labels = folder.find("labels")
    fitted = made[classifier].parents.get(NAMES["labels"])
    if labels is not None and fitted not in (None, store.read_provenance(labels).content):
        raise DataError(f"{classifier}: {labels} changed since it was fitted; run `hpcqa fit run={folder.path}` first.")
    return {folder.relative(path): provenance.content for path, provenance in made.items()}


def _refuse_other_network(
    classifier: Path, fitted: Mapping[str, str], embedded: Mapping[Path, Mapping[str, str]]
) -> None:
    expected = fitted.get(NETWORK)
    for path, parents in embedded.items():
        found = parents.get(NETWORK)
        expected = found if expected is None else expected
        if found != expected:
            raise DataError(
                f"{path}: made by network {str(found)[:12]}, but {classifier} is for embeddings of "
                f"{str(expected)[:12]}; run `hpcqa embed` and `hpcqa fit` again with one backbone."
            )


def _source(folder: RunFolder) -> Source:
    made = store.read_provenance(folder.need("classifier", "fit"))
    return Source(__version__, made.content, dt.datetime.fromisoformat(made.created).date())


def _decide_share(
    config: Config, folder: RunFolder, ranks: Ranks, paths: list[Path], classifier: Classifier
) -> tuple[list[Part], tuple[str, ...]]:
    """This rank's files, decided; and what the failure bits mean."""
    manifest = folder.need("manifest", "manifest")
    exposures = ExposureTable.of_manifest(
        store.read_table(manifest, catalog.MANIFEST, ("expnum", "band", "night", "cuts", "shard")),
        first_own_shard(folder),
    )
    set_threads(ranks.local_world_size)
    parts: list[Part] = []
    words: tuple[str, ...] = ()
    ccdnames = {ccd.ccdnum: ccd.ccdname for ccd in instruments.get(config.instrument.name).ccds}
    least = min(applied(config.classify, classifier.settings).review_above, config.classify.review_above)
    files = mpi.hand_out(paths, ranks)
    for path in track(files, "classify", total=len(paths), unit="files", shown=ranks.is_first):
        embedded = read_embedding(path, exposures, classifier.numbers)
        answers = classifier.decide(embedded.raw, embedded.expnum, config.classify.device)
        parts.append(make_part(embedded, answers, classifier, ccdnames, least))
        words = embedded.failure_words
    return parts, words


def remove_leftovers(folder: RunFolder) -> None:
    """Remove unfinished files of a classify that was killed; only one runs in a folder at a time."""
    for name, _ in OUTPUTS:
        store.remove_unfinished(folder.path, "classify", names=folder.output(name).name)
    exports = folder.output("exports")
    for place in (exports, exports / "survey-ccds"):
        store.remove_unfinished(place, "classify")


def _write(
    config: Config,
    folder: RunFolder,
    classifier: Classifier,
    part: Part,
    words: tuple[str, ...],
    provenance: Provenance,
) -> None:
    remove_leftovers(folder)
    manifest = store.read_table(folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
    ccds = ccd_table(manifest, part, classifier.mode, words, config.classify)
    exposures = exposure_table(manifest, part, ccds, classifier, applied(config.classify, classifier.settings))
    store.write_table(folder.output("ccd_decisions"), catalog.CCD_DECISIONS, ccds.columns, provenance)
    cuts = manifest["ccd_cuts"]
    with_tables = bool(config.survey.tables)
    write_exports(folder.output("exports"), exposures, ccds.columns, cuts, _source(folder), with_tables=with_tables)
    # The table of exposures comes last: where it is current, so is the rest.
    store.write_table(folder.output("decisions"), catalog.DECISIONS, exposures, provenance)
    counts = {name: int((exposures["verdict"] == name).sum()) for name in ("bad", "review", "good", "undecided")}
    logger.info("classify: %s", ", ".join(f"{count} {name}" for name, count in counts.items()))
