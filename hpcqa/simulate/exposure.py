"""One exposure on disk: the image file, the mask file beside it, and last the facts that tables are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hpcqa.artifacts.store import read_json, write_json
from hpcqa.config import Config
from hpcqa.instruments import get
from hpcqa.instruments.base import Ccd
from hpcqa.simulate import fitsfile, headers
from hpcqa.simulate.compress import Compressed, compress_floats, compress_integers
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.plan import ExposurePlan
from hpcqa.simulate.render import Renderer
from hpcqa.streams import stream

VERSION = "v1"  # of the images, in their file names
IMAGES, FACTS = "images", "exposures"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Part:
    ccd: Ccd
    facts: dict[str, float]
    image: Compressed
    mask: Compressed


def image_path(plan: ExposurePlan, camera: str) -> Path:
    """Path of the image under images/, as the survey table names it."""
    name = get(camera).image_name("image", plan.started, plan.band, VERSION)
    return Path(camera) / "CP" / headers.PLVER / f"CP{plan.night}" / name


def facts_path(survey: Path, expnum: int) -> Path:
    """Where the facts of a finished exposure are."""
    return survey / FACTS / f"{expnum}.json"


def is_complete(survey: Path, plan: ExposurePlan, camera: str) -> bool:
    """Whether all files of an exposure are there; the facts are written last."""
    image = survey / IMAGES / image_path(plan, camera)
    mask = get(camera).companion(image, "dqmask")
    return facts_path(survey, plan.expnum).exists() and image.exists() and mask.exists()


def make_exposure(config: Config, survey: Path, plan: ExposurePlan, threads: int = 1) -> None:
    """Render and write an exposure.

    Args:
        survey: folder that holds images/ and exposures/.
        threads: CCDs that are rendered at once; the result does not depend on it.

    Raises:
        EnvironmentProblem: the disk refuses.
    """
    plane = FocalPlane(get(config.instrument.name))
    camera = plane.instrument
    renderer = Renderer(config.seed, plane, plan)
    for ccd in camera.ccds:
        renderer.stamps(ccd)
    # A CCD that is known to be dead is not in the files, so the numbers of the extensions shift.
    ccds = [ccd for ccd in camera.ccds if not camera.is_dead(renderer.context(ccd, headers.PLVER))]
    made = _mapped(lambda ccd: _make_ccd(config.seed, renderer, ccd), ccds, threads)
    image = survey / IMAGES / image_path(plan, camera.name)
    cards = [headers.extension_cards(config.seed, plan, plane, part.ccd, part.facts) for part in made]
    mask = camera.companion(image, "dqmask")
    masks, images = [part.mask for part in made], [part.image for part in made]
    for path, prodtype, pixels in ((mask, "dqmask", masks), (image, "image", images)):
        primary = headers.primary_cards(config.seed, plan, camera.name, prodtype)
        fitsfile.write(path, primary, list(zip(cards, pixels, strict=True)))
    rows = [
        {"ccdnum": part.ccd.ccdnum, "ccdname": part.ccd.ccdname, "image_hdu": number, **part.facts}
        for number, part in enumerate(made, 1)
    ]
    write_json(facts_path(survey, plan.expnum), {"expnum": plan.expnum, "ccds": rows})


def read_facts(survey: Path, plan: ExposurePlan) -> list[dict[str, Any]]:
    """What was measured on each CCD of a finished exposure, in the order of its extensions."""
    rows: list[dict[str, Any]] = read_json(facts_path(survey, plan.expnum))["ccds"]
    return rows


def _make_ccd(seed: int, renderer: Renderer, ccd: Ccd) -> _Part:
    drawn = renderer.render(ccd)
    dither = int(stream(seed, "simulate", renderer.plan.expnum, "dither", ccd.ccdnum).integers(1, 10001))
    image = compress_floats(drawn.image, dither_seed=dither)
    return _Part(ccd, drawn.facts, image, compress_integers(drawn.mask))


def _mapped(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
