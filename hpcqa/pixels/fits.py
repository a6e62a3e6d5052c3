"""The reader of FITS images: every exposure opened once, every CCD read with one call to the system.

Tiles of RICE_1 and PLIO_1 go through hpcqa's own compiled decoder (decoder.py), plain images are read directly, and all
else (other codecs, scaled values) is left to astropy, one HDU at a time. Values are those that astropy gives, bit for
bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpcqa.errors import DataError
from hpcqa.pixels import tiles
from hpcqa.pixels.fitsapart import read_apart
from hpcqa.pixels.fitsbytes import ByteSource, Room, WrongSum
from hpcqa.pixels.fitshdus import FIRST_LOOK, ImageHdu, padded, read_headers
from hpcqa.pixels.fitsheader import Header
from hpcqa.pixels.fitsother import read_with_astropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcqa.pixels.scan import Sums

_PLAIN_KINDS = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


class ExposureFile:
    """An open FITS file with images; reading from several threads at once is safe.

    `damage` says in words why the file ends before it should; it is empty for a whole one. `contradicted` says of each
    HDU that was read, by its index, how its data contradict their DATASUM; those that don't are not there.
    """

    def __init__(self, source: ByteSource, checksums: str = "ignore") -> None:
        """Args: `checksums` as in `open_exposure`."""
        self._source, self._checksums = source, checksums
        self.contradicted: dict[int, str] = {}
        self.path = source.path
        self.primary: Header
        self.primary, self.images, self._cubes, self.damage = source.together(lambda: read_headers(source))
        self._by_name: dict[str, list[ImageHdu]] = {}
        self._by_number: dict[int, list[ImageHdu]] = {}
        for hdu in self.images:
            for name in {hdu.name.upper(), hdu.header.text("DETPOS").strip().upper()} - {""}:
                self._by_name.setdefault(name, []).append(hdu)
            if hdu.ccdnum is not None:
                self._by_number.setdefault(hdu.ccdnum, []).append(hdu)

    def __enter__(self) -> ExposureFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    def find(self, index: int, ccdname: str = "", ccdnum: int | None = None) -> ImageHdu:
        """The image of a CCD: by its name if an HDU bears it, else by its CCDNUM, else by the number of the HDU.

        Among several that bear the same name the one with the right CCDNUM is taken, then that of the right number.

        Raises:
            DataError: no such HDU, or the HDU of that number is another CCD's; says what is wrong with the file.
        """
        wanted = ccdname.strip().upper()
        named = self._by_name.get(wanted, [])
        numbered = [] if ccdnum is None else self._by_number.get(ccdnum, [])
        found = [hdu for hdu in named if hdu in numbered] or named or numbered
        if not found:
            found = [hdu for hdu in self.images if hdu.index == index and _may_be(hdu, wanted, ccdnum)]
        if found:
            return next((hdu for hdu in found if hdu.index == index), found[0])
        there = ", ".join(hdu.name or str(hdu.index) for hdu in self.images) or "none"
        cubes = "".join(f" HDU {i} is no image but a cube of {axes} pixels." for i, axes in self._cubes.items())
        damage = f" It is not whole: {self.damage}" if self.damage else ""
        raise DataError(f"{self.path}: no image HDU {index} named '{ccdname}'; the file has {there}.{cubes}{damage}")

    def read(self, hdu: ImageHdu, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The whole image.

        Args:
            hdu: one of `images`.
            out: where to put it, float32 (rows, columns), C-contiguous; a new array if None.

        Returns:
            float32 (rows, columns) in ADU, native-endian; blank pixels are NaN.

        Raises:
            DataError: damaged, truncated, changed since it was opened, or of an unknown kind.
        """
        out = _target(out, hdu.shape, np.float32)
        self._expect_next(hdu)
        if _is_plain(hdu.header) and not hdu.compressed:
            out[...] = self._plain(hdu)
            return out
        job = _Job.prepare(self, hdu)
        if job is None or (not job.layout.quantised and job.layout.blank is not None):
            out[...] = self._other(hdu)
        elif job.layout.quantised:
            job.run("read_floats", out)
        else:
            whole = np.empty(hdu.shape, np.int32)
            job.run("read_integers", whole)
            out[...] = whole
        return out

    def read_part(
        self, hdu: ImageHdu, every: int, out: NDArray[np.float32] | None = None, room: Room | None = None
    ) -> tuple[NDArray[np.float32], Rest | None]:
        """The image, of which only each `every`-th row is decoded yet if its rows are compressed one by one.

        Args:
            hdu, out: as for `read`.
            every: rows of which one is decoded at once.
            room: for the compressed bytes; it belongs to the rest until that is read.

        Returns:
            As `read`, and how to get the other rows; None if all are there.

        Raises:
            DataError: as `read`.
        """
        rows, cols = hdu.shape
        job = _Job.prepare(self, hdu, room) if hdu.compressed and every > 1 else None
        if job is None or not job.layout.quantised or job.layout.tile != (1, cols):
            return self.read(hdu, out), None
        self._expect_next(hdu)
        out = _target(out, hdu.shape, np.float32)
        coded = job.coded()
        first, following = _rows_in_turn(rows, every)
        Rest(job, coded.only(first), out).read()
        return out, Rest(job, coded.only(following), out)

    def read_binned(self, hdu: ImageHdu, step: int, masked: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Means of the finite pixels in cells of step x step pixels, without the full image in memory.

        Args:
            hdu: one of `images`.
            step: side of a cell in pixels; cells at the far edges may be smaller.
            masked: bool (rows, columns), pixels to leave out.

        Returns:
            float32 (ceil(rows / step), ceil(columns / step)) in ADU; NaN where no pixel is left.
        """
        job = _Job.prepare(self, hdu)
        if job is None or not job.layout.quantised or job.layout.across != 1:
            return bin_image(self.read(hdu), step, masked)
        mask = _mask_for(masked, hdu.shape)
        out = np.empty((-(-hdu.shape[0] // step), -(-hdu.shape[1] // step)), np.float32)
        job.run("read_binned", mask, masked is not None, step, hdu.shape, out)
        self._expect_next(hdu)
        return out

    def read_integer(self, hdu: ImageHdu, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The whole image of integers (a data-quality mask), int32 (rows, columns).

        Args:
            hdu: one of `images`.
            out: where to put it, C-contiguous; a new array if None.

        Raises:
            DataError: as `read`; or the image is not of integers, or they don't fit.
        """
        if not hdu.integer:
            raise DataError(f"{self.path}[{hdu.index}]: holds real numbers where a mask of integers was expected.")
        job = _Job.prepare(self, hdu)
        self._expect_next(hdu)
        out = _target(out, hdu.shape, np.int32)
        if job is not None:
            job.run("read_integers", out)
            return out
        values = self._other(hdu)
        if values.dtype.kind == "f":
            values = np.nan_to_num(values, nan=0.0)
        if values.size and (values.max() >= 2**31 or values.min() < -(2**31)):
            raise DataError(f"{self.path}[{hdu.index}]: the mask's values don't fit into 32 bits.")
        out[...] = values
        return out

    def read_codes(self, hdu: ImageHdu) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """The whole image of integers (a data-quality mask) if all of them fit into a byte.

        Args:
            hdu: one of `images`.

        Returns:
            uint8 (rows, columns), and the values that there are, ascending; None if the image must be read as integers:
            they don't fit, or are not stored in compressed rows.

        Raises:
            DataError: as `read`.
        """
        job = _Job.prepare(self, hdu) if hdu.integer else None
        if job is None or job.layout.quantised or job.layout.tile != (1, hdu.shape[1]):
            return None
        from hpcqa.pixels import decoder

        self._expect_next(hdu)
        out, seen, coded = np.empty(hdu.shape, np.uint8), np.zeros(256, np.bool_), job.coded()
        failed, fits = decoder.read_codes(coded.data, coded.tiles, coded.code, coded.extra, out, seen)
        job.check(coded, failed)
        return (out, np.flatnonzero(seen)) if fits else None

    def _plain(self, hdu: ImageHdu) -> NDArray[Any]:
        kind = np.dtype(_PLAIN_KINDS[hdu.header.integer("BITPIX", 0)])
        size = hdu.shape[0] * hdu.shape[1] * kind.itemsize
        return self.data(hdu)[:size].view(kind).reshape(hdu.shape)

    def _other(self, hdu: ImageHdu) -> NDArray[Any]:
        raw = self._source.read(hdu.header_offset, hdu.data_offset - hdu.header_offset) + self.data(hdu).tobytes()
        try:
            return (read_apart if hdu.compressed else read_with_astropy)(raw, hdu.index == 0, hdu.shape)
        except ValueError as problem:
            raise DataError(f"{self.path}[{hdu.index}]: can't be decoded: {problem}.") from problem

    def data(self, hdu: ImageHdu, padding: int = 0, room: Room | None = None) -> NDArray[np.uint8]:
        """The bytes of an HDU's data up to the end of their last block, and `padding` zeros; in `room` if there is one.

        Raises:
            WrongSum: they contradict their DATASUM, and that is to be an error.
            DataError: as `read`.
        """
        size = min(padded(hdu.data_size), self._source.size - hdu.data_offset)
        found = self._source.read_padded(hdu.data_offset, size, padding, room)
        if self._checksums != "ignore" and "DATASUM" in hdu.header:
            self._check_sum(hdu, found[:size])
        return found

    def beginning(self, hdu: ImageHdu, size: int) -> NDArray[np.uint8]:
        """The first bytes of an HDU's data, which are not compared with their sum."""
        return self._source.read_padded(hdu.data_offset, size, 0)

    def _check_sum(self, hdu: ImageHdu, data: NDArray[np.uint8]) -> None:
        from hpcqa.pixels import fitssum

        wanted = fitssum.sum_wanted(hdu.header)
        if wanted is None or (found := fitssum.sum_of(data)) == wanted:
            return
        said = (
            f"{self.path}[{hdu.index}]: the data contradict their DATASUM, {wanted}: their sum is {found}. They were "
            "damaged, or changed by a tool that left the sum as it was; fetch the file again."
        )
        if self._checksums == "fail":
            raise WrongSum(said)
        self.contradicted[hdu.index] = said

    def _expect_next(self, hdu: ImageHdu) -> None:
        """CCDs are read in file order more often than not: let the system fetch the next one meanwhile."""
        self._source.expect(padded(hdu.data_offset + hdu.data_size), padded(hdu.data_size) + FIRST_LOOK)


def open_exposure(path: Path, *, timeout: float | None = None, checksums: str = "ignore") -> ExposureFile:
    """Open a FITS file and read its headers.

    Args:
        path: .fits, .fits.fz or .fits.gz.
        timeout: seconds that all its reads together may wait for an answer; None waits for ever.
        checksums: what to do with images whose data contradict their DATASUM: "ignore" it, "report" it in
            `contradicted`, or "fail" to read them.

    Raises:
        DataError: the file is missing, empty, truncated, damaged or not FITS, or did not answer in time.
    """
    source = ByteSource(Path(path), timeout)
    try:
        return ExposureFile(source, checksums)
    except BaseException:
        source.close()
        raise


def bin_image(image: NDArray[np.float32], step: int, masked: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """What `ExposureFile.read_binned` gives, for an image in memory, float32 (rows, columns)."""
    from hpcqa.pixels import decoder

    out = np.empty((-(-image.shape[0] // step), -(-image.shape[1] // step)), np.float32)
    mask = _mask_for(masked, (image.shape[0], image.shape[1]))
    decoder.bin_image(np.ascontiguousarray(image, np.float32), mask, masked is not None, step, out)
    return out


def _may_be(hdu: ImageHdu, ccdname: str, ccdnum: int | None) -> bool:
    """Whether nothing in an HDU's header says that it is another CCD's."""
    return (not ccdname or not hdu.name) and (ccdnum is None or hdu.ccdnum is None)


def _target(out: NDArray[Any] | None, shape: tuple[int, int], kind: type) -> NDArray[Any]:
    """The caller's array if it fits, or a new one."""
    if out is None:
        return np.empty(shape, kind)
    if out.shape != shape or out.dtype != kind or not out.flags.c_contiguous:
        raise ValueError(f"out must be {np.dtype(kind)} {shape} and contiguous")
    return out


def _mask_for(masked: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if masked is None:
        return np.zeros((1, shape[1]), np.bool_)
    if masked.shape != shape or masked.dtype != np.bool_:
        raise ValueError(f"the mask must be bool {shape}")
    return np.ascontiguousarray(masked)


class _Coded(NamedTuple):
    """Tiles as the functions of decoder.py take them; see there."""

    data: NDArray[np.uint8]
    tiles: NDArray[np.int64]
    scaling: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], bool]
    code: NDArray[np.int64]
    randoms: NDArray[np.float32]
    extra: NDArray[Any]

    def only(self, chosen: NDArray[np.int64]) -> _Coded:
        """Some of the tiles, by their places."""
        scales, zeros, blanks, has_blank = self.scaling
        scaling = scales.take(chosen), zeros.take(chosen), blanks.take(chosen), has_blank
        return self._replace(tiles=self.tiles.take(chosen, axis=0), scaling=scaling)


@lru_cache(maxsize=8)
def _rows_in_turn(rows: int, every: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each `every`-th row, and the others."""
    taken = np.arange(rows) % every == 0
    return np.flatnonzero(taken), np.flatnonzero(~taken)


@dataclass(frozen=True)
class Rest:
    """Rows of an image that are still compressed; see ExposureFile.read_part."""

    job: _Job
    coded: _Coded
    out: NDArray[np.float32]

    def read(self) -> None:
        """Decode them into the image.

        Raises:
            DataError: one is damaged.
        """
        from hpcqa.pixels import decoder

        self.job.check(self.coded, decoder.read_floats(*self.coded, self.out))

    def scan(self, masked: NDArray[np.bool_], in_row: NDArray[np.int32], sums: Sums) -> None:
        """Decode them into the image, and add all of its rows to a scan; `in_row` is the masked pixels in each.

        Raises:
            DataError: one is damaged.
        """
        from hpcqa.pixels import readscan

        hidden = masked.view(np.uint8)
        failed = readscan.read_and_scan(
            self.coded, self.out, hidden, in_row, sums.step, sums.split, sums.facts, sums.arrays, sums.numbers
        )
        self.job.check(self.coded, failed)


@dataclass
class _Job:
    """The compressed bytes and the tiles of an image."""

    where: str
    layout: tiles.Layout
    table: tiles.Tiles
    data: NDArray[np.uint8]

    @classmethod
    def prepare(cls, file: ExposureFile, hdu: ImageHdu, room: Room | None = None) -> _Job | None:
        """Read what the image needs; None if our decoder can't have it."""
        from hpcqa.pixels import rice

        where = f"{file.path}[{hdu.index}]"
        if not hdu.compressed:
            return None
        try:
            layout = tiles.read_layout(hdu.header)
            table_size, heap_size = layout.num_tiles * layout.row_bytes, hdu.data_size - layout.heap
            if table_size > hdu.data_size or heap_size < 0:
                raise ValueError("the table of tiles is larger than its data")
            # All of an image comes with one call to the system, table and tiles.
            found = file.data(hdu, rice.PADDING, room) if layout.ours else file.beginning(hdu, table_size)
            table = tiles.select(layout, found[:table_size], heap_size)
        except tiles.Unsupported:
            return None
        except ValueError as problem:
            raise DataError(f"{where}: damaged: {problem}.") from problem
        return cls(where, layout, table, found[layout.heap :]) if layout.ours else None

    def coded(self) -> _Coded:
        """All that the decoder needs."""
        from hpcqa.pixels import decoder

        layout, table = self.layout, self.table
        extra, places = self._extra()
        block = np.empty((len(table.starts), 8), np.int64)
        block[:, 0], block[:, 1], block[:, 2] = table.starts, table.starts + table.sizes, table.index
        block[:, 3:7], block[:, 7] = table.boxes, places
        coding = layout.block, layout.byte_pix, layout.dither, layout.dither_start, layout.codec == tiles.PLIO
        scaling = table.scales, table.zeros, table.blanks, table.has_blank
        return _Coded(self.data, block, scaling, np.array(coding, np.int64), decoder.RANDOMS, extra)

    def run(self, kernel: str, *arguments: Any) -> None:
        """Call a function of decoder.py on the tiles."""
        from hpcqa.pixels import decoder

        coded = self.coded()
        if kernel == "read_integers":
            failed = decoder.read_integers(coded.data, coded.tiles, coded.code, coded.extra, *arguments)
        else:
            failed = getattr(decoder, kernel)(*coded, *arguments)
        self.check(coded, failed)

    def check(self, coded: _Coded, failed: int) -> None:
        """Say which tile is damaged, if one is.

        Raises:
            DataError: one is.
        """
        if failed >= 0:
            raise DataError(f"{self.where}: damaged: tile {coded.tiles[failed, 2]} can't be decoded; fetch it again.")

    def _extra(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The tiles that were gzipped (their pixels could not be quantised), and where each tile finds itself there."""
        table = self.table
        kind = np.float32 if self.layout.quantised else np.int32
        places = np.full(len(table.index), -1, np.int64)
        if not table.fallback.any():
            return np.zeros((0, 1), kind), places
        chosen = np.flatnonzero(table.fallback)
        sizes = table.boxes[:, 2] * table.boxes[:, 3]
        extra = np.zeros((len(chosen), int(sizes[chosen].max(initial=1))), kind)
        for place, t in enumerate(chosen):
            start = int(table.starts[t])
            packed = self.data[start : start + int(table.sizes[t])].tobytes()
            try:
                values = tiles.unpack_gzipped(packed, int(sizes[t]), self.layout.bitpix)
            except ValueError as problem:
                raise DataError(f"{self.where}: damaged: {problem}.") from problem
            with np.errstate(over="ignore", invalid="ignore"):
                extra[place, : values.size] = values
            places[t] = place
        return extra, places


def _is_plain(header: Header) -> bool:
    """Whether stored values are the pixels' values."""
    unscaled = header.get("BSCALE", 1) == 1 and header.get("BZERO", 0) == 0
    return unscaled and "BLANK" not in header and header.integer("BITPIX", 0) in _PLAIN_KINDS
