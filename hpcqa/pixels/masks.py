"""Which pixels of a CCD to leave out: the data-quality file beside the image, and what is known of the chip."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcqa.errors import DataError
from hpcqa.instruments.base import CcdContext, Instrument, Region
from hpcqa.pixels.fits import ExposureFile, open_exposure
from hpcqa.pixels.fitsbytes import FileMissing
from hpcqa.pixels.fitshdus import ImageHdu

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A mask that leaves less than this is wrong more often than the image is: it is not used, and reported.
EVERYTHING = 0.999
NO_PROBLEM = ""
EVERYTHING_MASKED = "everything masked"


@dataclass(frozen=True)
class MaskResult:
    """`masked` is bool (rows, columns), True for pixels to leave out; `in_row` int32 (rows,), how many are in each row.

    `problem` is empty, or says why the mask file was not used; the image may be fine. `share` is the share of masked
    pixels by the file as it stands (0 without one), `found` whether there is a file. `doubt` says in words how the mask
    contradicts its DATASUM, though it is used.
    """

    masked: NDArray[np.bool_]
    in_row: NDArray[np.int32]
    problem: str = NO_PROBLEM
    share: float = 0.0
    found: bool = False
    doubt: str = ""


class MaskFile:
    """The mask file of an exposure, opened once for all CCDs; without a file every mask is that of the chip alone."""

    def __init__(self, paths: Iterable[Path], timeout: float | None = None, checksums: str = "ignore") -> None:
        """Args: `paths` where it may be, of which the first that is there is taken; others as in `open_exposure`."""
        self._file: ExposureFile | None = None
        self._problem = NO_PROBLEM
        # Opening is the only look at the file system that a time-out guards.
        for path in paths:
            try:
                self._file = open_exposure(path, timeout=timeout, checksums=checksums)
            except FileMissing:
                continue
            except DataError as problem:
                self._problem = str(problem)
            return

    def __enter__(self) -> MaskFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def load(self, hdu: ImageHdu, context: CcdContext, instrument: Instrument) -> MaskResult:
        """The mask of a CCD image; never raises on a bad mask file, but says so."""
        shape = hdu.shape
        if self._file is None:
            chip = _of_chip(context, instrument, shape)
            return MaskResult(*chip, self._problem, found=self._problem != NO_PROBLEM)
        try:
            dq_hdu = self._file.find(hdu.index, hdu.name, context.ccdnum)
            written_by = replace(context, plver=context.plver or self._file.primary.text("PLVER"))
            masked = np.ascontiguousarray(fitted(_marked(self._file, dq_hdu, written_by, instrument), shape))
        except DataError as problem:
            return MaskResult(*_of_chip(context, instrument, shape), str(problem), found=True)
        doubt = self._file.contradicted.get(dq_hdu.index, "")
        in_row = _in_rows(masked)
        share = int(in_row.sum()) / max(masked.size, 1)
        if share >= EVERYTHING:
            return MaskResult(*_of_chip(context, instrument, shape), EVERYTHING_MASKED, share, found=True, doubt=doubt)
        regions = instrument.bad_regions(context, shape)
        _add(masked, regions)
        in_row = _in_rows(masked) if regions else in_row
        return MaskResult(masked, in_row, NO_PROBLEM, share, found=True, doubt=doubt)


_local = threading.local()


def _buffer(shape: tuple[int, int]) -> NDArray[np.int32]:
    """This thread's array for the integers of a mask, which nobody keeps: fresh memory costs as much as decoding."""
    buffer: NDArray[np.int32] | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.shape != shape:
        buffer = _local.buffer = np.empty(shape, np.int32)
    return buffer


def _marked(file: ExposureFile, hdu: ImageHdu, context: CcdContext, instrument: Instrument) -> NDArray[np.bool_]:
    """Which pixels a mask file says to leave out, bool of its shape.

    Raises:
        DataError: it can't be read.
    """
    found = file.read_codes(hdu)
    if found is None:
        return _pixels_to_leave_out(file.read_integer(hdu, out=_buffer(hdu.shape)), context, instrument)
    from hpcqa.pixels.decoder import codes_to_flags

    codes, seen = found
    seen, bad = seen[seen != 0], np.zeros(256, np.bool_)
    bad[seen] = instrument.masked(seen.astype(np.int32), context)
    codes_to_flags(codes, bad)
    return codes.view(np.bool_)


def _pixels_to_leave_out(dq: NDArray[np.int32], context: CcdContext, instrument: Instrument) -> NDArray[np.bool_]:
    """What `instrument.masked` says, which is asked about the few pixels that are not zero: zero is always good."""
    masked: NDArray[np.bool_] = dq != 0
    places = np.flatnonzero(masked)
    good = ~instrument.masked(np.ascontiguousarray(dq).ravel()[places], context)
    masked.ravel()[places[good]] = False
    return masked


def open_mask(
    image_path: Path, instrument: Instrument, timeout: float | None = None, checksums: str = "ignore"
) -> MaskFile:
    """The mask file beside an image, by the camera's file names; with any of the suffixes .fits, .fits.fz, .fits.gz."""
    return MaskFile(mask_paths(image_path, instrument), timeout, checksums)


def mask_paths(image_path: Path, instrument: Instrument) -> list[Path]:
    """Where the mask file of an image may be, the likeliest first; none if the file name is not the camera's."""
    if instrument.parse_file_name(image_path) is None:
        return []
    path = instrument.companion(image_path, "dqmask")
    stem = path.name.removesuffix(".fz").removesuffix(".gz")
    return list(dict.fromkeys([path, *(path.with_name(stem + suffix) for suffix in ("", ".fz", ".gz"))]))


def chip_mask(context: CcdContext, instrument: Instrument, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The regions of the chip that are never to be used, bool (rows, columns); others get the same: leave it as is."""
    return _of_chip(context, instrument, shape)[0]


def _of_chip(
    context: CcdContext, instrument: Instrument, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    return _mask_of(shape, tuple(instrument.bad_regions(context, shape)))


# Nearly all chips of a camera have one of a few masks, and 8 MB of new memory for each cost as much as looking at them.
@lru_cache(maxsize=4)
def _mask_of(shape: tuple[int, int], regions: tuple[Region, ...]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    masked = np.zeros(shape, np.bool_)
    _add(masked, regions)
    return masked, _in_rows(masked)


def _in_rows(masked: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Masked pixels in each row."""
    from hpcqa.pixels.scanrows import masked_in_rows

    return masked_in_rows(masked.view(np.uint8))


def _add(masked: NDArray[np.bool_], regions: Iterable[Region]) -> None:
    for region in regions:
        masked[region.row0 : region.row1, region.col0 : region.col1] = True


def fitted(dq: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of the image's shape. Some pipeline versions left a border of one pixel on: it is cut off.

    Raises:
        DataError: the shapes differ in another way.
    """
    if dq.shape == shape:
        return dq
    if dq.shape == (shape[0] + 2, shape[1] + 2):
        return dq[1:-1, 1:-1]
    raise DataError(f"the mask has {dq.shape} pixels, the image {shape}.")
