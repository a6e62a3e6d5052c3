"""Survey-ccds tables of every generation, as one set of columns, names, dtypes and units.

FITS binary tables (gzip or not, kd-tree files), Parquet, CSV and ECSV. Which names a column goes by is data, in
columns.toml. A table that is empty, damaged or lacks a needed column stops the stage: it is the definition of the
survey, and going on without it would lose exposures without a word.
"""

from __future__ import annotations

import glob
import logging
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpcqa.errors import ConfigError, DataError
from hpcqa.survey import bintable, texttable
from hpcqa.survey.coded import Coded, CodedBuilder, distinct
from hpcqa.survey.images import Located

logger = logging.getLogger(__name__)

PARQUET_ROWS = 1 << 17
JD_OF_MJD_0, FIRST_JD = 2400000.5, 2.4e6  # no modified date of this millennium is as large
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


@dataclass(frozen=True)
class Wanted:
    """One column that we take from tables (an entry of columns.toml)."""

    name: str
    kind: str
    names: tuple[str, ...]
    default: Any
    units: Mapping[str, float]

    @property
    def is_needed(self) -> bool:
        return self.default is None

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def is_whole(self) -> bool:
        return self.kind.startswith("int")

    @property
    def filler(self) -> Any:
        """What stands in a cell that holds no number."""
        if self.default is not None:
            return self.default
        return 0 if self.is_whole else math.nan


@dataclass(frozen=True)
class CcdRows:
    """All rows of all tables, in order: text as Coded, numbers in the dtypes of columns.toml (N,).

    `table` names each row's file. `located` is known already where no table but the images themselves were read.
    """

    text: Mapping[str, Coded]
    numbers: Mapping[str, np.ndarray]
    table: Coded
    table_row: np.ndarray
    located: Located | None = None

    def __len__(self) -> int:
        return len(self.table_row)


@cache
def wanted_columns() -> tuple[Wanted, ...]:
    """The entries of columns.toml."""
    content = tomllib.loads(resources.files(__package__).joinpath("columns.toml").read_text())
    return tuple(
        Wanted(entry["name"], entry["kind"], tuple(entry["names"]), entry.get("default"), entry.get("units", {}))
        for entry in content["column"]
    )


def expand_paths(patterns: Sequence[str], key: str) -> list[Path]:
    """The files of several paths or glob patterns, each once, in the order given and by name within a pattern.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207 - absolute patterns
        if not found:
            raise ConfigError(f"{key}: {pattern} matches no file; correct the path or the pattern.")
        paths.update((Path(name).absolute(), None) for name in found)
    return list(paths)


def read_tables(paths: Sequence[Path]) -> CcdRows:
    """Every row of every table.

    Raises:
        DataError: a table is missing, damaged, empty, or lacks a needed column.
    """
    text = {entry.name: CodedBuilder() for entry in wanted_columns() if entry.is_text}
    numbers: dict[str, list[np.ndarray]] = {entry.name: [] for entry in wanted_columns() if not entry.is_text}
    table, rows = CodedBuilder(), []
    for path in paths:
        start = 0
        for block in _blocks(path):
            length = len(next(iter(block.values())))
            _collect(block, length, text, numbers)
            table.add(np.zeros(length, np.int32), [str(path)])
            rows.append(np.arange(start, start + length, dtype=np.int64))
            start += length
        if not start:
            raise DataError(f"{path}: the table has no rows; remove it from survey.tables or fetch it again.")
    return CcdRows(
        text={name: builder.finish() for name, builder in text.items()},
        numbers={name: _join(numbers, name) for name in list(numbers)},
        table=table.finish(),
        table_row=np.concatenate(rows) if rows else np.empty(0, np.int64),
    )


def _join(blocks: dict[str, list[np.ndarray]], name: str) -> np.ndarray:
    # Blocks are let go column by column, so that joining never doubles the whole table.
    parts = blocks.pop(name)
    return np.concatenate(parts) if parts else np.empty(0)


def _collect(
    block: Mapping[str, np.ndarray | Coded],
    length: int,
    text: Mapping[str, CodedBuilder],
    numbers: Mapping[str, list[np.ndarray]],
) -> None:
    for entry in wanted_columns():
        values = block.get(entry.name)
        if entry.is_text:
            if values is None:
                values = Coded(np.zeros(length, np.int32), (entry.default,))
            coded = values if isinstance(values, Coded) else _words_of(values)
            text[entry.name].add(coded.codes, coded.words)
        elif values is None:
            numbers[entry.name].append(np.full(length, entry.default, entry.kind))
        else:
            numbers[entry.name].append(_numbers_of(entry, values))


# Columns ------------------------------------------------------------------------------------------------------------


def normal_name(name: str) -> str:
    """A column's name as columns.toml writes it."""
    return name.strip().lower().replace("-", "_")


def choose_columns(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Which of a table's columns serve: {our name: index}.

    Raises:
        DataError: a needed column is missing; says what was found.
    """
    found = {normal_name(name): index for index, name in reversed(list(enumerate(names)))}
    chosen = {}
    for entry in wanted_columns():
        match = next((name for name in entry.names if name in found), None)
        if match is not None:
            chosen[entry.name] = found[match]
        elif entry.is_needed:
            _complain(path, entry.names, names)
    if not {"ccdname", "ccdnum"} & set(chosen):
        _complain(path, ("ccdname", "ccdnum"), names)
    return chosen


def _complain(path: Path, expected: Sequence[str], found: Sequence[str]) -> None:
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    raise DataError(
        f"{path}: no column {' or '.join(expected)} (columns found: {listed}); expected a survey-ccds table."
    )


def _words_of(values: np.ndarray) -> Coded:
    """A text column of bytes, or of numbers (written out)."""
    if values.dtype.kind == "S":
        width = values.dtype.itemsize
        packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])
        encoded = packed.dictionary_encode()
        words = [_clean(word) for word in encoded.dictionary.to_pylist()]
        return Coded(encoded.indices.to_numpy(), tuple(words))
    unique, index = distinct(values.astype(values.dtype.newbyteorder("=")))
    return Coded(index.astype(np.int32), tuple(_plain(value) for value in unique))


def _clean(word: bytes) -> str:
    return word.split(b"\0")[0].decode("latin-1").strip()


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _numbers_of(entry: Wanted, values: np.ndarray | Coded) -> np.ndarray:
    found = _as_numbers(entry, values)
    # Some write the Julian date itself.
    return np.where(found > FIRST_JD, found - JD_OF_MJD_0, found) if entry.name == "mjd_obs" else found


def _as_numbers(entry: Wanted, values: np.ndarray | Coded) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        values = _words_of(values)
    if isinstance(values, Coded):
        return values.ask(lambda word: _parse(word, entry), entry.kind)
    if not entry.is_whole:
        return values.astype(entry.kind)
    largest = float(np.iinfo(entry.kind).max // 2)
    if values.dtype.kind == "f":
        usable = np.isfinite(values) & (np.abs(values) < largest)
        return np.where(
            usable, np.where(usable, values, 0.0).astype(entry.kind), np.dtype(entry.kind).type(entry.filler)
        )
    if entry.name == "ccd_cuts" and values.dtype.kind == "i" and values.dtype.itemsize == 2:
        # A 16-bit column holds bit 0x8000 as its sign.
        return values.astype(np.int64) & 0xFFFF
    return values.astype(entry.kind)


def _parse(word: str, entry: Wanted) -> Any:
    try:
        if not entry.is_whole:
            return float(word)
        value = int(word) if word.lstrip("+-").isdigit() else int(float(word))
        return value if abs(value) < np.iinfo(entry.kind).max // 2 else entry.filler
    except (ValueError, OverflowError):
        return entry.filler


# Files --------------------------------------------------------------------------------------------------------------


def _blocks(path: Path) -> Iterator[dict[str, np.ndarray | Coded]]:
    start = bintable.start_of(path, texttable.LOOK_AT)
    if start.startswith(b"PAR1"):
        yield from _parquet_blocks(path)
        return
    with bintable.open_stream(path) as stream:
        if not start.startswith(b"SIMPLE"):
            yield from _text_blocks(path, stream, start)
            return
        table = bintable.open_table(path, stream, "expnum")
        fields = table.layout.fields
        usable = [field.name if field.kind else f"({field.name})" for field in fields]
        chosen = {name: fields[index] for name, index in choose_columns(path, usable).items()}
        factors = {name: _factor(path, name, field.unit) for name, field in chosen.items()}
        missing = {entry.name: entry.filler for entry in wanted_columns() if entry.name in chosen and not entry.is_text}
        for block in table.blocks(chosen, missing):
            yield {name: _in_unit(values, factors[name]) for name, values in block.items()}


def _factor(path: Path, name: str, unit: str) -> float:
    entry = next(entry for entry in wanted_columns() if entry.name == name)
    factor = entry.units.get(unit.strip().lower(), 1.0)
    if factor != 1.0:
        logger.info("%s: %s is in %s; multiplied by %g.", path, name, unit, factor)
    return factor


def _in_unit(values: np.ndarray, factor: float) -> np.ndarray:
    return values if factor == 1.0 else np.asarray(values * factor)


def _parquet_blocks(path: Path) -> Iterator[dict[str, np.ndarray | Coded]]:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        usable = [f"({field.name})" if pa.types.is_nested(field.type) else field.name for field in schema]
        chosen = {name: schema.names[index] for name, index in choose_columns(path, usable).items()}
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=sorted(set(chosen.values()))):
            yield {name: _from_arrow(batch.column(source)) for name, source in chosen.items()}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet table ({error}); fetch it again.") from None


def _text_blocks(path: Path, stream: Any, start: bytes) -> Iterator[dict[str, np.ndarray | Coded]]:
    others = [name for entry in wanted_columns() if entry.is_needed and entry.name != "expnum" for name in entry.names]
    header = texttable.find_header(start, "expnum", others)
    if header is None:
        raise DataError(
            f"{path}: no survey-ccds table (it begins with {start[:40].decode('latin-1')!r}); expected FITS, Parquet, "
            "or CSV or ECSV with a column expnum."
        )
    chosen = choose_columns(path, header.names)
    places = list(dict.fromkeys(chosen.values()))
    text = {chosen[entry.name] for entry in wanted_columns() if entry.is_text and entry.name in chosen}
    factors = {name: _factor(path, name, header.units.get(header.names[place], "")) for name, place in chosen.items()}
    table = texttable.read(path, stream, header, places, text)
    for batch in table.to_batches(max_chunksize=PARQUET_ROWS):
        block = {name: _from_arrow(batch.column(str(place))) for name, place in chosen.items()}
        yield {name: v if isinstance(v, Coded) else _in_unit(v, factors[name]) for name, v in block.items()}


def _from_arrow(column: Any) -> np.ndarray | Coded:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        column = column.cast(pa.large_string())
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    elif pa.types.is_duration(column.type):
        column = pc.divide(column.cast(pa.duration("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
    kind = column.type
    if any(test(kind) for test in _BYTES):
        column = column.cast(pa.large_binary())
    elif any(test(kind) for test in _TEXT):
        column = column.cast(pa.large_string())
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        moments = column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)
        days = (moments - np.datetime64("1858-11-17", "us")) / np.timedelta64(1, "D")
        return np.asarray(days)  # a moment as the other tables have it: modified Julian date, NaN where missing
    else:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    encoded = column.dictionary_encode()
    words = [_clean(word) if isinstance(word, bytes) else word.strip() for word in encoded.dictionary.to_pylist()]
    if column.null_count:
        words.append("")
    return Coded(encoded.indices.fill_null(len(words) - 1).to_numpy(), tuple(words))
