"""Where everything is in thousands of shards: one small file beside them, so that opening them opens none of them.

A shard is looked into once. What was found, with its size and time of writing, is kept in index.hdf5; a shard that was
written since is looked into again. Each task of the shard stage notes what it writes in a file of its own, so that the
first reader need only join these files. They and the index are a cache: they may be removed at any time.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD, SHARD_INDEX
from hpcqa.artifacts.folder import SHARD_INDEX_NAME
from hpcqa.artifacts.schema import Provenance
from hpcqa.errors import DataError, EnvironmentProblem

logger = logging.getLogger(__name__)

ARRAYS = ("context", "background", "background_noise", "detail", "numbers")
_CCD_COLUMNS = ("expnum", "ccdnum", "failed", "background_bin")
COLUMNS = (*_CCD_COLUMNS, "exposure", "exposure_band")
_NOTES = "index-{}.hdf5"
_FEW = 4  # so few shards are looked into without an index
_MANY = 256  # so many new ones are looked into by several processes
_MOST_PROCESSES = 16
_LOOKERS = 16  # threads that ask for sizes and times
_CHUNK = 32
_STATES = 256  # one thread asks for so many


@dataclass(frozen=True)
class Directory:
    """What one shard holds, and where.

    Attributes:
        columns: expnum, ccdnum, failed, background_bin (C,); exposure, exposure_band (E,).
        offsets: byte offset of each of ARRAYS in the file, -1 where it is empty.
        rows: shape of a row of each of ARRAYS.
        state: size and time of writing (ns) of the file.
    """

    columns: dict[str, np.ndarray]
    names: tuple[str, ...]
    offsets: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    content: str
    state: tuple[int, int]


@dataclass(frozen=True)
class ShardIndex:
    """What some shards hold, in their order.

    Attributes:
        columns: as in Directory, of all shards together.
        names: of the measured numbers.
        offsets: int64 (S, len(ARRAYS)). rows: shape of a row of each of ARRAYS.
        contents: content digest of each shard.
        states: (S, 2) int64.
        starts: int64 (S + 1,), the first CCD row of each shard.
    """

    columns: dict[str, np.ndarray]
    names: tuple[str, ...]
    offsets: np.ndarray
    rows: tuple[tuple[int, ...], ...]
    contents: tuple[str, ...]
    states: np.ndarray
    starts: np.ndarray
    exposure_starts: np.ndarray


def state_of(found: os.stat_result) -> tuple[int, int]:
    """What tells a file from the one that it is replaced by: size, time of writing."""
    return found.st_size, found.st_mtime_ns


def read_directory(path: Path) -> Directory:
    """Look into one shard.

    Raises:
        DataError: missing, damaged, or no shard.
    """
    state = _state(path)  # first: a shard that is replaced while it is looked into is looked into again
    found = store.look_into(path, SHARD, places=ARRAYS, values=COLUMNS, attributes=["number_names"])
    return Directory(
        columns=found.values,
        names=tuple(str(name) for name in found.attributes["number_names"]),
        offsets=tuple(found.offsets[name] for name in ARRAYS),
        rows=tuple(found.shapes[name][1:] for name in ARRAYS),
        content=found.provenance.content,
        state=state,
    )


def open_index(paths: Sequence[Path]) -> ShardIndex:
    """What some shards hold; from the index beside them where it knows them as they are now.

    Raises:
        DataError: a shard is missing or damaged, or its views or numbers are others than the first one's.
    """
    if len(paths) < _FEW or len({path.parent for path in paths}) > 1:
        return _joined(paths, [read_directory(path) for path in paths])
    target = paths[0].parent / SHARD_INDEX_NAME
    before = _written(target)
    cached, known = _read_cache(target)
    states = _states(paths)
    places = [known.get((path.name, *state), -1) for path, state in zip(paths, states, strict=True)]
    if cached is not None and places == list(range(len(cached.contents))):
        return cached
    if cached is not None and -1 not in places:
        return _joined(paths, [_one_of(cached, place) for place in places])
    noted, notes = _noted(paths[0].parent)
    if _written(target) != before:
        # Another reader has joined notes meanwhile; they may have gone before they were seen here.
        noted |= _directories(target)
    keys = [(path.name, *state) for path, state in zip(paths, states, strict=True)]
    unknown = [place < 0 and key not in noted for place, key in zip(places, keys, strict=True)]
    new = iter(_look_into([path for path, wanted in zip(paths, unknown, strict=True) if wanted]))
    directories = [
        _one_of(cached, place) if cached and place >= 0 else noted.get(key) or next(new)
        for place, key in zip(places, keys, strict=True)
    ]
    index = _joined(paths, directories)
    names = [path.name for path in paths]
    is_all = {name for name, *_ in (*known, *noted)} <= set(names)
    if is_all and _write_cache(target, names, index):
        for note in notes:
            with contextlib.suppress(OSError):
                note.unlink()
    return index


class Notes:
    """What one task of the shard stage notes of the shards that it writes, in a file beside them.

    Args:
        shards: their folder.
        number: of the first one, which no other task writes.
    """

    def __init__(self, shards: Path, number: int) -> None:
        self._target = shards / _NOTES.format(f"{number:05d}")
        self._found: dict[str, Directory] = {}

    def add(self, path: Path) -> None:
        """Note a shard that is complete."""
        try:
            self._found[path.name] = read_directory(path)
        except DataError as error:
            logger.info("%s It is left to the first reader.", error)

    def write(self) -> None:
        """Write down what was noted so far, if anything was."""
        names = list(self._found)
        if names:
            paths = [self._target.with_name(name) for name in names]
            _write_cache(self._target, names, _joined(paths, list(self._found.values())))


def _noted(shards: Path) -> tuple[dict[tuple[str, int, int], Directory], list[Path]]:
    """What tasks noted of each (name, size, time), and their files."""
    notes = sorted(shards.glob(_NOTES.format("*")))
    noted: dict[tuple[str, int, int], Directory] = {}
    for note in notes:
        noted |= _directories(note)
    return noted, notes


def _directories(cache: Path) -> dict[tuple[str, int, int], Directory]:
    """What an index or a task's notes know of each (name, size, time)."""
    some, known = _read_cache(cache)
    return {} if some is None else {key: _one_of(some, place) for key, place in known.items()}


def _written(path: Path) -> tuple[int, int] | None:
    try:
        return state_of(path.stat())
    except OSError:
        return None


def _states(paths: Sequence[Path]) -> list[tuple[int, int]]:
    def states(some: Sequence[Path]) -> list[tuple[int, int]]:
        return [_state(path) for path in some]

    with ThreadPoolExecutor(_LOOKERS) as pool:
        parts = pool.map(states, [paths[start : start + _STATES] for start in range(0, len(paths), _STATES)])
        return [state for part in parts for state in part]


def _state(path: Path) -> tuple[int, int]:
    try:
        return state_of(path.stat())
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); run `hpcqa shard` again.") from None


def _look_into(paths: Sequence[Path]) -> Iterator[Directory]:
    """The directories of some shards, by several processes if they are many: HDF5 lets no two threads in at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cores, _MOST_PROCESSES)
    if len(paths) >= _MANY:
        logger.info("looking into %d shards for the first time", len(paths))
    if len(paths) < _MANY or processes == 1 or multiprocessing.current_process().daemon:
        return iter([read_directory(path) for path in paths])
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            return iter(list(pool.map(read_directory, paths, chunksize=_CHUNK)))
    except (BrokenProcessPool, OSError):
        logger.warning("the processes that look into the shards broke down; going on with one.")
        return iter([read_directory(path) for path in paths])


def _joined(paths: Sequence[Path], directories: Sequence[Directory]) -> ShardIndex:
    first = directories[0]
    rows = {name: row for one in directories for name, row, offset in zip(ARRAYS, one.rows, one.offsets, strict=True)
            if offset >= 0}  # fmt: skip
    for path, one in zip(paths, directories, strict=True):
        mine = zip(ARRAYS, one.rows, one.offsets, strict=True)
        if one.names != first.names or any(rows[name] != row for name, row, offset in mine if offset >= 0):
            raise DataError(
                f"{path}: its views or numbers differ from those of {paths[0]}; remove the older one and run "
                "`hpcqa shard` again."
            )
    columns = {name: np.concatenate([one.columns[name] for one in directories]) for name in first.columns}
    return ShardIndex(
        columns=columns,
        names=first.names,
        offsets=np.array([one.offsets for one in directories], np.int64),
        rows=tuple(rows.get(name, first.rows[place]) for place, name in enumerate(ARRAYS)),
        contents=tuple(one.content for one in directories),
        states=np.array([one.state for one in directories], np.int64),
        starts=_edges([len(one.columns["expnum"]) for one in directories]),
        exposure_starts=_edges([len(one.columns["exposure"]) for one in directories]),
    )


def _edges(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _one_of(index: ShardIndex, place: int) -> Directory:
    ccds = slice(*index.starts[place : place + 2].tolist())
    exposures = slice(*index.exposure_starts[place : place + 2].tolist())
    return Directory(
        columns={name: values[ccds if name in _CCD_COLUMNS else exposures] for name, values in index.columns.items()},
        names=index.names,
        offsets=tuple(index.offsets[place].tolist()),
        rows=index.rows,
        content=index.contents[place],
        state=(int(index.states[place, 0]), int(index.states[place, 1])),
    )


# The file -------------------------------------------------------------------------------------------------------------


def _read_cache(path: Path) -> tuple[ShardIndex | None, dict[tuple[str, int, int], int]]:
    """The index as it is on disk, and the place of each (name, size, time) in it; nothing if it is not usable."""
    if not path.exists():
        return None, {}
    problems = store.verify(path, SHARD_INDEX)  # a flipped byte would make rows of one CCD those of another
    if problems:
        if path.exists():  # notes go when another reader has joined them
            logger.warning("%s: damaged or of another version; it is made anew from the shards.", path)
        return None, {}
    try:
        with store.open_arrays(path, SHARD_INDEX) as file:
            values: dict[str, Any] = {column.name: file.read(column.name) for column in SHARD_INDEX.columns}
            attributes = file.attributes
        if tuple(attributes["arrays"]) != ARRAYS:
            return None, {}
    except (DataError, EnvironmentProblem, KeyError) as error:
        logger.warning("%s; it is made anew.", str(error).rstrip("."))
        return None, {}
    index = ShardIndex(
        columns={name: values[name] for name in COLUMNS},
        names=tuple(attributes["number_names"]),
        offsets=values["offset"],
        rows=tuple(tuple(row) for row in attributes["rows"]),
        contents=tuple(values["content"]),
        states=np.stack([values["size"], values["modified"]], axis=1),
        starts=_edges(values["num_ccds"]),
        exposure_starts=_edges(values["num_exposures"]),
    )
    keys = zip(values["shard"].tolist(), values["size"].tolist(), values["modified"].tolist(), strict=True)
    return index, {key: place for place, key in enumerate(keys)}


def _write_cache(target: Path, names: Sequence[str], index: ShardIndex) -> bool:
    """Write an index of shards of some names; where that is not possible, the next reader looks into them again.

    Returns:
        Whether it was possible.
    """
    columns = index.columns | {
        "shard": np.array(names, object),
        "content": np.array(index.contents, object),
        "size": index.states[:, 0],
        "modified": index.states[:, 1],
        "num_ccds": np.diff(index.starts),
        "num_exposures": np.diff(index.exposure_starts),
        "offset": index.offsets,
    }
    attributes = {"number_names": list(index.names), "arrays": list(ARRAYS), "rows": [list(row) for row in index.rows]}
    try:
        store.write_arrays(target, SHARD_INDEX, columns, Provenance(""), attributes)
    except EnvironmentProblem as error:
        logger.info("%s The shards are looked into again next time.", error)
        return False
    return True
