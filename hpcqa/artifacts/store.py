"""Reading, writing and checking artifacts: a file with its final name is complete, valid and says where it came from.

Tables are Parquet (tables.py), arrays are HDF5 (arrays.py); each carries its record (provenance.py) and gets its name
when it is whole (files.py). What the rest of hpcqa needs of them is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from hpcqa.artifacts import arrays, tables
from hpcqa.artifacts.arrays import ArrayFile, ArrayWriter, look_into, open_arrays, write_arrays
from hpcqa.artifacts.files import atomic_path, read_json, remove_unfinished, sync, write_json, write_text
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.provenance import is_made_from
from hpcqa.artifacts.schema import Provenance, Schema
from hpcqa.artifacts.tables import check_key, read_table, write_table
from hpcqa.errors import DataError, EnvironmentProblem

__all__ = [
    "ArrayFile",
    "ArrayWriter",
    "atomic_path",
    "check_key",
    "digests",
    "is_current",
    "look_into",
    "open_arrays",
    "read_json",
    "read_provenance",
    "read_table",
    "remove_unfinished",
    "sync",
    "verify",
    "write_arrays",
    "write_json",
    "write_table",
    "write_text",
]


def _module_of(path: Path) -> ModuleType:
    return tables if path.suffix == ".parquet" else arrays


def read_provenance(path: Path, schema: Schema | None = None) -> Provenance:
    """Where a file came from.

    Raises:
        DataError: missing, damaged, not an artifact, or not of `schema` when one is given.
    """
    provenance: Provenance = _module_of(path).read_provenance(path, schema)
    return provenance


def digests(folder: RunFolder, paths: Iterable[Path]) -> dict[str, str]:
    """The content digest of each artifact by its path in provenance: what its children note as `parents`.

    Raises:
        DataError: one is missing or damaged.
    """
    return {folder.relative(path): read_provenance(path).content for path in paths}


def verify(path: Path, schema: Schema) -> list[str]:
    """Problems of a file: structure, key and content digest. Empty if it is as it was written."""
    try:
        found, expected = _module_of(path).content_digests(path, schema)
    except (DataError, EnvironmentProblem) as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001 - a damaged file may fail anywhere inside HDF5 or Arrow
        return [f"{path}: damaged ({type(error).__name__}: {error}); remove it and run its stage again."]
    if found != expected:
        return [f"{path}: its content changed after it was written; remove it and run its stage again."]
    return []


def is_current(path: Path, schema: Schema, *, config_digest: str, parents: Mapping[str, str]) -> bool:
    """Whether a file exists, validates, and was made from this configuration and these parents."""
    try:
        return is_made_from(read_provenance(path, schema), config_digest, parents)
    except DataError:
        return False
