"""Reads a few columns of a large FITS binary table, compressed by gzip or not, in one pass and little memory.

astropy reads a compressed table whole: ten million CCDs are 3 GB. Here rows pass through in blocks, and only the wanted
columns are kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hpcqa.errors import DataError, EnvironmentProblem

BLOCK = 2880
MOST_HEADER_BLOCKS = 2000
BLOCK_BYTES = 1 << 24
_FORM = re.compile(r"^\s*(\d*)\s*([LXBIJKAEDCMPQ])")
_SIZES = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_KINDS = {"L": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}


@dataclass(frozen=True)
class Field:
    """One column of a table: `kind` is a numpy dtype, or empty where its form is not one value a row.

    `null` is the whole number that stands for a missing value (TNULL, which astropy writes for masked integers).
    """

    name: str
    kind: str
    offset: int
    unit: str
    scale: float
    zero: float
    null: int | None
    is_logical: bool


@dataclass(frozen=True)
class Layout:
    """What a table's header says."""

    fields: tuple[Field, ...]
    row_bytes: int
    num_rows: int


class BinTable:
    """The first binary table of a file that has a column of a given name; use `open_table`."""

    def __init__(self, path: Path, stream: Any, layout: Layout) -> None:
        self.path, self._stream, self.layout = path, stream, layout

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.layout.fields]

    def blocks(
        self, wanted: Mapping[str, Field], missing: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of rows: {key: values} of the wanted columns; text as bytes, the rest scaled by TSCAL and TZERO.

        Args:
            missing: what stands for a missing value, for those columns that may have some.

        Raises:
            DataError: the file ends before its rows do, or does not decompress.
        """
        dtype = np.dtype(
            {
                "names": list(wanted),
                "formats": [field.kind for field in wanted.values()],
                "offsets": [field.offset for field in wanted.values()],
                "itemsize": self.layout.row_bytes,
            }
        )
        rows_a_block = max(1, BLOCK_BYTES // self.layout.row_bytes)
        done = 0
        while done < self.layout.num_rows:
            rows = min(rows_a_block, self.layout.num_rows - done)
            raw = _read(self.path, self._stream, rows * self.layout.row_bytes)
            if len(raw) < rows * self.layout.row_bytes:
                found = done + len(raw) // self.layout.row_bytes
                raise DataError(
                    f"{self.path}: truncated: {found} of the {self.layout.num_rows} rows that its header promises are "
                    "there; fetch the table again."
                )
            block = np.frombuffer(raw, dtype)
            columns = {key: _scaled(block[key], field) for key, field in wanted.items()}
            for key, filler in (missing or {}).items():
                if wanted[key].null is not None and (absent := block[key] == wanted[key].null).any():
                    columns[key] = np.where(absent, filler, columns[key])
            yield columns
            done += rows


def _scaled(values: np.ndarray, field: Field) -> np.ndarray:
    if field.is_logical:
        return np.asarray(values == ord("T"))
    if values.dtype.kind == "S" or (field.scale == 1.0 and field.zero == 0.0):
        return np.ascontiguousarray(values)
    if field.scale == 1.0 and values.dtype.kind in "iu":
        # Unsigned integers are stored shifted; 64-bit ones wrap around as two's complement does.
        return values.astype(np.int64) + np.int64(field.zero) if abs(field.zero) < 2**62 else _unsigned(values)
    return np.asarray(values * field.scale + field.zero)


def _unsigned(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)).view(np.int64)


def open_stream(path: Path) -> Any:
    """A readable stream of the file's bytes, decompressed where they start as gzip does.

    Raises:
        DataError: the file is not there.
        EnvironmentProblem: it may not be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        return pa.input_stream(str(path), compression="gzip" if magic == b"\x1f\x8b" else None, buffer_size=1 << 20)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; correct survey.tables.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a survey-ccds table (FITS, Parquet or CSV).") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the table again.") from None


def start_of(path: Path, size: int) -> bytes:
    """The first bytes of a file, decompressed; fewer than `size` where it is smaller.

    Raises:
        DataError, EnvironmentProblem: as `open_stream`; empty, or it does not decompress.
    """
    with open_stream(path) as stream:
        start = _read(path, stream, size)
    if not start:
        raise DataError(f"{path}: empty; expected a survey-ccds table.")
    return start


def _read(path: Path, stream: Any, size: int) -> bytes:
    """Up to `size` bytes; fewer only at the end of the stream."""
    parts, left = [], size
    try:
        while left > 0:
            part = stream.read(min(left, BLOCK_BYTES))
            if not part:
                break
            parts.append(part)
            left -= len(part)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: does not decompress ({error}); fetch the table again.") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_table(path: Path, stream: Any, column: str) -> BinTable:
    """The first binary table that has `column` (any case), positioned at its first row.

    kd-tree files hold several tables; only one of them has the CCDs.

    Raises:
        DataError: not FITS, damaged, or no such table; says which columns were found.
    """
    seen: list[str] = []
    while True:
        header = _header(path, stream)
        if header is None:
            break
        size = _data_size(path, header)
        if str(header.get("XTENSION", "")).strip().upper() == "BINTABLE":
            layout = _layout(path, header)
            names = [field.name for field in layout.fields]
            if column in (name.lower() for name in names):
                return BinTable(path, stream, layout)
            seen += names
        _skip(path, stream, size)
    found = ", ".join(seen[:12]) if seen else "none"
    raise DataError(f"{path}: no table with a column {column} in it (columns found: {found}); expected survey-ccds.")


def _skip(path: Path, stream: Any, size: int) -> None:
    left = -(-size // BLOCK) * BLOCK
    while left > 0:
        part = _read(path, stream, min(left, BLOCK_BYTES))
        if not part:
            return
        left -= len(part)


def _header(path: Path, stream: Any) -> Mapping[str, Any] | None:
    """The next header, or None at the end of the file."""
    from astropy.io import fits

    text = b""
    for _ in range(MOST_HEADER_BLOCKS):
        block = _read(path, stream, BLOCK)
        if not text and not block.startswith((b"SIMPLE", b"XTENSION")):
            return None
        if len(block) < BLOCK:
            raise DataError(f"{path}: truncated inside a header; fetch the table again.")
        text += block
        if any(block[start : start + 8] == b"END     " for start in range(0, BLOCK, 80)):
            break
    else:
        raise DataError(f"{path}: a header without END; fetch the table again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = fits.Header.fromstring(text)
            # Values are parsed when they are asked for; ask now, so that damage shows here.
            return {card.keyword: card.value for card in header.cards}
    except Exception as error:  # noqa: BLE001 - astropy fails in many ways on damaged cards
        raise DataError(f"{path}: its header does not parse ({error}); fetch the table again.") from None


def _integer(path: Path, header: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = header.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise DataError(f"{path}: {key}={value!r} in a table's header; expected a whole number. Fetch the table again.")
    return value


def _data_size(path: Path, header: Mapping[str, Any]) -> int:
    num_axes = _integer(path, header, "NAXIS", 0)
    if num_axes == 0:
        return 0
    size = 1
    for axis in range(1, min(num_axes, 999) + 1):
        size *= _integer(path, header, f"NAXIS{axis}")
    bitpix = header.get("BITPIX", 8)
    width = abs(bitpix) // 8 if isinstance(bitpix, int) else 1
    return width * _integer(path, header, "GCOUNT", 1) * (_integer(path, header, "PCOUNT", 0) + size)


def _layout(path: Path, header: Mapping[str, Any]) -> Layout:
    if header.get("ZTABLE") is True:
        raise DataError(f"{path}: a compressed table (ZTABLE); unpack it with funpack first.")
    offset = 0
    fields = []
    for number in range(1, min(_integer(path, header, "TFIELDS", 0), 999) + 1):
        form = _FORM.match(str(header.get(f"TFORM{number}", "")))
        if not form:
            raise DataError(f"{path}: TFORM{number}={header.get(f'TFORM{number}')!r} is no FITS format.")
        repeat = int(form[1]) if form[1] else 1
        width = -(-repeat // 8) if form[2] == "X" else repeat * _SIZES[form[2]]
        fields.append(
            Field(
                name=str(header.get(f"TTYPE{number}", f"col{number}")).strip(),
                kind=_kind(form[2], repeat),
                offset=offset,
                unit=str(header.get(f"TUNIT{number}", "") or "").strip(),
                scale=_real(header.get(f"TSCAL{number}"), 1.0),
                zero=_real(header.get(f"TZERO{number}"), 0.0),
                null=_null(header.get(f"TNULL{number}"), form[2]),
                is_logical=form[2] == "L",
            )
        )
        offset += width
    row_bytes = _integer(path, header, "NAXIS1")
    if offset != row_bytes:
        raise DataError(f"{path}: its columns take {offset} bytes a row but NAXIS1={row_bytes}; fetch the table again.")
    return Layout(tuple(fields), row_bytes, _integer(path, header, "NAXIS2"))


def _kind(letter: str, repeat: int) -> str:
    if letter == "A":
        return f"S{repeat}" if repeat else ""
    return _KINDS.get(letter, "") if repeat == 1 else ""


def _null(value: Any, letter: str) -> int | None:
    return value if letter in "BIJK" and isinstance(value, int) and not isinstance(value, bool) else None


def _real(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default
