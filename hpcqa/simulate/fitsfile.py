"""Multi-extension FITS files of compressed CCDs, written as the Community Pipeline writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpcqa.artifacts.store import atomic_path
from hpcqa.simulate.compress import BLOCK, NULL_VALUE, Compressed

BLOCK_BYTES = 2880
Card = tuple[str, Any, str]  # keyword, value, comment


def card(keyword: str, value: Any, comment: str = "") -> bytes:
    """One 80-byte header card; strings in quotes, numbers right-aligned to column 30."""
    if isinstance(value, (bool, np.bool_)):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, (int, np.integer)):
        text = f"{value:>20d}"
    elif isinstance(value, (float, np.floating)):
        text = f"{_float_text(float(value)):>20}"
    else:
        quoted = str(value).replace("'", "''")
        text = f"'{quoted:<8}'".ljust(20)
    line = f"{keyword:<8}= {text}" + (f" / {comment}" if comment else "")
    if len(line) > 80 and not comment:
        raise ValueError(f"{keyword}: {value!r} does not fit a card")
    return line[:80].ljust(80).encode("ascii")


def _float_text(value: float) -> str:
    text = f"{value:.13G}"
    return text if "." in text or "E" in text else text + "."


def header_bytes(cards: Sequence[Card]) -> bytes:
    """The cards and END, padded with blanks to whole blocks."""
    text = b"".join(card(*entry) for entry in cards) + b"END".ljust(80)
    return text.ljust(-(-len(text) // BLOCK_BYTES) * BLOCK_BYTES)


def write(path: Path, primary: Sequence[Card], extensions: Sequence[tuple[Sequence[Card], Compressed]]) -> None:
    """Write a whole file atomically.

    Args:
        primary: cards after SIMPLE ... EXTEND.
        extensions: for each CCD the cards of the image (from EXTNAME on) and its pixels.

    Raises:
        EnvironmentProblem: the disk refuses.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        start = [("SIMPLE", True, "file does conform to FITS standard"), ("BITPIX", 16, ""), ("NAXIS", 0, "")]
        file.write(header_bytes([*start, ("EXTEND", True, "FITS dataset may contain extensions"), *primary]))
        for cards, pixels in extensions:
            _write_extension(file, cards, pixels)


def _write_extension(file: BinaryIO, cards: Sequence[Card], pixels: Compressed) -> None:
    table = _table(pixels)
    file.write(header_bytes([*_structure(pixels, table), *cards]))
    size = table.nbytes + len(pixels.heap)
    file.write(table.tobytes())
    file.write(pixels.heap)
    file.write(b"\0" * (-size % BLOCK_BYTES))


def _table(pixels: Compressed) -> np.ndarray:
    """The table of row descriptors (bytes, offset in the heap), scales and zeros; big-endian."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [("COMPRESSED_DATA", ">i4", (2,))]
    if pixels.plain.any():
        fields.append(("GZIP_COMPRESSED_DATA", ">i4", (2,)))
    if not pixels.integer:
        fields += [("ZSCALE", ">f8"), ("ZZERO", ">f8")]
    table = np.zeros(pixels.shape[0], fields)
    offsets = np.concatenate([[0], np.cumsum(pixels.sizes[:-1], dtype=np.int64)])
    for name, chosen in (("COMPRESSED_DATA", ~pixels.plain), ("GZIP_COMPRESSED_DATA", pixels.plain)):
        if name in (table.dtype.names or ()):
            table[name][:, 0] = np.where(chosen, pixels.sizes, 0)
            table[name][:, 1] = np.where(chosen, offsets, 0)
    if not pixels.integer:
        table["ZSCALE"], table["ZZERO"] = pixels.scale, pixels.zero
    return table


def _structure(pixels: Compressed, table: np.ndarray) -> list[Card]:
    rows, cols = pixels.shape
    names = table.dtype.names or ()
    longest = int(pixels.sizes.max(initial=0))
    forms = {"COMPRESSED_DATA": f"1PB({longest})", "GZIP_COMPRESSED_DATA": f"1PB({longest})"}
    cards: list[Card] = [
        ("XTENSION", "BINTABLE", "binary table extension"),
        ("BITPIX", 8, "8-bit bytes"),
        ("NAXIS", 2, "2-dimensional binary table"),
        ("NAXIS1", table.dtype.itemsize, "width of table in bytes"),
        ("NAXIS2", rows, "number of rows in table"),
        ("PCOUNT", len(pixels.heap), "size of special data area"),
        ("GCOUNT", 1, "one data group (required keyword)"),
        ("TFIELDS", len(names), "number of fields in each row"),
    ]
    for number, name in enumerate(names, 1):
        cards += [(f"TTYPE{number}", name, ""), (f"TFORM{number}", forms.get(name, "1D"), "")]
    cards += [
        ("ZIMAGE", True, "extension contains compressed image"),
        ("ZBITPIX", 32 if pixels.integer else -32, "data type of original image"),
        ("ZNAXIS", 2, "dimension of original image"),
        ("ZNAXIS1", cols, "length of original image axis"),
        ("ZNAXIS2", rows, "length of original image axis"),
        ("ZTILE1", cols, "size of tiles to be compressed"),
        ("ZTILE2", 1, "size of tiles to be compressed"),
        ("ZCMPTYPE", "RICE_1", "compression algorithm"),
        ("ZNAME1", "BLOCKSIZE", "compression block size"),
        ("ZVAL1", BLOCK, "pixels per block"),
        ("ZNAME2", "BYTEPIX", "bytes per pixel (1, 2, 4, or 8)"),
        ("ZVAL2", 4, "bytes per pixel (1, 2, 4, or 8)"),
    ]
    if not pixels.integer:
        cards += [
            ("ZQUANTIZ", "SUBTRACTIVE_DITHER_1", "Pixel Quantization Algorithm"),
            ("ZDITHER0", pixels.dither_seed, "dithering offset when quantizing floats"),
        ]
    if pixels.has_nan:
        cards.append(("ZBLANK", NULL_VALUE, "null value in the compressed integer array"))
    return cards
