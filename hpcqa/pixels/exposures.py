"""One exposure in, what its CCDs show out: opens each of its files once and turns every fault into a reason bit."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.config import Config
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.instruments.base import CcdContext, Instrument
from hpcqa.pixels.failures import BIT, in_words
from hpcqa.pixels.fits import ExposureFile, open_exposure
from hpcqa.pixels.fitsbytes import FileChanged, FileMissing, NoAnswer, Room, WrongSum
from hpcqa.pixels.fitshdus import ImageHdu
from hpcqa.pixels.masks import MaskFile, open_mask
from hpcqa.pixels.measure import Facts
from hpcqa.pixels.profiles import reference_level
from hpcqa.pixels.sky import rows_apart
from hpcqa.pixels.stretch import relative_halves
from hpcqa.pixels.views import CcdViews, failure_of, look


@dataclass(frozen=True)
class CcdRow:
    """What the manifest says of one CCD image."""

    expnum: int
    ccdnum: int
    ccdname: str
    camera: str
    band: str
    mjd_obs: float
    exptime: float
    zpt: float
    ccdzpt: float
    plver: str
    plprocid: str
    image_path: str
    image_hdu: int

    @property
    def context(self) -> CcdContext:
        return CcdContext(self.ccdnum, self.expnum, self.band, self.mjd_obs, self.plver, self.plprocid)


@dataclass(frozen=True)
class CcdResult:
    """Views of one CCD, or why there are none.

    Attributes:
        views: None where it failed.
        failed: bits of failures.py.
        said: what was found, in words.
        trace: where in hpcqa it failed, if that is a mistake of ours.
        mask_problem: why its mask was not used; empty if it was, or if there is none.
        mask_missing: whether a mask was looked for in vain.
        doubt: how the image, or else its mask, contradicts its DATASUM, though it was used; empty if neither does.
    """

    views: CcdViews | None
    failed: int = 0
    said: str = ""
    trace: str = ""
    mask_problem: str = ""
    mask_missing: bool = False
    doubt: str = ""


@dataclass(frozen=True)
class Backgrounds:
    """The background maps of an exposure relative to its sky.

    Attributes:
        sky: what they are relative to, ADU; NaN without a single CCD.
        maps: (n, H, W) float16, NaN where unknown or failed.
        noise: the same shape, expected noise.
    """

    sky: float
    maps: np.ndarray
    noise: np.ndarray


def read_exposure(rows: Sequence[CcdRow], instruments: Mapping[str, Instrument], config: Config) -> list[CcdResult]:
    """Views and numbers of an exposure's CCDs, in the order of `rows`.

    Args:
        rows: the CCDs; usually all in one file, but each may have its own.
        instruments: by the rows' camera.
        config: uses views and shard.
    """
    results: dict[int, CcdResult] = {}
    files: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        files.setdefault(row.image_path, []).append(place)
    for path, places in files.items():
        wanted = {place: rows[place] for place in places}
        results |= _read_file(path, wanted, instruments, config)
    return [results[place] for place in range(len(rows))]


def _read_file(
    path: str, rows: Mapping[int, CcdRow], instruments: Mapping[str, Instrument], config: Config
) -> dict[int, CcdResult]:
    results: dict[int, CcdResult] = {}
    if not path:
        return dict.fromkeys(rows, CcdResult(None, BIT["missing_file"], "no image file was found for the table's name"))
    try:
        # The mask first: should it not answer, the image still has all of its time.
        with (
            _masks_of(path, rows, instruments, config) as masks,
            open_exposure(Path(path), timeout=config.shard.read_timeout, checksums=config.shard.checksums) as file,
        ):
            images: dict[int, ImageHdu] = {}
            for place, row in rows.items():
                try:
                    images[place] = file.find(row.image_hdu, row.ccdname, row.ccdnum)
                except DataError as error:
                    bit = BIT["unreadable_file" if file.damage else "missing_hdu"]
                    results[place] = CcdResult(None, bit, str(error))
            # In file order, so that the file is read from front to back.
            for place in sorted(images, key=lambda place: images[place].index):
                results[place] = _read_ccd(
                    file, masks, images[place], rows[place], instruments[rows[place].camera], config
                )
                if results[place].failed & BIT["timed_out"]:
                    break
    except (DataError, EnvironmentProblem, OSError) as error:
        return _fill(results, rows, _bit_of(error, "unreadable_file"), str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one file's; the trace goes to the log
        said = f"{path}: cannot be looked at: {type(error).__name__}: {error}"
        lost = CcdResult(None, BIT["not_measured"], said, traceback.format_exc())
        return {place: results.get(place, lost) for place in rows}
    return _fill(results, rows, BIT["timed_out"], f"{path}: given up after {config.shard.read_timeout:g} s")


def _fill(results: dict[int, CcdResult], rows: Mapping[int, CcdRow], bit: int, said: str) -> dict[int, CcdResult]:
    return {place: results.get(place, CcdResult(None, bit, said)) for place in rows}


_BITS: tuple[tuple[type[Exception], str], ...] = (
    (NoAnswer, "timed_out"),
    (FileChanged, "changed_file"),
    (FileMissing, "missing_file"),
    (WrongSum, "wrong_sum"),
)


def _bit_of(error: Exception, otherwise: str) -> int:
    """The reason bit of a failed read; `otherwise` names it when nothing more is known."""
    return BIT[next((name for kind, name in _BITS if isinstance(error, kind)), otherwise)]


def _masks_of(path: str, rows: Mapping[int, CcdRow], instruments: Mapping[str, Instrument], config: Config) -> MaskFile:
    """The mask file beside an image file."""
    if not config.shard.use_masks:
        return MaskFile([])
    camera = next(iter(rows.values())).camera
    # Half of the time, so that a mask that stops answering later on leaves the other half to the image.
    return open_mask(Path(path), instruments[camera], config.shard.read_timeout / 2, config.shard.checksums)


def _read_ccd(
    file: ExposureFile, masks: MaskFile, hdu: ImageHdu, row: CcdRow, instrument: Instrument, config: Config
) -> CcdResult:
    if len(hdu.shape) != 2 or min(hdu.shape) < config.shard.min_size:
        return CcdResult(None, BIT["wrong_shape"], f"{file.path}[{hdu.index}]: {hdu.shape} pixels")
    try:
        pixels, rest = file.read_part(hdu, rows_apart(hdu.shape), _buffer(hdu.shape), _room())
        mask = masks.load(hdu, row.context, instrument)
        if rest is not None and failure_of(pixels[:: rows_apart(hdu.shape)], 1):
            rest.read()
            rest = None
        failed = failure_of(pixels, config.shard.min_size)
        if failed:
            return CcdResult(None, failed, f"{file.path}[{hdu.index}]: {in_words(failed)}")
        facts = facts_of(row, instrument, mask.problem, file.primary, hdu)
        views = look(pixels, mask.masked, facts, config.views, rest, mask.in_row)
        missing = config.shard.use_masks and not mask.found
        doubt = file.contradicted.get(hdu.index, "") or mask.doubt
        return CcdResult(views, mask_problem=mask.problem, mask_missing=missing, doubt=doubt)
    except (DataError, EnvironmentProblem, OSError) as error:
        return CcdResult(None, _bit_of(error, "unreadable_pixels"), str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one CCD's; the trace goes to the log
        said = f"{file.path}[{hdu.index}]: cannot be measured: {type(error).__name__}: {error}"
        # As text: a traceback itself would hold on to the pixels.
        return CcdResult(None, BIT["not_measured"], said, traceback.format_exc())


_local = threading.local()


def _buffer(shape: tuple[int, int]) -> np.ndarray:
    """This thread's image buffer: touching 33 MB of new memory costs as much as decoding into it."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.shape != shape:
        buffer = _local.buffer = np.empty(shape, np.float32)
    return buffer


def _room() -> Room:
    """This thread's room for compressed bytes."""
    if not hasattr(_local, "room"):
        _local.room = Room()
    room: Room = _local.room
    return room


def facts_of(row: CcdRow, instrument: Instrument, problem: str, primary: Mapping[str, Any], hdu: ImageHdu) -> Facts:
    """What is known of an image beside its pixels, from the manifest, the camera and the headers."""
    saturation = min(instrument.saturation, instrument.saturation_of(row.context))
    return Facts(
        exptime=row.exptime if math.isfinite(row.exptime) else math.nan,
        zpt=row.zpt,
        ccdzpt=row.ccdzpt,
        sky_rate=instrument.sky_rate(row.band),
        gain=instrument.gain,
        read_noise=instrument.read_noise,
        saturation=saturation,
        pixel_scale=instrument.pixel_scale,
        amplifiers=instrument.amplifiers(hdu.shape, row.ccdnum),
        mask_problem=problem,
        header=instrument.header_numbers(primary, hdu.header),
    )


def relative_backgrounds(results: Sequence[CcdResult], shape: tuple[int, int]) -> Backgrounds:
    """The background maps relative to the median sky of the exposure's CCDs.

    Where the sky is near zero (sky-subtracted images) they are relative to the square of the expected noise.
    """
    seen = [result.views for result in results if result.views is not None]
    maps = np.full((len(results), *shape), np.nan, np.float16)
    noise = maps.copy()
    if not seen:
        return Backgrounds(math.nan, maps, noise)
    level = float(np.median([view.level for view in seen]))
    reference = max(reference_level(level, 0.0), float(np.median([view.reference for view in seen])))
    for place, result in enumerate(results):
        if result.views is not None:
            maps[place] = relative_halves(result.views.background, level, reference)
            noise[place] = relative_halves(result.views.background_noise, 0.0, reference)
    return Backgrounds(reference, maps, noise)
