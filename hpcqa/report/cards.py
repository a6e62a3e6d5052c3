"""Exposure cards: what the page says and shows of one exposure, and the PNG files of its pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from hpcqa.errors import DataError
from hpcqa.instruments import for_camera
from hpcqa.instruments.base import Instrument
from hpcqa.report import figures, indexed
from hpcqa.report.choose import Choice
from hpcqa.report.collect import Collected, Columns
from hpcqa.report.pictures import Mosaic, Place, enlarge, mosaic, upright
from hpcqa.report.viewer import ExposureViews

logger = logging.getLogger(__name__)

PLANE_WIDTH, SHEET_WIDTH = 640, 2400
WORST = 3
EXTENT = {"exposure": "the whole exposure", "ccds": "single CCDs only"}
# The background maps are asinh(z / 2) of their deviation; three of these units are 20 sigma, already gross.
BACKGROUND_REACH = 3.0


class Views(Protocol):
    """Where pictures come from: report.viewer.Viewer."""

    def __contains__(self, expnum: int) -> bool: ...

    def views(self, expnum: int) -> ExposureViews: ...


@dataclass(frozen=True)
class Picture:
    """One image of a card. `boxes` outline CCDs, in the picture's own pixels."""

    source: str
    alt: str
    caption: str
    width: int
    height: int
    boxes: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Stamp:
    """One of the worst CCDs: the whole of it, its background, and its stars."""

    ccdname: str
    p_bad: float
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Card:
    """One exposure."""

    expnum: int
    verdict: str
    p_bad: float
    novelty: float
    reasons: tuple[str, ...]
    shown_because: str
    header: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    known: str
    ccds: tuple[tuple[int, str], ...]
    planes: tuple[Picture, ...]
    stamps: tuple[Stamp, ...]
    no_pictures: str


def split_words(text: str) -> tuple[str, ...]:
    """The entries of a list in words: separated by semicolons, or else by commas outside brackets."""
    parts = text.split(";") if ";" in text else re.split(r",\s*(?![^(]*\))", text)
    return tuple(part.strip() for part in parts if part.strip())


def make_card(data: Collected, choice: Choice, views: Views | None, images: Path) -> Card:
    """The card of one row of the decisions; its pictures are written into `images`."""
    row = {name: values[choice.row] for name, values in data.decisions.items()}
    expnum = int(row["expnum"])
    rows = np.flatnonzero(data.ccds["expnum"] == expnum)
    order = rows[np.argsort(-np.nan_to_num(data.ccds["p_bad"][rows], nan=-1.0), kind="stable")]
    worst = [(int(data.ccds["ccdnum"][at]), float(data.ccds["p_bad"][at])) for at in order[:WORST]]
    planes, stamps, problem = _pictures(expnum, str(row["camera"]), worst, views, images)
    known = data.known.get(expnum)
    names = {int(data.ccds["ccdnum"][at]): str(data.ccds["ccdname"][at]) for at in rows}
    return Card(
        expnum=expnum,
        verdict=str(row["verdict"]),
        p_bad=float(row["p_bad"]),
        novelty=float(row["novelty"]),
        reasons=split_words(str(row["reasons"])),
        shown_because=choice.why,
        header=_header(data, row),
        facts=_facts(row, _worst_in_words(data.ccds, order)),
        known=known.words if known else "",
        ccds=tuple(sorted(names.items())),
        planes=planes,
        stamps=stamps,
        no_pictures=problem,
    )


def _header(data: Collected, row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = np.flatnonzero(data.manifest["expnum"] == row["expnum"])[:1]
    found = [("camera", str(row["camera"])), ("band", str(row["band"])), ("night", str(row["night"]))]
    for at in rows:
        found.append(("exposure time", f"{data.manifest['exptime'][at]:g} s"))
        found.append(("RA, Dec", f"{data.manifest['ra'][at]:.3f}, {data.manifest['dec'][at]:+.3f}"))
        found.append(("object", str(data.manifest["object"][at]).strip()))
    found.append(("processing", " ".join(filter(None, (str(row["plver"]), str(row["plprocid"]))))))
    return tuple((name, value) for name, value in found if value and "nan" not in value)


def _worst_in_words(ccds: Columns, order: np.ndarray, most: int = 5, least: float = 0.1) -> tuple[str, ...]:
    """Name, probability and reasons of the worst CCDs, and where on them."""
    found = []
    for at in order[:most]:
        if ccds["p_bad"][at] >= least:
            name = str(ccds["ccdname"][at]) or str(ccds["ccdnum"][at])
            reasons = str(ccds["reasons"][at]).replace(",", ", ").replace("_", " ")
            where = f" ({ccds['where'][at]})" if ccds["where"][at] else ""
            found.append(f"{name} {ccds['p_bad'][at]:.2f} {reasons}".rstrip() + where)
    return tuple(found)


def _facts(row: Mapping[str, Any], worst: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    counts = f"{row['num_decided']} of {row['num_ccds']} decided, {row['num_bad_ccds']} bad by themselves"
    found = (
        ("Why", (str(row["why"]),) if row["why"] else ()),
        ("Stands out (σ)", split_words(str(row["evidence"]))),
        ("Worst CCDs", worst),
        ("Nearest labelled", split_words(str(row["nearest"]))),
        ("Extent", (EXTENT.get(str(row["extent"]), ""),)),
        ("CCDs", (counts,)),
    )
    return tuple((name, entries) for name, entries in found if any(entries))


def _pictures(
    expnum: int, camera: str, worst: Sequence[tuple[int, float]], views: Views | None, images: Path
) -> tuple[tuple[Picture, ...], tuple[Stamp, ...], str]:
    """Focal planes, stamps of the worst CCDs, and in words why there are none."""
    instrument = for_camera(camera)
    if views is None or expnum not in views or instrument is None:
        return (), (), "No pictures: the exposure is in no shard."
    try:
        seen = views.views(expnum)
    except DataError as error:
        logger.warning("exposure %d has no pictures: %s", expnum, error)
        return (), (), f"No pictures: {error}"
    if not seen.context:
        return (), (), "No pictures: no CCD of the exposure could be read."
    return _planes(seen, instrument, worst, images), _stamps(seen, instrument, worst, images), ""


def _planes(
    seen: ExposureViews, instrument: Instrument, worst: Sequence[tuple[int, float]], images: Path
) -> tuple[Picture, ...]:
    context = mosaic(seen.context, instrument, PLANE_WIDTH)
    background = mosaic(_alike(seen.background, seen.context), instrument, PLANE_WIDTH)
    outlined = tuple(place for number, _ in worst if (place := context.place(number)) is not None)
    return (
        _plane(
            f"{seen.expnum}-context.png",
            indexed.grey(context.pixels, context.covered),
            context,
            f"Focal plane of exposure {seen.expnum}, sky-subtracted and stretched",
            "All CCDs, sky-subtracted and stretched; the worst are outlined",
            images,
            outlined,
        ),
        _plane(
            f"{seen.expnum}-background.png",
            indexed.diverging(background.pixels, background.covered, reach=BACKGROUND_REACH),
            background,
            f"Background of exposure {seen.expnum} without stars, against the usual pattern",
            "Background without stars: red above, blue below the usual pattern",
            images,
        ),
    )


def _plane(
    name: str,
    picture: indexed.Indexed,
    plane: Mosaic,
    alt: str,
    caption: str,
    images: Path,
    boxes: tuple[Place, ...] = (),
) -> Picture:
    (images / name).write_bytes(indexed.png(picture))
    rows, columns = plane.pixels.shape
    return Picture(f"images/{name}", alt, caption, columns, rows, boxes)


def _stamps(
    seen: ExposureViews, instrument: Instrument, worst: Sequence[tuple[int, float]], images: Path
) -> tuple[Stamp, ...]:
    names = {ccd.ccdnum: ccd.ccdname for ccd in instrument.ccds}
    found = []
    for number, p_bad in worst:
        if number not in seen.context:
            continue
        name = names.get(number, str(number))
        whole = upright(seen.context[number], instrument)
        pixels = upright(_alike(seen.background, seen.context)[number], instrument)
        background = indexed.diverging(pixels, np.isfinite(pixels), reach=BACKGROUND_REACH)
        views = (
            ("context", whole, indexed.grey(whole), "the whole CCD"),
            ("background", pixels, background, "its background against the usual"),
            ("detail", seen.detail[number], indexed.grey(seen.detail[number]), "stars and sky at full resolution"),
        )
        pictures = []
        for view, pixels, drawn, words in views:
            file = f"{seen.expnum}-{number}-{view}.png"
            (images / file).write_bytes(indexed.png(drawn))
            alt = f"CCD {name} of exposure {seen.expnum}: {words}"
            pictures.append(Picture(f"images/{file}", alt, words, pixels.shape[1], pixels.shape[0]))
        found.append(Stamp(name, p_bad, tuple(pictures)))
    return tuple(found)


def _alike(maps: Mapping[int, np.ndarray], views: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Maps enlarged to about the size of other views of the same CCDs, so that both mosaics have one scale."""
    factors = [views[number].shape[0] // image.shape[0] for number, image in maps.items() if number in views]
    factor = max(1, min(factors, default=1))
    return {number: enlarge(image, factor) for number, image in maps.items()}


def sheet(seen: ExposureViews, instrument: Instrument, lines: Sequence[str], stream: BinaryIO) -> None:
    """One PNG of everything the network sees of an exposure: context, background, details, focal plane."""
    context = mosaic(seen.context, instrument, SHEET_WIDTH)
    background = mosaic(_alike(seen.background, seen.context), instrument, SHEET_WIDTH)
    missing = tuple(
        (float(place.left), float(place.top), float(place.width), float(place.height), place.ccdname)
        for place in context.places
        if place.ccdnum not in seen.context
    )
    panels = [
        figures.Panel(
            "context: whole CCDs, sky-subtracted", indexed.grey(context.pixels, context.covered).rgba(), missing
        ),
        figures.Panel(
            "background: without stars, against the usual pattern",
            indexed.diverging(background.pixels, background.covered, reach=BACKGROUND_REACH).rgba(),
        ),
        figures.Panel("detail: stars and sky at full resolution", indexed.grey(_tiled(seen.detail)).rgba()),
        figures.Panel(
            "focal plane, as one image",
            indexed.diverging(enlarge(seen.focal_plane, 4), reach=BACKGROUND_REACH).rgba(),
        ),
    ]
    figures.sheet(stream, f"Exposure {seen.expnum} as the network sees it", lines, panels)


def _tiled(details: Mapping[int, np.ndarray], gap: int = 2) -> np.ndarray:
    """The CCDs' detail mosaics in a nearly square grid, in the order of their numbers."""
    if not details:
        return np.zeros((64, 64), np.float32)
    tiles = [details[number] for number in sorted(details)]
    rows, columns = tiles[0].shape
    across = int(np.ceil(np.sqrt(len(tiles))))
    down = -(-len(tiles) // across)
    grid = np.full((down * (rows + gap) - gap, across * (columns + gap) - gap), np.nan, np.float32)
    for number, tile in enumerate(tiles):
        top, left = number // across * (rows + gap), number % across * (columns + gap)
        grid[top : top + rows, left : left + columns] = tile
    return grid
