"""Tile-compressed images: what the table of tiles says, checked, and the tiles prepared for the compiled decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcqa.pixels.fitsbytes import gunzip
from hpcqa.pixels.fitsheader import Header

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORM = re.compile(r"^(\d*)([A-Z])([BIJKED]?)")
_WIDTHS = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_KINDS = {"I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
PLIO = "PLIO_1"
_DITHERS = {"": 0, "NO_DITHER": 0, "SUBTRACTIVE_DITHER_1": 1, "SUBTRACTIVE_DITHER_2": 2}


class Unsupported(Exception):
    """This compression is left to astropy. Never leaves the package."""


@dataclass(frozen=True)
class Layout:
    """How an image is cut into tiles and coded.

    `dither` is -1 where it is unknown; `offset` is what is added to stored integers so that they lose their sign, or
    get one; `scaled` is any other change of theirs.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    codec: str
    bitpix: int
    block: int
    byte_pix: int
    dither: int
    dither_start: int
    quantised: bool
    offset: int
    scaled: bool
    blank: int | None
    row_bytes: int
    num_tiles: int
    heap: int
    columns: dict[str, tuple[int, str]]

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return -(-self.shape[1] // self.tile[1])

    @property
    def ours(self) -> bool:
        """Whether our decoder knows this coding; astropy does the others."""
        if self.scaled or self.dither < 0 or (self.bitpix < 0) != self.quantised or self.bitpix == 64:
            return False
        kind = self.columns["COMPRESSED_DATA"][1][1]
        if self.codec == PLIO:
            return kind == "I" and self.bitpix > 0
        if self.codec not in ("RICE_1", "RICE_ONE") or kind != "B":
            return False
        return self.byte_pix == 4 if self.quantised else self.byte_pix in (1, 2, 4)


def read_layout(header: Header) -> Layout:
    """What the header of a compressed image says, checked so far that astropy can be trusted with it too.

    Raises:
        ValueError: contradicts itself, or has values that no writer gives.
    """
    shape = header.integer("ZNAXIS2", 0), header.integer("ZNAXIS1", 0)
    tile = header.integer("ZTILE2", 1), header.integer("ZTILE1", shape[1])
    if min(*shape, *tile) < 1:
        raise ValueError(f"an image of {shape} pixels in tiles of {tile}")
    tile = min(tile[0], shape[0]), min(tile[1], shape[1])
    columns, row_bytes = _columns(header)
    num_tiles = header.integer("NAXIS2", 0)
    blank = _blank(header)
    offset = _offset(header) if blank is None else 0
    layout = Layout(
        shape=shape,
        tile=tile,
        codec=header.text("ZCMPTYPE").strip(),
        bitpix=header.integer("ZBITPIX", 0),
        block=_parameter(header, "BLOCKSIZE", 32),
        byte_pix=_parameter(header, "BYTEPIX", 4),
        dither=_DITHERS.get(header.text("ZQUANTIZ").strip().upper(), -1),
        dither_start=header.integer("ZDITHER0", 1),
        quantised="ZSCALE" in columns and "ZZERO" in columns,
        offset=offset,
        scaled=header.get("BSCALE", 1) != 1 or header.get("BZERO", 0) != offset,
        blank=blank,
        row_bytes=row_bytes,
        num_tiles=num_tiles,
        heap=header.integer("THEAP", row_bytes * num_tiles),
        columns=columns,
    )
    _check(layout, header)
    return layout


def _check(layout: Layout, header: Header) -> None:
    expected = -(-layout.shape[0] // layout.tile[0]) * layout.across
    if layout.num_tiles != expected:
        raise ValueError(f"{layout.num_tiles} tiles where {expected} are needed")
    if layout.row_bytes != header.integer("NAXIS1", 0) or layout.heap < layout.row_bytes * layout.num_tiles:
        raise ValueError("the table of tiles contradicts its header")
    if layout.bitpix not in (8, 16, 32, 64, -32, -64):
        raise ValueError(f"ZBITPIX is {layout.bitpix}")
    if not 1 <= layout.block <= 1 << 16 or layout.byte_pix not in (1, 2, 4, 8):
        raise ValueError(f"blocks of {layout.block} values of {layout.byte_pix} bytes")
    if layout.dither != 0 and not 1 <= layout.dither_start < 1 << 31:
        raise ValueError(f"ZDITHER0 is {layout.dither_start}")


def _columns(header: Header) -> tuple[dict[str, tuple[int, str]], int]:
    """The place and the TFORM letters of each column, by name, and the bytes of a row."""
    columns: dict[str, tuple[int, str]] = {}
    offset = 0
    count = header.integer("TFIELDS", 0)
    if not 1 <= count <= 999:
        raise ValueError(f"a table of {count} columns")
    for i in range(1, count + 1):
        found = _FORM.match(header.text(f"TFORM{i}").strip())
        if not found or found[2] not in _WIDTHS:
            raise ValueError(f"TFORM{i} is '{header.text(f'TFORM{i}')}'")
        columns[header.text(f"TTYPE{i}").strip().upper()] = offset, found[2] + found[3]
        offset += int(found[1] or 1) * _WIDTHS[found[2]]
    if columns.get("COMPRESSED_DATA", (0, ""))[1] not in ("PB", "QB", "PI", "QI", "PJ", "QJ"):
        raise ValueError("there is no column of compressed data")
    return columns, offset


def _parameter(header: Header, name: str, default: int) -> int:
    for i in range(1, 100):
        if f"ZNAME{i}" not in header:
            break
        if header.text(f"ZNAME{i}").strip().upper() == name:
            return header.integer(f"ZVAL{i}", default)
    return default


def _offset(header: Header) -> int:
    """BZERO where it turns stored integers into those with or without a sign (FITS standard 4.0, section 5.2.5)."""
    usual = {8: -128, 16: 1 << 15, 32: 1 << 31}.get(header.integer("ZBITPIX", 0), 0)
    return usual if header.get("BSCALE", 1) == 1 and header.get("BZERO", 0) == usual else 0


def _blank(header: Header) -> int | None:
    key = "ZBLANK" if "ZBLANK" in header else "BLANK"
    return header.integer(key, 0) if key in header else None


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image, ready for the decoder; offsets are relative to the heap."""

    index: NDArray[np.int64]  # (N,) numbers of the tiles
    starts: NDArray[np.int64]  # (N,) bytes
    sizes: NDArray[np.int64]
    boxes: NDArray[np.int64]  # (N, 4) first row, first column, rows, columns
    scales: NDArray[np.float64]
    zeros: NDArray[np.float64]
    blanks: NDArray[np.int32]
    has_blank: bool
    fallback: NDArray[np.bool_]  # (N,) gzipped instead


def select(layout: Layout, table: NDArray[np.uint8], heap_size: int) -> Tiles:
    """The tiles of an image, with every offset checked against the heap.

    Args:
        table: uint8, the bytes of the table's rows, `num_tiles` of them.
        heap_size: bytes of the heap.

    Raises:
        ValueError: a tile lies outside the heap, or has no data.
        Unsupported: a tile is stored in a way that is left to astropy.
    """
    rows = table.reshape(layout.num_tiles, layout.row_bytes)
    index, boxes = _all_tiles(layout.shape, layout.tile)
    sizes, starts = _descriptors(rows, layout, "COMPRESSED_DATA")
    fallback = sizes == 0
    if fallback.any():
        if "GZIP_COMPRESSED_DATA" not in layout.columns or layout.columns["GZIP_COMPRESSED_DATA"][1] not in (
            "PB",
            "QB",
        ):
            raise Unsupported
        packed_sizes, packed_starts = _descriptors(rows, layout, "GZIP_COMPRESSED_DATA")
        sizes = np.where(fallback, packed_sizes, sizes)
        starts = np.where(fallback, packed_starts, starts)
    # Sizes are compared first: the sum of two large numbers could wrap around.
    if np.any((sizes <= 0) | (sizes > heap_size) | (starts < 0) | (starts > heap_size - sizes)):
        raise ValueError("a tile lies outside the compressed data")
    blanks, has_blank = _blanks(rows, layout)
    return Tiles(
        index=index,
        starts=starts,
        sizes=sizes,
        boxes=boxes,
        scales=_numbers(rows, layout, "ZSCALE"),
        zeros=_numbers(rows, layout, "ZZERO"),
        blanks=blanks,
        has_blank=has_blank,
        fallback=fallback,
    )


# All CCDs of a camera are cut into tiles in one way.
@lru_cache(maxsize=8)
def _all_tiles(shape: tuple[int, int], tile: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the tiles, and their boxes as in `Tiles`; others get the same: read-only."""
    down, across = -(-shape[0] // tile[0]), -(-shape[1] // tile[1])
    index = np.arange(down * across, dtype=np.int64)
    first = np.stack([index // across * tile[0], index % across * tile[1]], axis=1)
    boxes = np.concatenate([first, np.minimum(tile, np.array(shape) - first)], axis=1)
    index.flags.writeable = boxes.flags.writeable = False
    return index, boxes


def _field(rows: NDArray[np.uint8], layout: Layout, name: str, dtype: str, count: int = 1) -> NDArray[Any]:
    offset = layout.columns[name][0]
    width = np.dtype(dtype).itemsize * count
    return np.ascontiguousarray(rows[:, offset : offset + width]).view(dtype)


def _descriptors(rows: NDArray[np.uint8], layout: Layout, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    wide = layout.columns[name][1][0] == "Q"
    pairs = _field(rows, layout, name, ">i8" if wide else ">i4", 2).astype(np.int64)
    item = _WIDTHS[layout.columns[name][1][1]]
    # Absurd counts stay absurd without wrapping around.
    return np.clip(pairs[:, 0], -1, 1 << 60) * item, pairs[:, 1]


def _numbers(rows: NDArray[np.uint8], layout: Layout, name: str) -> NDArray[np.float64]:
    if name not in layout.columns:
        return np.zeros(len(rows))
    kind = layout.columns[name][1][0]
    if kind not in ("E", "D"):
        raise Unsupported
    return _field(rows, layout, name, _KINDS[kind])[:, 0].astype(np.float64)


def _blanks(rows: NDArray[np.uint8], layout: Layout) -> tuple[NDArray[np.int32], bool]:
    if "ZBLANK" in layout.columns:
        kind = layout.columns["ZBLANK"][1][0]
        if kind not in ("I", "J"):
            raise Unsupported
        return _field(rows, layout, "ZBLANK", _KINDS[kind])[:, 0].astype(np.int32), True
    if layout.blank is None or not -(2**31) <= layout.blank < 2**31:
        return np.zeros(len(rows), np.int32), False
    return np.full(len(rows), layout.blank, np.int32), True


def unpack_gzipped(packed: bytes, num: int, bitpix: int) -> NDArray[Any]:
    """The values of a tile that was gzipped without quantisation, big-endian as stored.

    Raises:
        ValueError: damaged, or not as many values as the tile has pixels.
    """
    raw = gunzip(packed, num * 8)
    size, rest = divmod(len(raw), num)
    kinds = {4: ">f4", 8: ">f8"} if bitpix < 0 else {1: ">u1", 2: ">i2", 4: ">i4", 8: ">i8"}
    if rest or size not in kinds:
        raise ValueError("a gzipped tile has another number of pixels")
    return np.frombuffer(raw, kinds[size])
