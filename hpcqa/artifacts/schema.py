"""What an artifact is: named columns or datasets with dtypes, shapes and units, a version, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hpcqa.artifacts.coded import Coded
from hpcqa.errors import DataError

Values = np.ndarray | Coded  # text may come coded


@dataclass(frozen=True)
class Column:
    """One column of a table or one dataset of an array file.

    `dims` names the axes; equal names must have equal lengths across the datasets of a file. A table's column has the
    single axis "row". `dtype` is a numpy name, or "str".
    """

    name: str
    dtype: str
    doc: str
    unit: str = ""
    dims: tuple[str, ...] = ("row",)
    optional: bool = False


@dataclass(frozen=True)
class Schema:
    """A versioned artifact format. `key` names the columns that identify a row; keys are unique within a file."""

    name: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


@dataclass(frozen=True)
class Provenance:
    """Where a file came from; stored in the file itself.

    `parents` maps a parent's path, relative to the run folder, to its content digest. `content` is the SHA-256 of the
    columns' bytes alone, so that two files with equal content have equal digests whenever and wherever written.
    """

    config_digest: str
    parents: Mapping[str, str] = field(default_factory=dict)
    instrument: str = ""
    schema: str = ""
    schema_version: int = 0
    code_version: str = ""
    num_rows: int = 0
    created: str = ""
    content: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


def conform(schema: Schema, columns: Mapping[str, Values], *, where: str) -> dict[str, Values]:
    """The columns in the schema's order and dtypes, checked for presence, extra names and axis lengths.

    Raises:
        DataError: a column is missing, unknown, or its shape contradicts another's.
    """
    unknown = sorted(set(columns) - {column.name for column in schema.columns})
    if unknown:
        raise DataError(f"{where}: {schema.name} has no column {', '.join(unknown)}.")
    lengths: dict[str, int] = {}
    result: dict[str, Values] = {}
    for column in schema.columns:
        if column.name not in columns:
            if column.optional:
                continue
            raise DataError(f"{where}: column {column.name} of {schema.name} v{schema.version} is missing.")
        values = _cast(columns[column.name], column)
        check_shape(values.shape, column, lengths, where=where)
        result[column.name] = values
    return result


def _cast(values: Values, column: Column) -> Values:
    if column.dtype == "str":
        if isinstance(values, Coded):
            return values
        return np.asarray(values, dtype=object)
    return np.ascontiguousarray(values, dtype=column.dtype)


def check_shape(shape: tuple[int, ...], column: Column, lengths: dict[str, int], *, where: str) -> None:
    """Compare a shape with the column's axes and the lengths seen so far, which are updated."""
    if len(shape) != len(column.dims):
        raise DataError(f"{where}: {column.name} has shape {shape}, expected axes ({', '.join(column.dims)}).")
    for axis, length in zip(column.dims, shape, strict=True):
        if lengths.setdefault(axis, length) != length:
            raise DataError(f"{where}: {column.name} has {length} along {axis}, other datasets {lengths[axis]}.")
