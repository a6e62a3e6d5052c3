"""Reading and writing artifacts: a file with its final name is complete, validated and says where it came from.

Tables are Parquet, arrays are HDF5 with contiguous datasets. Files are written beside their place under a temporary
name, reopened and checked, synced and renamed. HDF5 is opened for reading with locking off, because community file
systems lock badly and a finished file never changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpcqa import __version__
from hpcqa.artifacts.schema import Column, Provenance, Schema, check_shape, conform
from hpcqa.errors import DataError, EnvironmentProblem

PROVENANCE_KEY = "hpcqa"
ROWS_A_GROUP = 1 << 18


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well, and is removed otherwise.

    Raises:
        EnvironmentProblem: no space, no permission, or a read-only place.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _as_problem(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_problem(path: Path, error: OSError) -> EnvironmentProblem:
    advice = {
        errno.ENOSPC: "no space is left: free some or choose another run folder",
        errno.EDQUOT: "the quota is used up: free some space or choose another run folder",
        errno.EACCES: "permission denied: choose a run folder that you may write to",
        errno.EROFS: "the file system is read-only: choose a run folder elsewhere",
    }
    said = advice.get(error.errno or 0, f"{error.strerror or error}; run again when that is mended")
    return EnvironmentProblem(f"{path}: cannot be written: {said}.")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; non-finite numbers become null, so that every reader can parse it."""
    write_text(path, json.dumps(_jsonable(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the stage that writes it.") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); remove it and run its stage again.") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _finish(schema: Schema, provenance: Provenance, num_rows: int, content: str) -> Provenance:
    return dataclasses.replace(
        provenance,
        schema=schema.name,
        schema_version=schema.version,
        code_version=__version__,
        num_rows=num_rows,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        content=content,
    )


def _digest_column(digest: Any, column: Column, values: np.ndarray) -> None:
    digest.update(f"{column.name}:{column.dtype}:{values.shape};".encode())
    if column.dtype == "str":
        _digest_words(digest, values.ravel())
    else:
        digest.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")


def _digest_words(digest: Any, values: np.ndarray) -> None:
    # Block by block: ten million paths joined at once are gigabytes.
    for start in range(0, len(values), ROWS_A_GROUP):
        words = values[start : start + ROWS_A_GROUP].tolist()
        try:
            text = "\0".join(words)
        except TypeError:
            text = "\0".join("" if word is None else str(word) for word in words)
        digest.update((("\0" if start else "") + text).encode())


# Tables -------------------------------------------------------------------------------------------------------------


def write_table(path: Path, schema: Schema, columns: Mapping[str, np.ndarray], provenance: Provenance) -> Provenance:
    """Write a Parquet table.

    Args:
        columns: one 1-d array a column, shape (row,), in any order.

    Returns:
        The provenance as stored, with the content digest.

    Raises:
        DataError: columns contradict the schema, or its key is not unique.
        EnvironmentProblem: the disk refuses.
    """
    table = conform(schema, columns, where=str(path))
    check_key(schema, table, where=str(path))
    digest = hashlib.sha256()
    for name, values in table.items():
        _digest_column(digest, schema.column(name), values)
    num_rows = len(next(iter(table.values())))
    stored = _finish(schema, provenance, num_rows, digest.hexdigest())
    metadata = {PROVENANCE_KEY: json.dumps(dataclasses.asdict(stored), sort_keys=True)}
    fields = [_arrow_field(schema.column(name)) for name in table]
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(temporary, pa.schema(fields, metadata=metadata), compression="zstd") as out:
            # One row group at a time, so that text is held twice for a group only.
            for start in range(0, max(1, num_rows), ROWS_A_GROUP):
                stop = start + ROWS_A_GROUP
                parts = [
                    pa.array(values[start:stop], type=field.type, from_pandas=pa.types.is_string(field.type))
                    for values, field in zip(table.values(), fields, strict=True)
                ]
                out.write_table(pa.Table.from_arrays(parts, schema=out.schema), row_group_size=ROWS_A_GROUP)
        if pq.ParquetFile(temporary).metadata.num_rows != num_rows:
            raise EnvironmentProblem(f"{path}: written rows do not read back; check the file system.")
    return stored


def _arrow_field(column: Column) -> pa.Field:
    kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.field(column.name, kind, metadata={"unit": column.unit, "doc": column.doc})


def check_key(schema: Schema, columns: Mapping[str, np.ndarray], *, where: str) -> None:
    """DataError if two rows share a key."""
    if not schema.key or not len(columns[schema.key[0]]):
        return
    keys = [columns[name] for name in schema.key]
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, bool)
    for values in keys:
        same &= values[order][1:] == values[order][:-1]
    if same.any():
        first = order[1:][same][0]
        row = ", ".join(f"{name}={values[first]}" for name, values in zip(schema.key, keys, strict=True))
        raise DataError(f"{where}: {int(same.sum())} rows repeat a key of {schema.name}, first {row}.")


def read_table(path: Path, schema: Schema, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a Parquet table as numpy arrays; strings as object arrays.

    Raises:
        DataError: missing, damaged, or of another schema.
    """
    read_provenance(path, schema)
    try:
        table = pq.read_table(path, columns=list(columns) if columns is not None else None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and run its stage again.") from None
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


# Arrays -------------------------------------------------------------------------------------------------------------


class _PatientFile:
    """The file under an HDF5 writer. A write that the disk refuses is kept for later instead of being raised.

    HDF5 crashes the process when a write fails while it closes a file (seen with 1.14 and a file size limit,
    2026-11), so it never hears of it: `error` holds the first refusal, and the writer raises it once HDF5 has let go.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                left = memoryview(data)
                while len(left):
                    left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        return len(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        self._file.close()


class ArrayWriter:
    """Writes one HDF5 file row block by row block; use as a context manager.

    Datasets are contiguous, so that a reader may map them. The file gets its name when the block ends well.

    Example:
        with ArrayWriter(path, SHARD, lengths={"ccd": 960, ...}, provenance=provenance) as out:
            out.write("context", slice(0, 60), views)
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        lengths: Mapping[str, int],
        provenance: Provenance,
        attributes: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        self.path, self.schema = path, schema
        self._provenance, self._attributes = provenance, dict(attributes or {})
        self._columns = [column for column in schema.columns if column.name not in without]
        self._lengths = lengths
        self._atomic = atomic_path(path)
        self._file: h5py.File | None = None
        self.stored: Provenance | None = None

    def __enter__(self) -> ArrayWriter:
        self._temporary = self._atomic.__enter__()
        try:
            self._disk = _PatientFile(self._temporary)
            self._file = h5py.File(self._disk, "w", libver=("v110", "v110"))
            for column in self._columns:
                shape = tuple(self._lengths[axis] for axis in column.dims)
                kind = h5py.string_dtype() if column.dtype == "str" else np.dtype(column.dtype)
                dataset = self._file.create_dataset(column.name, shape, kind)
                dataset.attrs["unit"], dataset.attrs["doc"] = column.unit, column.doc
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(self, name: str, where: slice | int, values: np.ndarray) -> None:
        """Write rows of a dataset, cast to its dtype."""
        assert self._file is not None
        self._file[name][where] = values
        if self._disk.error is not None:
            raise self._disk.error

    def attribute(self, name: str, value: Any) -> None:
        """Set an attribute of the file (JSON for anything but arrays, numbers and text)."""
        self._attributes[name] = value

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._close_well()
            elif self._file is not None:
                self._file.close()
                self._disk.close()
        except BaseException as late:
            self._leave(type(late), late, late.__traceback__)
            raise
        self._leave(kind, error, trace)

    def _leave(self, kind: Any, error: Any, trace: Any) -> None:
        # contextlib re-raises what it is given; the caller's own raise carries the traceback, except for the disk's
        # refusals, which become EnvironmentProblem here.
        try:
            self._atomic.__exit__(kind, error, trace)
        except BaseException as raised:
            if raised is not error:
                raise

    def _close_well(self) -> None:
        assert self._file is not None
        _write_attributes(self._file, self._attributes)
        self._file.flush()
        content = _content_digest(self._file, self._columns)
        rows = self._file[self._columns[0].name].shape[0]
        self.stored = _finish(self.schema, self._provenance, rows, content)
        self._file.attrs[PROVENANCE_KEY] = json.dumps(dataclasses.asdict(self.stored), sort_keys=True)
        self._file.close()
        self._disk.close()
        if self._disk.error is not None:
            raise self._disk.error
        with open_arrays(self._temporary, self.schema):
            pass


def _write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        plain = isinstance(value, (str, int, float, np.ndarray, np.generic))
        file.attrs[name] = value if plain else "json:" + json.dumps(_jsonable(value))


def _content_digest(file: h5py.File, columns: Sequence[Column], block_bytes: int = 1 << 25) -> str:
    digest = hashlib.sha256()
    for column in columns:
        dataset = file[column.name]
        digest.update(f"{column.name}:{column.dtype}:{dataset.shape};".encode())
        rows = max(1, block_bytes // max(1, dataset.nbytes // max(1, dataset.shape[0]))) if dataset.shape else 1
        for start in range(0, dataset.shape[0], rows):
            values = dataset.asstr()[start : start + rows] if column.dtype == "str" else dataset[start : start + rows]
            _digest_values(digest, column, values)
    return digest.hexdigest()


def _digest_values(digest: Any, column: Column, values: np.ndarray) -> None:
    if column.dtype == "str":
        digest.update(("\0".join(str(value) for value in values.ravel()) + "\0").encode())
    elif values.size:
        digest.update(np.ascontiguousarray(values).data.cast("B"))


def write_arrays(
    path: Path,
    schema: Schema,
    arrays: Mapping[str, np.ndarray],
    provenance: Provenance,
    attributes: Mapping[str, Any] | None = None,
) -> Provenance:
    """Write a whole HDF5 file at once; see ArrayWriter for what is stored.

    Raises:
        DataError: arrays contradict the schema.
        EnvironmentProblem: the disk refuses.
    """
    checked = conform(schema, arrays, where=str(path))
    lengths: dict[str, int] = {}
    for name, values in checked.items():
        lengths.update(zip(schema.column(name).dims, values.shape, strict=True))
    without = [column.name for column in schema.columns if column.name not in checked]
    writer = ArrayWriter(path, schema, lengths=lengths, provenance=provenance, attributes=attributes, without=without)
    with writer:
        for name, values in checked.items():
            writer.write(name, slice(0, len(values)), values)
    assert writer.stored is not None
    return writer.stored


class ArrayFile:
    """A validated HDF5 artifact opened for reading."""

    def __init__(self, path: Path, file: h5py.File, provenance: Provenance) -> None:
        self.path, self.provenance, self._file = path, provenance, file
        self.attributes = {name: _read_attribute(file.attrs[name]) for name in file.attrs if name != PROVENANCE_KEY}

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file[name].shape)

    def read(self, name: str, where: slice | np.ndarray | int = slice(None)) -> np.ndarray:
        """Rows of a dataset; strings as an object array.

        Raises:
            DataError: the bytes cannot be read.
        """
        try:
            dataset = self._file[name]
            if h5py.check_string_dtype(dataset.dtype) is not None:
                return np.asarray(dataset.asstr()[where], dtype=object)
            return np.asarray(dataset[where])
        except (OSError, KeyError) as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error}); run `hpcqa verify`.") from None

    def mapping(self, name: str) -> np.memmap:
        """The dataset mapped into memory, read-only; contiguous datasets only."""
        dataset = self._file[name]
        return np.memmap(self.path, dataset.dtype, "r", dataset.id.get_offset(), dataset.shape)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_attribute(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("json:"):
        return json.loads(value[5:])
    return value


def open_arrays(path: Path, schema: Schema) -> ArrayFile:
    """Open an HDF5 artifact and check it against its schema (names, dtypes, axes; not the content digest).

    Raises:
        DataError: missing, damaged, or of another schema.
    """
    provenance = read_provenance(path, schema)
    file = _open_hdf5(path)
    lengths: dict[str, int] = {}
    try:
        for column in schema.columns:
            _check_dataset(file, column, lengths, path)
        return ArrayFile(path, file, provenance)
    except BaseException:
        file.close()
        raise


def _check_dataset(file: h5py.File, column: Column, lengths: dict[str, int], path: Path) -> None:
    if column.name not in file:
        if column.optional:
            return
        raise DataError(f"{path}: dataset {column.name} is missing; remove the file and run its stage again.")
    dataset = file[column.name]
    check_shape(dataset.shape, column, lengths, where=str(path))
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if (column.dtype == "str") != is_text or (not is_text and dataset.dtype != np.dtype(column.dtype)):
        raise DataError(f"{path}: {column.name} has dtype {dataset.dtype}, expected {column.dtype}.")


def _open_hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the stage that writes it.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); remove it and run its stage again.") from None


# Provenance ---------------------------------------------------------------------------------------------------------


def read_provenance(path: Path, schema: Schema | None = None) -> Provenance:
    """Where a file came from.

    Raises:
        DataError: missing, damaged, not an artifact, or not of `schema` when one is given.
    """
    text = _parquet_provenance(path) if path.suffix == ".parquet" else _hdf5_provenance(path)
    if text is None:
        raise DataError(f"{path}: carries no provenance, so it is not an artifact of hpcqa.")
    try:
        provenance = Provenance(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: its provenance does not parse ({error}); remove it and run its stage again."
        ) from None
    if schema is not None and (provenance.schema, provenance.schema_version) != (schema.name, schema.version):
        raise DataError(
            f"{path}: holds {provenance.schema} v{provenance.schema_version}, expected {schema.name} "
            f"v{schema.version}; run its stage again with this version of hpcqa."
        )
    return provenance


def _parquet_provenance(path: Path) -> str | None:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the stage that writes it.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); remove it and run its stage again.") from None
    text = metadata.get(PROVENANCE_KEY.encode())
    return text.decode() if text is not None else None


def _hdf5_provenance(path: Path) -> str | None:
    with _open_hdf5(path) as file:
        value = file.attrs.get(PROVENANCE_KEY)
        return None if value is None else str(value)


def verify(path: Path, schema: Schema) -> list[str]:
    """Problems of a file: structure, key and content digest. Empty if it is as it was written."""
    try:
        if path.suffix == ".parquet":
            columns = read_table(path, schema)
            digest = hashlib.sha256()
            for column in schema.columns:
                if column.name in columns:
                    _digest_column(digest, column, columns[column.name])
            found, expected = digest.hexdigest(), read_provenance(path).content
        else:
            with open_arrays(path, schema) as arrays:
                present = [column for column in schema.columns if column.name in arrays]
                found, expected = _content_digest(arrays._file, present), arrays.provenance.content
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
        provenance = read_provenance(path, schema)
    except DataError:
        return False
    return provenance.config_digest == config_digest and dict(provenance.parents) == dict(parents)
