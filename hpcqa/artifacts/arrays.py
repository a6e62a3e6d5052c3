"""Arrays: HDF5 files with contiguous datasets, written row by row and mapped or read in blocks.

They are opened for reading with locking off, because community file systems lock badly and a finished file never
changes. This is the one module that knows HDF5.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcqa.artifacts.coded import Coded
from hpcqa.artifacts.files import atomic_path, jsonable
from hpcqa.artifacts.provenance import PROVENANCE_KEY, finish, parse, to_text
from hpcqa.artifacts.schema import Column, Provenance, Schema, Values, check_shape, conform
from hpcqa.errors import DataError, EnvironmentProblem


class _PatientFile:
    """The file under an HDF5 writer. A write that the disk refuses is kept for later instead of being raised.

    HDF5 crashes the process when a write fails while it closes a file (seen with 1.14 and a file size limit, 2026-11),
    so it never hears of it: `error` holds the first refusal, and the writer raises it once HDF5 has let go. Until then
    HDF5 reads back what it believes to have written, and crashes on anything else (full tmpfs, 2026-11): from the first
    refusal on, its writes are held in memory. They are few, for the writer stops.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._end = 0
        self._held: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        start = self._file.tell()
        if self.error is None:
            try:
                left = memoryview(data)
                while len(left):
                    left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._held.append((start, bytes(data)))
        self._end = max(self._end, start + len(data))
        self._file.seek(start + len(data))
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        start, size = self._file.tell(), len(buffer)
        got = self._file.readinto(buffer) or 0
        if self.error is None:
            return got
        buffer[got:] = bytes(size - got)
        for first, data in self._held:
            low, high = max(first, start), min(first + len(data), start + size)
            if low < high:
                buffer[low - start : high - start] = data[low - first : high - first]
        self._file.seek(start + size)
        return size

    def read(self, size: int) -> bytes:
        """By this h5py knows a file; it reads with `readinto`."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(self._end + offset) if whence == os.SEEK_END else self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int) -> int:
        self._end = size
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size

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
        self.stored = finish(self.schema, self._provenance, rows, content)
        self._file.attrs[PROVENANCE_KEY] = to_text(self.stored)
        self._file.close()
        self._disk.close()
        if self._disk.error is not None:
            raise self._disk.error
        with open_arrays(self._temporary, self.schema):
            pass


def _write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        plain = isinstance(value, (str, int, float, np.ndarray, np.generic))
        file.attrs[name] = value if plain else "json:" + json.dumps(jsonable(value))


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
    arrays: Mapping[str, Values],
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
            plain = values.expand() if isinstance(values, Coded) else values
            writer.write(name, slice(0, len(plain)), plain)
    assert writer.stored is not None
    return writer.stored


class ArrayFile:
    """A validated HDF5 artifact opened for reading."""

    def __init__(
        self, path: Path, file: h5py.File, provenance: Provenance, datasets: Mapping[str, h5py.Dataset]
    ) -> None:
        self.path, self.provenance, self._file, self._datasets = path, provenance, file, datasets
        self.attributes = {name: _read_attribute(value) for name, value in file.attrs.items() if name != PROVENANCE_KEY}

    def __contains__(self, name: str) -> bool:
        return name in self._datasets

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._datasets[name].shape)

    def read(self, name: str, where: slice | np.ndarray | int = slice(None)) -> np.ndarray:
        """Rows of a dataset; strings as an object array.

        Raises:
            DataError: the bytes cannot be read.
        """
        try:
            dataset = self._datasets[name]
            if h5py.check_string_dtype(dataset.dtype) is not None:
                return np.asarray(dataset.asstr()[where], dtype=object)
            return np.asarray(dataset[where])
        except (OSError, KeyError) as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error}); run `hpcqa verify`.") from None

    def offset(self, name: str) -> int:
        """Where the dataset's bytes begin in the file; contiguous datasets only.

        Raises:
            DataError: it has no bytes, because it is empty or not contiguous.
        """
        offset = self._datasets[name].id.get_offset()
        if offset is None:
            raise DataError(f"{self.path}: {name} has no contiguous bytes; remove the file and run its stage again.")
        return int(offset)

    def mapping(self, name: str) -> np.memmap:
        """The dataset mapped into memory, read-only; contiguous datasets only."""
        dataset = self._datasets[name]
        return np.memmap(self.path, dataset.dtype, "r", self.offset(name), dataset.shape)

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
    file = _open_hdf5(path)
    lengths: dict[str, int] = {}
    datasets = {}
    try:
        provenance = parse(_stored_text(file), path, schema)
        for column in schema.columns:
            dataset = _checked_dataset(file, column, lengths, path)
            if dataset is not None:
                datasets[column.name] = dataset
        return ArrayFile(path, file, provenance, datasets)
    except BaseException:
        file.close()
        raise


class Inside(NamedTuple):
    """What `look_into` finds.

    `shapes` and `offsets` are of the datasets asked about, the byte where each begins in the file or -1 where it is
    empty; `values` and `attributes` what was asked for.
    """

    provenance: Provenance
    shapes: dict[str, tuple[int, ...]]
    offsets: dict[str, int]
    values: dict[str, np.ndarray]
    attributes: dict[str, Any]


def look_into(
    path: Path, schema: Schema, *, places: Sequence[str], values: Sequence[str], attributes: Sequence[str]
) -> Inside:
    """Where some datasets are, the values of others: past h5py's objects, in a quarter of the time of `open_arrays`.

    Only what is asked for is checked against the schema.

    Raises:
        DataError: missing, damaged, or of another schema.
    """
    with _open_hdf5(path) as file:
        try:
            provenance = parse(_stored_text(file), path, schema)
            lengths: dict[str, int] = {}
            found = {name: h5py.h5d.open(file.id, name.encode()) for name in (*places, *values)}
            for name, dataset in found.items():
                _check_dataset(dataset.shape, dataset.dtype, schema.column(name), lengths, path)
            where = {name: found[name].get_offset() for name in places}
            return Inside(
                provenance,
                {name: found[name].shape for name in places},
                {name: -1 if offset is None else int(offset) for name, offset in where.items()},
                {name: _values_of(found[name]) for name in values},
                {name: _read_attribute(file.attrs[name]) for name in attributes},
            )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); remove it and run its stage again.") from None


def _values_of(dataset: h5py.h5d.DatasetID) -> np.ndarray:
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    if values.dtype.kind == "O":
        values[:] = [value.decode() for value in values]
    return values


def read_provenance(path: Path, schema: Schema | None = None) -> Provenance:
    """Where an array file came from.

    Raises:
        DataError: missing, damaged, not an artifact, or not of `schema` when one is given.
    """
    with _open_hdf5(path) as file:
        return parse(_stored_text(file), path, schema)


def _stored_text(file: h5py.File) -> str | None:
    value = file.attrs.get(PROVENANCE_KEY)
    return None if value is None else str(value)


def content_digests(path: Path, schema: Schema) -> tuple[str, str]:
    """The digest of what an array file holds now, and the one that it was written with."""
    with open_arrays(path, schema) as arrays:
        present = [column for column in schema.columns if column.name in arrays]
        return _content_digest(arrays._file, present), arrays.provenance.content


def _checked_dataset(file: h5py.File, column: Column, lengths: dict[str, int], path: Path) -> h5py.Dataset | None:
    dataset = file.get(column.name)
    if dataset is None:
        if column.optional:
            return None
        raise DataError(f"{path}: dataset {column.name} is missing; remove the file and run its stage again.")
    _check_dataset(dataset.shape, dataset.dtype, column, lengths, path)
    return dataset


def _check_dataset(shape: tuple[int, ...], kind: np.dtype, column: Column, lengths: dict[str, int], path: Path) -> None:
    check_shape(shape, column, lengths, where=str(path))
    is_text = kind.kind == "O" and h5py.check_string_dtype(kind) is not None
    if (column.dtype == "str") != is_text or (not is_text and kind != np.dtype(column.dtype)):
        raise DataError(f"{path}: {column.name} has dtype {kind}, expected {column.dtype}.")


def _open_hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run the stage that writes it.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); remove it and run its stage again.") from None
