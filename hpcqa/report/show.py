"""`hpcqa show EXPNUM`: one exposure as the network sees it, as a PNG."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from hpcqa.artifacts.catalog import DECISIONS, MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import atomic_path, read_table
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.instruments import for_camera
from hpcqa.pixels.failures import in_words
from hpcqa.report.cards import sheet
from hpcqa.report.viewer import ExposureViews, Viewer

logger = logging.getLogger(__name__)


def show(config: Config, folder: RunFolder, expnum: int, out: Path) -> Path:
    """Write the PNG of an exposure: its CCDs' contexts and backgrounds at their places, details, focal plane.

    Args:
        config: the run's configuration.
        folder: a run that has shards.
        expnum: exposure number.
        out: the PNG, or a folder to put EXPNUM.png into.

    Returns:
        The path of the PNG.

    Raises:
        DataError: the run has no shards or they don't hold the exposure; says why where the manifest knows.
    """
    manifest = read_table(
        folder.need("manifest", "manifest"), MANIFEST, ("expnum", "camera", "band", "night", "cuts", "cut_detail")
    )
    rows = np.flatnonzero(manifest["expnum"] == expnum)
    if not len(rows):
        raise DataError(f"{folder.path}: exposure {expnum} is in none of the run's tables; check the number.")
    cut = manifest["cuts"][rows] != 0
    if cut.all():
        raise DataError(f"{folder.path}: exposure {expnum} was cut: {manifest['cut_detail'][rows[0]]}.")
    first = rows[~cut][0]
    camera = str(manifest["camera"][first])
    instrument = for_camera(camera)
    if instrument is None:
        raise DataError(f"{folder.path}: exposure {expnum} is of {camera}, which has no camera module.")
    seen = Viewer(config, folder).views(expnum)
    lines = [f"{camera}, band {manifest['band'][first]}, night {manifest['night'][first]}"]
    lines += _failed_in_words(seen) + [f"CCD {number}: its data contradict their DATASUM" for number in seen.wrong_sum]
    lines += _decision_in_words(folder, expnum)
    path = out / f"{expnum}.png" if out.is_dir() else out
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        sheet(seen, instrument, lines, stream)
    logger.info("wrote %s", path)
    return path


def _failed_in_words(seen: ExposureViews) -> list[str]:
    return [f"CCD {number} has no views: {in_words(bits)}" for number, bits in sorted(seen.failed.items()) if bits]


def _decision_in_words(folder: RunFolder, expnum: int) -> list[str]:
    path = folder.find("decisions")
    if path is None:
        return []
    decisions = read_table(path, DECISIONS)
    lines = []
    for at in np.flatnonzero(decisions["expnum"] == expnum):
        row = {name: values[at] for name, values in decisions.items()}
        said = f"{row['verdict']}, p_bad {row['p_bad']:.3f}, novelty {row['novelty']:.1f}, {row['reasons']}"
        lines.append(said.rstrip(", "))
        lines += [f"{name}: {row[name]}" for name in ("why", "evidence", "worst_ccds", "nearest") if row[name]]
    return lines
