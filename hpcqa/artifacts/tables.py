"""Tables: Parquet files of named columns, one row group at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpcqa.artifacts.coded import Coded
from hpcqa.artifacts.files import atomic_path
from hpcqa.artifacts.provenance import PROVENANCE_KEY, finish, parse, to_text
from hpcqa.artifacts.schema import Column, Provenance, Schema, Values, conform
from hpcqa.errors import DataError, EnvironmentProblem

ROWS_A_GROUP = 1 << 18


def write_table(path: Path, schema: Schema, columns: Mapping[str, Values], provenance: Provenance) -> Provenance:
    """Write a Parquet table.

    Args:
        columns: one 1-d array a column, shape (row,), in any order; text as objects or coded.

    Returns:
        The provenance as stored, with the content digest.

    Raises:
        DataError: columns contradict the schema, or its key is not unique.
        EnvironmentProblem: the disk refuses.
    """
    table = conform(schema, columns, where=str(path))
    check_key(schema, table, where=str(path))
    num_rows = len(next(iter(table.values())))
    blocks = {name: _compact(values) for name, values in table.items()}
    stored = finish(schema, provenance, num_rows, _content_digest(schema, blocks))
    fields = [_arrow_field(schema.column(name)) for name in table]
    with atomic_path(path) as temporary:
        arrow = pa.schema(fields, metadata={PROVENANCE_KEY: to_text(stored)})
        with pq.ParquetWriter(temporary, arrow, compression="zstd") as out:
            # One row group at a time, so that text is held twice for a group only.
            for start in range(0, max(1, num_rows), ROWS_A_GROUP):
                parts = [
                    _arrow_block(values, field.type, slice(start, start + ROWS_A_GROUP))
                    for values, field in zip(blocks.values(), fields, strict=True)
                ]
                out.write_table(pa.Table.from_arrays(parts, schema=out.schema), row_group_size=ROWS_A_GROUP)
        if pq.ParquetFile(temporary).metadata.num_rows != num_rows:
            raise EnvironmentProblem(f"{path}: written rows do not read back; check the file system.")
    return stored


def _arrow_field(column: Column) -> pa.Field:
    kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.field(column.name, kind, metadata={"unit": column.unit, "doc": column.doc})


def _arrow_block(values: Any, kind: pa.DataType, where: slice) -> pa.Array:
    if isinstance(values, pa.DictionaryArray):
        return values[where].dictionary_decode()
    return pa.array(values[where], type=kind, from_pandas=pa.types.is_string(kind))


def _compact(values: Values) -> Any:
    """Coded text as Arrow's own kind of it, which shares the codes."""
    if isinstance(values, Coded):
        return pa.DictionaryArray.from_arrays(pa.array(values.codes), pa.array(values.words, pa.string()))
    return values


def check_key(schema: Schema, columns: Mapping[str, Values], *, where: str) -> None:
    """DataError if two rows share a key."""
    if not schema.key or not len(columns[schema.key[0]]):
        return
    keys = [np.asarray(_plain(columns[name])) for name in schema.key]
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, bool)
    for values in keys:
        same &= values[order][1:] == values[order][:-1]
    if same.any():
        first = order[1:][same][0]
        row = ", ".join(f"{name}={values[first]}" for name, values in zip(schema.key, keys, strict=True))
        raise DataError(f"{where}: {int(same.sum())} rows repeat a key of {schema.name}, first {row}.")


def _plain(values: Values) -> np.ndarray:
    return values.expand() if isinstance(values, Coded) else values


def read_table(path: Path, schema: Schema, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a Parquet table as numpy arrays; strings as object arrays, equal ones shared.

    Raises:
        DataError: missing, damaged, or of another schema.
    """
    table = _read(path, schema, columns)
    return {name: table[name].to_numpy() for name in table.column_names}


def _read(path: Path, schema: Schema, columns: Sequence[str] | None) -> pa.Table:
    read_provenance(path, schema)
    text = [column.name for column in schema.columns if column.dtype == "str"]
    try:
        return pq.read_table(path, columns=list(columns) if columns is not None else None, read_dictionary=text)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and run its stage again.") from None


def read_provenance(path: Path, schema: Schema | None = None) -> Provenance:
    """Where a table came from.

    Raises:
        DataError: missing, damaged, not an artifact, or not of `schema` when one is given.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the stage that writes it.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); remove it and run its stage again.") from None
    text = metadata.get(PROVENANCE_KEY.encode())
    return parse(text.decode() if text is not None else None, path, schema)


def content_digests(path: Path, schema: Schema) -> tuple[str, str]:
    """The digest of what a table holds now, and the one that it was written with."""
    table = _read(path, schema, None)
    columns = {column.name: table[column.name] for column in schema.columns if column.name in table.column_names}
    return _content_digest(schema, columns), read_provenance(path).content


def _content_digest(schema: Schema, columns: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, values in columns.items():
        column = schema.column(name)
        digest.update(f"{name}:{column.dtype}:({len(values)},);".encode())
        if column.dtype == "str":
            _digest_words(digest, values)
        elif len(values):
            numbers = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values
            digest.update(np.ascontiguousarray(numbers).data.cast("B"))
    return digest.hexdigest()


def _digest_words(digest: Any, values: Any) -> None:
    # Block by block: ten million paths joined at once are gigabytes.
    for start in range(0, len(values), ROWS_A_GROUP):
        if isinstance(values, pa.ChunkedArray):
            words = values.slice(start, ROWS_A_GROUP).cast(pa.string()).combine_chunks()
        else:
            words = _arrow_block(values, pa.string(), slice(start, start + ROWS_A_GROUP))
        whole = pa.ListArray.from_arrays(pa.array([0, len(words)], pa.int32()), pc.fill_null(words, ""))
        digest.update(b"\0" if start else b"")
        digest.update(pc.binary_join(whole, "\0")[0].as_buffer())
