"""Where the network looks: pictures of a few CCDs with the attention of its last block beside them."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup

from hpcqa.artifacts.catalog import ATTENTION
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import open_arrays
from hpcqa.errors import DataError
from hpcqa.report import indexed
from hpcqa.report.charts import Chart
from hpcqa.report.pictures import enlarge

logger = logging.getLogger(__name__)

VIEWS = {"context": "the whole CCD", "background": "its background without stars", "detail": "its stars"}
HEIGHT = 256  # of a picture, about, in pixels
NOTE = (
    "First the CCDs that the network suspects most of a defect, then ordinary ones, out of a sample of the survey. "
    "Below each view, where its summary token looks in the last block: bright patches count most."
)


def charts(folder: RunFolder, images: Path) -> list[Chart]:
    """One chart of all pictures, whose files are written into `images`; none where training left none."""
    path = folder.find("attention")
    if path is None:
        return []
    try:
        with open_arrays(path, ATTENTION) as file:
            found = {column.name: file.read(column.name) for column in ATTENTION.columns if column.name in file}
    except DataError as problem:
        logger.warning("report: no pictures of attention: %s", problem)
        return []
    shown = "".join(_figure(found, place, images) for place in range(len(found["expnum"])))
    if not shown:
        return []
    header = ("CCD", "log-odds of a defect", *(f"share on patches, {view}" for view in VIEWS if view in found))
    rows = [_row(found, place) for place in range(len(found["expnum"]))]
    markup = Markup(f'<div class="attention">{shown}</div>')  # its texts are escaped where they are made
    return [Chart("Where the network looks", NOTE, markup, header, rows, span=3)]


def _name(found: Mapping[str, np.ndarray], place: int) -> str:
    return f"{found['expnum'][place]}, CCD {found['ccdnum'][place]}"


def _row(found: Mapping[str, np.ndarray], place: int) -> tuple[str, ...]:
    shares = (found[f"{view}_attention"][place].sum((1, 2)).mean() for view in VIEWS if view in found)
    return _name(found, place), f"{found['suspicion'][place]:.2f}", *(f"{share:.2f}" for share in shares)


def _figure(found: Mapping[str, np.ndarray], place: int, images: Path) -> str:
    """Markup of one CCD: each view, and its attention below it."""
    name = _name(found, place)
    columns = []
    for view, words in VIEWS.items():
        if view not in found:
            continue
        seen = found[view][place].astype(np.float32)
        scale = max(1, round(HEIGHT / seen.shape[0]))
        patch = seen.shape[0] // found[f"{view}_attention"].shape[2]
        weights = enlarge(found[f"{view}_attention"][place].mean(0), patch * scale)
        file = f"attention-{place}-{view}"
        sources = (
            (f"{file}.png", indexed.grey(enlarge(seen, scale)), f"{words} of exposure {name}"),
            (f"{file}-weights.png", indexed.heat(weights), f"attention on {words} of exposure {name}"),
        )
        columns.append("".join(_image(images / source, picture, alt) for source, picture, alt in sources))
    if not columns:
        return ""
    held = "".join(f"<div>{column}</div>" for column in columns)
    odds = float(found["suspicion"][place])
    caption = html.escape(f"{name}, log-odds of a defect {odds:.1f}" if np.isfinite(odds) else name)
    return f'<figure><div class="views">{held}</div><figcaption>{caption}</figcaption></figure>'


def _image(path: Path, picture: indexed.Indexed, alt: str) -> str:
    path.write_bytes(indexed.png(picture))
    rows, columns = picture.pixels.shape
    source = html.escape(f"images/{path.name}", quote=True)
    return (
        f'<img src="{source}" width="{columns}" height="{rows}" alt="{html.escape(alt, quote=True)}" '
        'loading="lazy" decoding="async">'
    )
