"""Reads what the report shows from a run folder; whatever is absent is empty, never an error, but for the decisions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcqa import __version__
from hpcqa.artifacts.catalog import CCD_DECISIONS, CLASSIFIER, DECISIONS, LABELS, MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.artifacts.store import open_arrays, read_json, read_provenance, read_table
from hpcqa.errors import DataError
from hpcqa.reasons import from_bits

logger = logging.getLogger(__name__)

Columns = Mapping[str, np.ndarray]

MANIFEST_COLUMNS = (
    *("expnum", "ccdnum", "ccdname", "camera", "exptime", "ra", "dec", "object"),
    *("table", "table_row", "cuts", "cut_detail"),
)
# Files whose content the report depends on; the tables carry their own digest, for the others it is computed.
TABLES = ("manifest", "labels", "truth", "decisions", "ccd_decisions", "classifier", "calibration", "attention")
PLAIN = ("evaluation", "metrics")


@dataclass(frozen=True)
class Known:
    """What truth or labels say of an exposure: bad as a whole, by some CCDs only, or good."""

    bad: bool
    words: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collected:
    """Everything that the page is made of, but for the pictures."""

    manifest: Columns
    decisions: Columns
    ccds: Columns
    known: Mapping[int, Known]
    known_source: str
    evaluation: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Provenance]
    settings: Mapping[str, Any] = field(default_factory=dict)
    labelled: frozenset[int] = frozenset()

    def unseen(self) -> dict[int, Known]:
        """What the truth says of the exposures that no label names; empty without a truth table."""
        if self.known_source != "truth":
            return {}
        return {expnum: known for expnum, known in self.known.items() if expnum not in self.labelled}


def collect(folder: RunFolder) -> Collected:
    """Read the run's tables.

    Raises:
        DataError: there are no decisions or no manifest, or one of the files is damaged.
    """
    decisions = read_table(folder.need("decisions", "classify"), DECISIONS)
    ccds = read_table(folder.need("ccd_decisions", "classify"), CCD_DECISIONS)
    manifest = read_table(folder.need("manifest", "manifest"), MANIFEST, MANIFEST_COLUMNS)
    known, source = _known(folder)
    return Collected(
        manifest=manifest,
        decisions=decisions,
        ccds=ccds,
        known=known,
        known_source=source,
        evaluation=_evaluation(folder),
        metrics=_metrics(folder),
        provenance=_provenance(folder),
        settings=_classifier_settings(folder),
        labelled=_labelled(folder),
    )


def digests(folder: RunFolder) -> dict[str, str]:
    """Content digests of the files that the report is made from, by their path in the run."""
    found = {}
    for name in TABLES:
        path = folder.find(name)
        if path is not None:
            found[folder.relative(path)] = read_provenance(path).content
    for name in PLAIN:
        path = folder.find(name)
        if path is not None:
            found[folder.relative(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def known_exposures(labels: Columns) -> dict[int, Known]:
    """One statement per exposure out of label rows on whole exposures (ccdnum -1) and on single CCDs; bad outweighs."""
    rows: dict[int, list[int]] = {}
    for row, expnum in enumerate(labels["expnum"].tolist()):
        rows.setdefault(expnum, []).append(row)
    return {expnum: _statement(labels, np.array(those)) for expnum, those in rows.items()}


def _statement(labels: Columns, rows: np.ndarray) -> Known:
    bad = rows[labels["bad"][rows]]
    if not len(bad):
        return Known(False, "good")
    reasons = tuple(from_bits(int(np.bitwise_or.reduce(labels["reasons"][bad]))))
    names = ", ".join(name.replace("_", " ") for name in reasons)
    if (labels["ccdnum"][bad] < 0).any():
        return Known(True, f"bad: {names}", reasons)
    count = len(np.unique(labels["ccdnum"][bad]))
    return Known(True, f"{count} bad CCD{'s' if count > 1 else ''}: {names}", reasons)


def _known(folder: RunFolder) -> tuple[dict[int, Known], str]:
    for name in ("truth", "labels"):
        path = folder.find(name)
        if path is not None:
            found = known_exposures(read_table(path, LABELS, ("expnum", "ccdnum", "bad", "reasons")))
            if found:
                return found, name
    return {}, ""


def _labelled(folder: RunFolder) -> frozenset[int]:
    path = folder.find("labels")
    return frozenset(read_table(path, LABELS, ("expnum",))["expnum"].tolist()) if path is not None else frozenset()


def _evaluation(folder: RunFolder) -> Mapping[str, Any]:
    path = folder.find("evaluation")
    content = read_json(path) if path is not None else {}
    return content if isinstance(content, dict) else {}


def _metrics(folder: RunFolder) -> tuple[Mapping[str, Any], ...]:
    """Lines of metrics.jsonl; one that a killed process left unfinished is skipped."""
    path = folder.find("metrics")
    found = []
    for line in path.read_text(errors="replace").splitlines() if path is not None else ():
        try:
            content = json.loads(line)
        except ValueError:
            logger.debug("%s: skipped an unfinished line", path)
            continue
        if isinstance(content, dict):
            found.append(content)
    return tuple(found)


def _provenance(folder: RunFolder) -> dict[str, Provenance]:
    found = {}
    for name in TABLES:
        path = folder.find(name)
        if path is not None:
            found[folder.relative(path)] = read_provenance(path)
    return found


def _classifier_settings(folder: RunFolder) -> dict[str, Any]:
    """The classifier's attributes that are single values or short lists."""
    path = folder.find("classifier")
    if path is None:
        return {}
    try:
        with open_arrays(path, CLASSIFIER) as file:
            attributes = file.attributes
    except DataError as problem:
        logger.warning("%s", problem)
        return {}
    return {name: value for name, value in sorted(attributes.items()) if _is_short(value)}


def _is_short(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.size <= 8
    return len(str(value)) <= 120


def code_version() -> str:
    """The version that renders the page."""
    return __version__
