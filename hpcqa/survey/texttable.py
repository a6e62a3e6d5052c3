"""Survey tables written as text: CSV, also with semicolons, tabs or blanks, and ECSV; gzipped or not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from hpcqa.errors import DataError

LOOK_AT = 1 << 20  # bytes that hold a header, however long ECSV's is
DELIMITERS = ",;\t| "
NO_VALUE = ("", "nan", "NaN", "NAN", "--", "None", "none", "null", "NULL", "N/A", "n/a", "masked")
_UNIT = re.compile(r"^#\s*-\s*\{.*?\bname:\s*'?([^,}']+?)'?\s*,.*?\bunit:\s*'?([^,}']+?)'?\s*[,}]")


@dataclass(frozen=True)
class TextHeader:
    """How the text is written, where its rows begin, how cells are cut, and the columns' names; `units` by name."""

    encoding: str
    first_row: int
    delimiter: str
    names: tuple[str, ...]
    units: dict[str, str]


def find_header(start: bytes, column: str, others: Collection[str]) -> TextHeader | None:
    """The header of a table that begins with `start`, or None if it is no text with a column of that name (any case).

    Lines that begin with # stand before it; it may begin with # itself, if it has one of the `others` too.
    """
    encoding = _encoding(start)
    text = start.decode(encoding, errors="ignore")  # a character may be cut at the end of what was looked at
    units: dict[str, str] = {}
    for place, line in enumerate(io.StringIO(text)):
        if found := _UNIT.match(line):
            units[found[1].strip()] = found[2].strip()
        for delimiter in DELIMITERS:
            names = _cells(line.lstrip("# ").rstrip(), delimiter)
            lower = [name.lower() for name in names]
            if column in lower and len(names) > 1 and (not line.startswith("#") or set(others) & set(lower)):
                return TextHeader(encoding, place + 1, delimiter, names, units)
        if line.strip() and not line.startswith("#"):
            return None
    return None


def _cells(line: str, delimiter: str) -> tuple[str, ...]:
    """The cells of one line; none if the line is not cut so (a carriage return within, or megabytes in a cell)."""
    try:
        return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), []))
    except csv.Error:
        return ()


def _encoding(start: bytes) -> str:
    """UTF-16 as Excel writes it, UTF-8, or Latin-1, which any bytes are."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8-sig" if error.end >= len(start) - 4 else "latin-1"
    return "utf-8-sig"


def read(path: Path, stream: Any, header: TextHeader, columns: Sequence[int], text: Iterable[int]) -> pa.Table:
    """Some columns, by their places; those of `text` stay text, the others become numbers where all their cells are.

    Raises:
        DataError: a row has more or fewer cells than the header, or the file does not decompress.
    """
    names = [str(place) for place in range(len(header.names))]  # names may repeat
    try:
        return pacsv.read_csv(
            stream,
            read_options=pacsv.ReadOptions(
                column_names=names, skip_rows=header.first_row, encoding=header.encoding.removesuffix("-sig")
            ),
            parse_options=pacsv.ParseOptions(delimiter=header.delimiter),
            convert_options=pacsv.ConvertOptions(
                include_columns=[names[place] for place in columns],
                column_types={names[place]: pa.string() for place in text},
                null_values=list(NO_VALUE),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: does not read as a table ({str(error).splitlines()[0]}); write it again.") from None
