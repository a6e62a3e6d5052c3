"""One tile-compressed image: its bytes and tiles made ready for hpcqa's own decoder (decoder.py), and its answer told.

As this imports the compiled loops, import it only where pixels are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpcqa.errors import DataError
from hpcqa.pixels import decoder, readscan, rice, tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcqa.pixels.fitshdus import ImageHdu
    from hpcqa.pixels.scan import Sums


class Coded(NamedTuple):
    """Tiles as the functions of decoder.py take them; see there."""

    data: NDArray[np.uint8]
    tiles: NDArray[np.int64]
    scaling: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], bool]
    code: NDArray[np.int64]
    randoms: NDArray[np.float32]
    extra: NDArray[Any]

    def only(self, chosen: NDArray[np.int64]) -> Coded:
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
class CompressedImage:
    """The compressed bytes and the tiles of an image; its functions raise a DataError if a tile is damaged.

    `where` begins what is said of it: the file and the number of the HDU. `data` begins with the heap.
    """

    where: str
    layout: tiles.Layout
    table: tiles.Tiles
    data: NDArray[np.uint8]

    @classmethod
    def prepare(
        cls,
        where: str,
        hdu: ImageHdu,
        whole: Callable[[int], NDArray[np.uint8]],
        beginning: Callable[[int], NDArray[np.uint8]],
    ) -> CompressedImage | None:
        """Read what the image needs.

        Args:
            where: the file and the number of the HDU, for messages.
            hdu: of a compressed image.
            whole: gives the HDU's data with as many zeros behind as it is told.
            beginning: gives as many of their first bytes as it is told.

        Returns:
            The image; None if our decoder can't have it.

        Raises:
            DataError: what the header or the table says of the tiles makes no sense.
        """
        try:
            layout = tiles.read_layout(hdu.header)
            table_size, heap_size = layout.num_tiles * layout.row_bytes, hdu.data_size - layout.heap
            if table_size > hdu.data_size or heap_size < 0:
                raise ValueError("the table of tiles is larger than its data")
            # All of an image comes with one call to the system, table and tiles.
            found = whole(rice.PADDING) if layout.ours else beginning(table_size)
            table = tiles.select(layout, found[:table_size], heap_size)
        except tiles.Unsupported:
            return None
        except ValueError as problem:
            raise DataError(f"{where}: damaged: {problem}.") from problem
        return cls(where, layout, table, found[layout.heap :]) if layout.ours else None

    def read_floats(self, out: NDArray[np.float32]) -> None:
        """Decode an image of quantised tiles into `out`, (rows, columns), C-contiguous."""
        self.decode(self._coded(), out)

    def read_whole(self) -> NDArray[Any]:
        """An image of integers with their offset, int32 or uint32 (rows, columns)."""
        out = np.empty(self.layout.shape, np.int32)
        self.read_integers(out)
        if self.layout.offset == 1 << 31:
            return out.view(np.uint32) ^ np.uint32(1 << 31)
        out += np.int32(self.layout.offset)
        return out

    def read_integers(self, out: NDArray[np.int32]) -> None:
        """Decode an image of integers, as they are stored, into `out`, (rows, columns), C-contiguous."""
        coded = self._coded()
        self.check(coded, decoder.read_integers(coded.data, coded.tiles, coded.code, coded.extra, out))

    def read_codes(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """An image of integers in tiles of one row each: as ExposureFile.read_codes; None if they don't fit."""
        coded = self._coded()
        out, seen = np.empty(self.layout.shape, np.uint8), np.zeros(256, np.bool_)
        failed, fits = decoder.read_codes(coded.data, coded.tiles, coded.code, coded.extra, out, seen)
        self.check(coded, failed)
        return (out, np.flatnonzero(seen)) if fits else None

    def read_binned(self, masked: NDArray[np.bool_], has_mask: bool, step: int, out: NDArray[np.float32]) -> None:
        """Bin an image of quantised tiles as wide as it is; as decoder.bin_image."""
        coded = self._coded()
        self.check(coded, decoder.read_binned(*coded, masked, has_mask, step, self.layout.shape, out))

    def read_part(self, every: int, out: NDArray[np.float32]) -> Rest:
        """Decode each `every`-th row of an image of quantised tiles of one row each; what decodes the others."""
        coded = self._coded()
        first, following = _rows_in_turn(self.layout.shape[0], every)
        self.decode(coded.only(first), out)
        return Rest(self, coded.only(following), out)

    def decode(self, coded: Coded, out: NDArray[np.float32]) -> None:
        """Decode some of its tiles, quantised ones, to where they belong in `out`."""
        self.check(coded, decoder.read_floats(*coded, out))

    def check(self, coded: Coded, failed: int) -> None:
        """Say which tile is damaged, if one is: `failed` is its place among `coded`, or -1."""
        if failed >= 0:
            raise DataError(f"{self.where}: damaged: tile {coded.tiles[failed, 2]} can't be decoded; fetch it again.")

    def _coded(self) -> Coded:
        """All that the decoder needs."""
        layout, table = self.layout, self.table
        extra, places = self._extra()
        block = np.empty((len(table.starts), 8), np.int64)
        block[:, 0], block[:, 1], block[:, 2] = table.starts, table.starts + table.sizes, table.index
        block[:, 3:7], block[:, 7] = table.boxes, places
        coding = layout.block, layout.byte_pix, layout.dither, layout.dither_start, layout.codec == tiles.PLIO
        scaling = table.scales, table.zeros, table.blanks, table.has_blank
        return Coded(self.data, block, scaling, np.array(coding, np.int64), decoder.RANDOMS, extra)

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


@dataclass(frozen=True)
class Rest:
    """Rows of an image that are still compressed; see ExposureFile.read_part."""

    image: CompressedImage
    coded: Coded
    out: NDArray[np.float32]

    def read(self) -> None:
        """Decode them into the image.

        Raises:
            DataError: one is damaged.
        """
        self.image.decode(self.coded, self.out)

    def scan(self, masked: NDArray[np.bool_], in_row: NDArray[np.int32], sums: Sums) -> None:
        """Decode them into the image, and add all of its rows to a scan; `in_row` is the masked pixels in each.

        Raises:
            DataError: one is damaged.
        """
        hidden = masked.view(np.uint8)
        failed = readscan.read_and_scan(
            self.coded, self.out, hidden, in_row, sums.step, sums.split, sums.facts, sums.arrays, sums.numbers
        )
        self.image.check(self.coded, failed)
