"""FITS binary tables of any length, block by block: writing one, and copying one with a column changed.

astropy holds a whole table, and text at its full width; a release's tables of CCDs would be many gigabytes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits

from hpcqa.artifacts import store
from hpcqa.artifacts.coded import distinct
from hpcqa.artifacts.schema import Schema
from hpcqa.errors import DataError

BLOCK = 2880  # bytes; every header and every data part of a FITS file is a multiple
CARD = 80
ROWS_AT_ONCE = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"
GZIP_LEVEL = 4
KINDS = {
    "int64": ("K", ">i8"),
    "int32": ("J", ">i4"),
    "int16": ("I", ">i2"),
    "float32": ("E", ">f4"),
    "float64": ("D", ">f8"),
}
SIZES = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16, "X": 0}
FORM = re.compile(r"(\d*)([LXBIJKAEDCMPQ])")
INTEGERS = {"B": ">u1", "I": ">i2", "J": ">i4", "K": ">i8"}


# Writing --------------------------------------------------------------------------------------------------------------


def write_table(path: Path, schema: Schema, columns: Mapping[str, np.ndarray], origin: str) -> None:
    """Write a binary table; every column with its unit and what it means.

    A column's meaning stands in full in TCOMMn (as STILTS and TOPCAT read it) and cut short beside its name.

    Args:
        schema: names, dtypes, units and meanings; text of any length, other than ASCII as "?".
        columns: (row,) each.
        origin: what made it, for the header.

    Raises:
        EnvironmentProblem: the disk refuses.
    """
    packed = {column.name: _pack(np.asarray(columns[column.name]), column.dtype) for column in schema.columns}
    num_rows = len(columns[schema.columns[0].name])
    row = np.dtype([(name, kind.dtype) for name, kind in packed.items()])
    header = _header(schema, packed, num_rows, row.itemsize, origin)
    with store.atomic_path(path) as temporary, temporary.open("wb") as out:
        out.write(fits.PrimaryHDU().header.tostring().encode())
        out.write(header.tostring().encode())
        for start in range(0, num_rows, ROWS_AT_ONCE):
            block = np.empty(min(ROWS_AT_ONCE, num_rows - start), row)
            for name, column in packed.items():
                block[name] = column.rows(start, start + len(block))
            out.write(block.tobytes())
        out.write(bytes(-num_rows * row.itemsize % BLOCK))


class _Packed:
    """A column as a FITS table holds it: numbers big-endian, text as codes into words of one width."""

    def __init__(self, values: np.ndarray, form: str, dtype: str, words: np.ndarray | None = None) -> None:
        self._values, self.form, self.dtype, self._words = values, form, dtype, words

    def rows(self, start: int, stop: int) -> np.ndarray:
        values = self._values[start:stop]
        return values if self._words is None else self._words[values]


def _pack(values: np.ndarray, dtype: str) -> _Packed:
    if dtype != "str":
        form, kind = KINDS[dtype]
        return _Packed(values, form, kind)
    words, codes = distinct(values.astype(object))
    encoded = np.array([str(word).encode("ascii", "replace") for word in words.tolist()] or [b""], "S")
    width = max(1, encoded.dtype.itemsize)
    return _Packed(codes.astype(np.int32), f"{width}A", f"S{width}", encoded.astype(f"S{width}"))


def _header(schema: Schema, packed: Mapping[str, _Packed], num_rows: int, width: int, origin: str) -> fits.Header:
    made = [
        fits.Column(column.name, packed[column.name].form, unit=column.unit or None, array=[])
        for column in schema.columns
    ]
    header: fits.Header = fits.BinTableHDU.from_columns(made, name=schema.name.upper()).header
    header["NAXIS1"], header["NAXIS2"] = width, num_rows
    header["ORIGIN"] = origin
    for number, column in enumerate(schema.columns, start=1):
        # What does not fit on a card beside the name is in the card of its own.
        header.comments[f"TTYPE{number}"] = column.doc[:47]
        header[f"TCOMM{number}"] = column.doc.encode("ascii", "replace").decode()
    return header


# Copying --------------------------------------------------------------------------------------------------------------


def copy_with_integers(source: Path, target: Path, name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Copy a FITS file with an integer column of its CCD table replaced in some rows; all other bytes stay.

    The CCD table is the first binary table with a column `expnum` (files with kd-trees hold others). A table without
    the column gets it, 64 bits wide, 0 elsewhere. A compressed file is copied compressed.

    Args:
        rows: int64, rows of the table. values: int64, one for each.

    Raises:
        DataError: no such table, or a column that is no integer.
        EnvironmentProblem: the disk refuses.
    """
    changes = np.zeros(int(rows.max(initial=-1)) + 1, np.int64)
    known = np.zeros(len(changes), bool)
    changes[rows], known[rows] = values, True
    with store.atomic_path(target) as temporary, _reading(source) as stream, _writing(temporary, source) as out:
        found = False
        while (raw := _read_header(stream, source)) is not None:
            header = fits.Header.fromstring(raw.decode("ascii", "replace"))
            if not found and _is_ccd_table(header):
                found = True
                _copy_table(stream, out, header, raw, name, changes, known, source)
            else:
                out.write(raw)
                _copy(stream, out, _padded(_data_size(header)), source)
        if not found:
            raise DataError(f"{source}: has no table with a column expnum.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if compressed:
            try:
                with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                    yield io.BufferedReader(stream, 1 << 20)  # type: ignore[arg-type]
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"{path}: cannot be decompressed ({error}); is the file complete?") from None
        else:
            yield raw


@contextlib.contextmanager
def _writing(path: Path, source: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if source.suffix == ".gz":
            # No name and no time inside, so that equal contents are equal files.
            with gzip.GzipFile("", "wb", GZIP_LEVEL, raw, 0) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield raw


def _read_header(stream: IO[bytes], source: Path) -> bytes | None:
    """The bytes of the next header, None at the end of the file."""
    raw = b""
    while True:
        block = stream.read(BLOCK)
        if not block and not raw:
            return None
        if len(block) < BLOCK:
            raise DataError(f"{source}: ends within a header; is the file complete?")
        raw += block
        if any(block[place : place + CARD].rstrip() == b"END" for place in range(0, BLOCK, CARD)):
            return raw


def _is_ccd_table(header: fits.Header) -> bool:
    return header.get("XTENSION", "").strip() == "BINTABLE" and _find(header, "expnum") is not None


def _find(header: fits.Header, name: str) -> int | None:
    """The number of a column, from 1, whatever its case."""
    for number in range(1, int(header["TFIELDS"]) + 1):
        if str(header.get(f"TTYPE{number}", "")).strip().lower() == name:
            return number
    return None


def _data_size(header: fits.Header) -> int:
    axes = [int(header[f"NAXIS{number}"]) for number in range(1, int(header["NAXIS"]) + 1)]
    if not axes:
        return 0
    return (
        abs(int(header["BITPIX"]))
        // 8
        * int(header.get("GCOUNT", 1))
        * (int(header.get("PCOUNT", 0)) + int(np.prod(axes, dtype=np.int64)))
    )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _copy(stream: IO[bytes], out: IO[bytes], size: int, source: Path) -> None:
    while size:
        block = stream.read(min(size, 1 << 20))
        if not block:
            raise DataError(f"{source}: ends within its data; is the file complete?")
        out.write(block)
        size -= len(block)


def _copy_table(
    stream: IO[bytes],
    out: IO[bytes],
    header: fits.Header,
    raw: bytes,
    name: str,
    changes: np.ndarray,
    known: np.ndarray,
    source: Path,
) -> None:
    width, num_rows, heap = int(header["NAXIS1"]), int(header["NAXIS2"]), int(header.get("PCOUNT", 0))
    number = _find(header, name)
    place, kind, zero = (width, ">i8", 0) if number is None else _place(header, number, source)
    stale = [key for key in ("CHECKSUM", "DATASUM") if key in header]
    if number is None:
        _add_column(header, name)
    for key in stale:
        del header[key]
    out.write(header.tostring().encode() if stale or number is None else raw)
    size = np.dtype(kind).itemsize
    wider = width + (size if number is None else 0)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, num_rows - start)
        block = np.zeros((count, wider), np.uint8)
        block[:, :width] = np.frombuffer(_exactly(stream, count * width, source), np.uint8).reshape(count, width)
        here = np.flatnonzero(known[start : start + count])
        fresh = (changes[start : start + count][here] - zero).astype(kind)
        block[here, place : place + size] = fresh.view(np.uint8).reshape(len(here), size)
        out.write(block.tobytes())
    _copy(stream, out, heap, source)
    _exactly(stream, -(num_rows * width + heap) % BLOCK, source)
    out.write(bytes(-(num_rows * wider + heap) % BLOCK))


def _exactly(stream: IO[bytes], size: int, source: Path) -> bytes:
    block = stream.read(size)
    if len(block) < size:
        raise DataError(f"{source}: ends within its data; is the file complete?")
    return block


def _place(header: fits.Header, number: int, source: Path) -> tuple[int, str, int]:
    """Offset in a row, dtype and TZERO of an integer column."""
    form = str(header[f"TFORM{number}"]).strip()
    kind = INTEGERS.get(form.lstrip("1"))
    if kind is None:
        raise DataError(f"{source}: column {header[f'TTYPE{number}']} has the format {form}, expected an integer.")
    place = sum(_bytes_of(str(header[f"TFORM{other}"]), source) for other in range(1, number))
    return place, kind, int(header.get(f"TZERO{number}", 0))


def _bytes_of(form: str, source: Path) -> int:
    """Bytes that a column of a TFORM takes in a row."""
    match = FORM.match(form.strip())
    if match is None:
        raise DataError(f"{source}: TFORM {form!r} is no format of FITS 4.0.")
    count = int(match[1] or "1")
    return -(-count // 8) if match[2] == "X" else count * SIZES[match[2]]


def _add_column(header: Any, name: str) -> None:
    number = int(header["TFIELDS"]) + 1
    if int(header.get("PCOUNT", 0)) and "THEAP" in header:
        header["THEAP"] = int(header["THEAP"]) + 8 * int(header["NAXIS2"])
    header["NAXIS1"], header["TFIELDS"] = int(header["NAXIS1"]) + 8, number
    header[f"TTYPE{number}"], header[f"TFORM{number}"] = name, "K"
