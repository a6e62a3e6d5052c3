"""The reader of FITS images: every exposure opened once, every CCD read with one call to the system.

Tiles of RICE_1 and PLIO_1 go through hpcqa's own compiled decoder (compressed.py), plain images are read directly, and
all else (other codecs, values with a scale) is left to astropy, one HDU at a time. Values are those that astropy gives,
bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcqa.errors import DataError
from hpcqa.pixels.fitsapart import read_apart
from hpcqa.pixels.fitsbytes import ByteSource, Room, WrongSum
from hpcqa.pixels.fitshdus import FIRST_LOOK, ImageHdu, padded, read_headers
from hpcqa.pixels.fitsheader import Header
from hpcqa.pixels.fitsother import read_with_astropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcqa.pixels.compressed import CompressedImage, Rest

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
        return self._read(hdu, self._compressed(hdu), _target(out, hdu.shape, np.float32))

    def _read(self, hdu: ImageHdu, image: CompressedImage | None, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The whole image into `out`; `image` is what `_compressed` gave."""
        self._expect_next(hdu)
        if _is_plain(hdu.header) and not hdu.compressed:
            out[...] = self._plain(hdu)
        elif image is None or (not image.layout.quantised and image.layout.blank is not None):
            out[...] = self._other(hdu)
        elif image.layout.quantised:
            image.read_floats(out)
        else:
            out[...] = image.read_whole()
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
        out = _target(out, hdu.shape, np.float32)
        image = self._compressed(hdu, room)
        if every == 1 or image is None or not image.layout.quantised or image.layout.tile != (1, hdu.shape[1]):
            return self._read(hdu, image, out), None
        self._expect_next(hdu)
        return out, image.read_part(every, out)

    def read_binned(self, hdu: ImageHdu, step: int, masked: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Means of the finite pixels in cells of step x step pixels, without the full image in memory.

        Args:
            hdu: one of `images`.
            step: side of a cell in pixels; cells at the far edges may be smaller.
            masked: bool (rows, columns), pixels to leave out.

        Returns:
            float32 (ceil(rows / step), ceil(columns / step)) in ADU; NaN where no pixel is left.
        """
        image = self._compressed(hdu)
        if image is None or not image.layout.quantised or image.layout.across != 1:
            return bin_image(self._read(hdu, image, np.empty(hdu.shape, np.float32)), step, masked)
        mask = _mask_for(masked, hdu.shape)
        out = np.empty((-(-hdu.shape[0] // step), -(-hdu.shape[1] // step)), np.float32)
        image.read_binned(mask, masked is not None, step, out)
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
        image = self._compressed(hdu)
        self._expect_next(hdu)
        out = _target(out, hdu.shape, np.int32)
        if image is not None and image.layout.offset == 0:
            image.read_integers(out)
            return out
        values = self._other(hdu) if image is None else image.read_whole()
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
        image = self._compressed(hdu) if hdu.integer else None
        if image is None or image.layout.quantised or image.layout.offset:
            return None
        if image.layout.tile != (1, hdu.shape[1]):
            return None
        self._expect_next(hdu)
        return image.read_codes()

    def _compressed(self, hdu: ImageHdu, room: Room | None = None) -> CompressedImage | None:
        """A compressed image, read; None if our decoder can't have it, or it isn't compressed."""
        if not hdu.compressed:
            return None
        from hpcqa.pixels.compressed import CompressedImage

        return CompressedImage.prepare(
            f"{self.path}[{hdu.index}]",
            hdu,
            whole=lambda padding: self._data(hdu, padding, room),
            beginning=lambda size: self._beginning(hdu, size),
        )

    def _plain(self, hdu: ImageHdu) -> NDArray[Any]:
        kind = np.dtype(_PLAIN_KINDS[hdu.header.integer("BITPIX", 0)])
        size = hdu.shape[0] * hdu.shape[1] * kind.itemsize
        return self._data(hdu)[:size].view(kind).reshape(hdu.shape)

    def _other(self, hdu: ImageHdu) -> NDArray[Any]:
        raw = self._source.read(hdu.header_offset, hdu.data_offset - hdu.header_offset) + self._data(hdu).tobytes()
        try:
            return (read_apart if hdu.compressed else read_with_astropy)(raw, hdu.index == 0, hdu.shape)
        except ValueError as problem:
            raise DataError(f"{self.path}[{hdu.index}]: can't be decoded: {problem}.") from problem

    def _data(self, hdu: ImageHdu, padding: int = 0, room: Room | None = None) -> NDArray[np.uint8]:
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

    def _beginning(self, hdu: ImageHdu, size: int) -> NDArray[np.uint8]:
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


def _is_plain(header: Header) -> bool:
    """Whether stored values are the pixels' values."""
    unscaled = header.get("BSCALE", 1) == 1 and header.get("BZERO", 0) == 0
    return unscaled and "BLANK" not in header and header.integer("BITPIX", 0) in _PLAIN_KINDS
