"""The HDUs of a FITS file: where each begins, how long it is, and which of them hold images.

An image has two axes; more are let pass if they have the length one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hpcqa.errors import DataError
from hpcqa.instruments.base import NO_NAME
from hpcqa.pixels.fitsbytes import ByteSource
from hpcqa.pixels.fitsheader import BLOCK, CARD, Header, end_of_header

_MAX_HEADER = 4 << 20  # bytes; real ones have 20 kB
_MAX_PIXELS = 1 << 28
_MAX_HDUS = 2000
_MAX_AXES = 999
FIRST_LOOK = 4 * BLOCK  # bytes of a header that are read at once


@dataclass(frozen=True)
class ImageHdu:
    """One image of a file. `index` is the FITS extension number; `shape` is (rows, columns).

    `name` is EXTNAME, or DETPOS where that says nothing; it may be empty.
    """

    index: int
    name: str
    shape: tuple[int, int]
    header: Header = field(repr=False, compare=False)
    header_offset: int = field(repr=False)
    data_offset: int = field(repr=False)
    data_size: int = field(repr=False)

    @property
    def ccdnum(self) -> int | None:
        """CCDNUM of the header, or None."""
        value = self.header.get("CCDNUM")
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None

    @property
    def compressed(self) -> bool:
        return self.header.get("ZIMAGE") is True

    @property
    def integer(self) -> bool:
        """Whether the pixels are stored as integers (masks are)."""
        return self.header.integer("ZBITPIX" if self.compressed else "BITPIX", 0) > 0


class Headers(NamedTuple):
    """The primary header, the whole images in the order of the file, and what is wrong behind them, in words.

    `cubes` are the axes, slowest first, of what has more than an image, by the numbers of the HDUs.
    """

    primary: Header
    images: tuple[ImageHdu, ...]
    cubes: dict[int, tuple[int, ...]]
    damage: str


class _Hdu(NamedTuple):
    """`axes` are those of the pixels, slowest first, none if there are no pixels; they may be an image."""

    header: Header
    axes: tuple[int, ...]
    image: ImageHdu | None


class _Damaged(DataError):
    """An HDU that is truncated, damaged or absurdly large. Never leaves the module as more than a DataError."""


def read_headers(source: ByteSource) -> Headers:
    """Read all headers of a file, up to the first that is damaged: the images before it are as good as ever.

    Raises:
        DataError: not FITS, or damaged before the first image ends.
    """
    hdus: list[_Hdu] = []
    damage = ""
    try:
        hdus.extend(_walk(source))
    except _Damaged as problem:
        damage = str(problem)
        if not any(hdu.image for hdu in hdus):
            raise
    images = tuple(hdu.image for hdu in hdus if hdu.image is not None)
    cubes = {i: hdu.axes for i, hdu in enumerate(hdus) if len(hdu.axes) > 2 and hdu.image is None}
    return Headers(hdus[0].header, images, cubes, damage)


def _is_image(axes: Sequence[int]) -> bool:
    """Whether pixels of these axes, slowest first, are an image."""
    return len(axes) >= 2 and min(axes) > 0 and max([1, *axes[:-2]]) == 1


def _walk(source: ByteSource) -> Iterator[_Hdu]:
    """The HDUs of a file, one after the other; there is one at least.

    Raises:
        _Damaged: the next one is not whole.
    """
    offset = 0
    for index in range(_MAX_HDUS):
        start = source.read(offset, min(FIRST_LOOK, source.size - offset)) if offset < source.size else b""
        # Tape-era writers leave blanks or zeros at the end.
        if index > 0 and start[:BLOCK].strip(b"\x00 ") == b"":
            break
        header, data_offset = _read_header(source, offset, index, start)
        size = _data_size(header, index)
        if size is None or data_offset + size > source.size:
            raise _Damaged(
                f"{source.path}[{index}]: truncated or damaged: its data should end at byte "
                f"{'?' if size is None else data_offset + size}, the file has {source.size}; fetch it again."
            )
        axes, image = _axes(header, index), None
        if _is_image(axes):
            shape = axes[-2], axes[-1]
            if shape[0] * shape[1] > _MAX_PIXELS:
                raise _Damaged(f"{source.path}[{index}]: an image of {shape} pixels is too large.")
            image = ImageHdu(index, _name(header), shape, header, offset, data_offset, size)
        yield _Hdu(header, axes, image)
        offset = padded(data_offset + size)


def _name(header: Header) -> str:
    name = header.text("EXTNAME").strip()
    return header.text("DETPOS").strip() if name.upper() in ("", NO_NAME) else name


def _read_header(source: ByteSource, offset: int, index: int, start: bytes) -> tuple[Header, int]:
    """A header and where its data begins; `start` is its first bytes."""
    raw, searched = start, 0
    while True:
        if not raw.startswith(b"SIMPLE  =" if index == 0 else b"XTENSION="):
            what = "not a FITS file" if index == 0 else "damaged: no FITS header where one should begin"
            raise _Damaged(f"{source.path}[{index}]: {what}; fetch it again.")
        end = end_of_header(raw, searched)
        if end >= 0:
            return Header(raw[:end]), offset + padded(end + CARD)
        searched = max(0, len(raw) - CARD)
        more = min(len(raw), source.size - offset - len(raw))
        if more <= 0 or len(raw) > _MAX_HEADER:
            raise _Damaged(f"{source.path}[{index}]: truncated or damaged: its header has no END; fetch it again.")
        raw += source.read(offset + len(raw), more)


def _data_size(header: Header, index: int) -> int | None:
    """Bytes of an HDU's data, or None if its header makes no sense."""
    naxis = header.integer("NAXIS", -1)
    bits = header.integer("BITPIX", 0)
    axes = [header.integer(f"NAXIS{i}", -1) for i in range(1, naxis + 1)] if 0 <= naxis <= _MAX_AXES else [-1]
    extra, groups = header.integer("PCOUNT", 0), header.integer("GCOUNT", 1)
    if min([0, *axes, extra, groups]) < 0 or abs(bits) not in (8, 16, 32, 64):
        return None
    if not axes:
        return 0
    if index == 0 and axes[0] == 0 and header.get("GROUPS") is True:
        axes = axes[1:]
    return abs(bits) // 8 * groups * (extra + math.prod(axes))


def _axes(header: Header, index: int) -> tuple[int, ...]:
    """Lengths of the axes of an HDU's pixels, slowest first; none if it is a table."""
    prefix = "Z" if header.get("ZIMAGE") is True else ""
    kind = header.text("XTENSION").strip()
    if index > 0 and kind != ("BINTABLE" if prefix else "IMAGE"):
        return ()
    naxis = min(header.integer(f"{prefix}NAXIS", 0), _MAX_AXES)
    return tuple(header.integer(f"{prefix}NAXIS{i}", 0) for i in range(naxis, 0, -1))


def padded(size: int) -> int:
    """The size with the filling up to a whole block."""
    return -(-size // BLOCK) * BLOCK
