"""Reading stretches of many files with few open handles: the least recently used are closed first.

Nothing is open after construction; handles and threads are made on first use in each process, so that a reader can be
forked, spawned and pickled. The reads themselves are one compiled loop around preadv: at 8 KiB a row, Python's part of
a read would cost more than the system's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import types

from hpcqa.errors import DataError
from hpcqa.kernels import kernel
from hpcqa.pixels.shardindex import state_of

_VECTORS = 512  # parts of one read; systems allow 1,024
_WORTH_THREADS = 1 << 22  # bytes; for fewer, threads cost more than they hide
_USUAL = 640  # handles; a system may allow no more than 1,024
_OTHERS = 256  # handles that are not ours
# Training comes back to two blocks for each row of a batch (order.py), and a block lies in one file or two.
_COMES_BACK_TO = 4
_MANY_NEW = 64  # files to open; on a parallel file system each costs a round trip

_preadv = types.ExternalFunction("preadv", types.intp(types.int32, types.uintp, types.int32, types.int64))


@dataclass(frozen=True)
class Stretches:
    """Stretches of files, sorted by file, and the parts of a flat array that their bytes go into.

    Attributes:
        file, offset: (R,) int64, number of the file and where the stretch begins in it.
        first: (R + 1,) int64, the first part of each stretch, and one past the last.
        begin, length: (P,) int64, of each part, in bytes.
    """

    file: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    begin: np.ndarray
    length: np.ndarray

    def __getitem__(self, where: slice) -> Stretches:
        first = self.first[where.start : where.stop + 1]
        return Stretches(self.file[where], self.offset[where], first, self.begin, self.length)


class Handles:
    """Files that are read by several threads through at most so many handles."""

    def __init__(self, paths: Sequence[Path], states: np.ndarray, most: int, threads: int) -> None:
        """Open nothing yet.

        Args:
            states: (len(paths), 2) int64, size and time of writing of each file as it was looked into.
            most: handles that stay open, if reads are of so many files that this many are of use.
            threads: that read together.
        """
        self.paths, self.states, self.threads = list(paths), states.tolist(), threads
        self._most, self.most = most, min(most, _USUAL)
        self._forget()

    def _forget(self) -> None:
        self._descriptor = np.full(len(self.paths), -1, np.int32)
        self._used = np.zeros(len(self.paths), np.int64)
        self._turn = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("paths", "states", "threads", "_most", "most")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, stretches: Stretches, out: np.ndarray) -> None:
        """Fill parts of `out`, uint8 (n,), from some files; one call at a time, which uses several threads itself.

        Raises:
            DataError: a file is gone, unreadable, shorter than it was, or another one by now.
        """

        def work(part: Stretches) -> None:
            self._open(part.file)
            self._fill(part, out)

        with self._mine():
            self._stay_open(int(np.count_nonzero(changes(stretches.file))))
            for group in self._groups(stretches):
                size = int(group.length[group.first[0] : group.first[-1]].sum())
                self._share(group, work, self._make_room(group.file) >= _MANY_NEW or size >= _WORTH_THREADS)

    def will_need(self, file: np.ndarray, offset: np.ndarray, size: np.ndarray) -> None:
        """Ask the system to have some stretches ready, (R,) each, sorted by file; nothing happens where it can't.

        Raises:
            DataError: as `read`.
        """
        if not hasattr(os, "posix_fadvise"):
            return

        def work(part: Stretches) -> None:
            self._open(part.file)
            descriptors = self._descriptor[part.file].tolist()
            for one in zip(descriptors, part.offset.tolist(), part.length[part.first[:-1]].tolist(), strict=True):
                os.posix_fadvise(*one, os.POSIX_FADV_WILLNEED)

        with self._mine():
            places = np.arange(len(file) + 1)
            for group in self._groups(Stretches(file, offset, places, places[:-1], size)):
                self._share(group, work, self._make_room(group.file) >= _MANY_NEW)

    # Handles: only called by the one who holds the lock

    def _mine(self) -> threading.Lock:
        if self._process != os.getpid():
            self._forget()
        return self._lock

    def _stay_open(self, files: int) -> None:
        """Let as many handles stay open as reads of so many files come back to, if these are not simply too many."""
        wanted = _COMES_BACK_TO * files
        if self.most < wanted <= self._most:
            self.most = max(self.most, _allowed(wanted))

    def _groups(self, stretches: Stretches) -> Iterator[Stretches]:
        """As many stretches at a time as there may be open files."""
        new = np.flatnonzero(changes(stretches.file))
        if len(new) <= self.most:
            yield stretches
            return
        for start, stop in itertools.pairwise([*new[:: self.most].tolist(), len(stretches.file)]):
            yield stretches[start:stop]

    def _make_room(self, files: np.ndarray) -> int:
        """Close the handles that were not used for longest; how many of these files are not open."""
        self._turn += 1
        self._used[files] = self._turn
        new = len(self._closed(files))
        too_many = self.num_open + new - self.most if new else 0
        if too_many > 0:
            idle = np.flatnonzero((self._descriptor >= 0) & (self._used < self._turn))
            for number in idle[np.argsort(self._used[idle], kind="stable")][:too_many].tolist():
                self._close(number)
        return new

    def _closed(self, files: np.ndarray) -> list[int]:
        """Those of some sorted files that are not open."""
        closed = files[self._descriptor[files] < 0]
        numbers: list[int] = closed[changes(closed)].tolist()
        return numbers

    def _share(self, stretches: Stretches, work: Callable[[Stretches], None], threaded: bool) -> None:
        """Have the threads take a part each, so that a file is opened by one and read in its order."""
        parts = min(self.threads, len(stretches.file)) if threaded else 1
        if parts < 2:
            work(stretches)
            return
        self._pool = self._pool or ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        edges = np.linspace(0, len(stretches.file), parts + 1).astype(int)
        edges[1:-1] = np.searchsorted(stretches.file, stretches.file[edges[1:-1]])
        jobs = [self._pool.submit(work, stretches[a:b]) for a, b in itertools.pairwise(edges.tolist())]
        problems = [job.exception() for job in jobs]  # all have ended before anything is raised
        for problem in problems:
            if problem is not None:
                raise problem

    def _open(self, files: np.ndarray) -> None:
        for number in self._closed(files):
            self._descriptor[number] = self._opened(number)

    def _opened(self, number: int) -> int:
        try:
            descriptor = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.paths[number]}: cannot be opened ({error.strerror}); is it still there?") from None
        if list(state_of(os.fstat(descriptor))) != self.states[number]:
            os.close(descriptor)
            raise DataError(f"{self.paths[number]}: was replaced while it was in use; start the stage again.")
        return descriptor

    def _close(self, number: int) -> None:
        os.close(int(self._descriptor[number]))
        self._descriptor[number] = -1

    @property
    def num_open(self) -> int:
        return int(np.count_nonzero(self._descriptor >= 0))

    def close(self) -> None:
        """Close all handles; they open again on the next use."""
        with self._mine():
            for number in np.flatnonzero(self._descriptor >= 0).tolist():
                self._close(number)
            if self._pool is not None:
                self._pool.shutdown(wait=False)
            self._pool = None

    # Bytes

    def _fill(self, some: Stretches, out: np.ndarray) -> None:
        descriptors = self._descriptor[some.file]
        done = 0
        while done < len(descriptors):
            done += _read(descriptors[done:], some.offset[done:], some.first[done:], some.begin, some.length, out)
            if done < len(descriptors):
                self._read_patiently(some[done : done + 1], out)
                done += 1

    def _read_patiently(self, one: Stretches, out: np.ndarray) -> None:
        """One stretch in as many reads as it takes."""
        path = self.paths[int(one.file[0])]
        descriptor, offset = int(self._descriptor[one.file[0]]), int(one.offset[0])
        parts = slice(int(one.first[0]), int(one.first[1]))
        for begin, length in zip(one.begin[parts].tolist(), one.length[parts].tolist(), strict=True):
            left = out.data[begin : begin + length]
            while len(left):
                try:
                    got = os.preadv(descriptor, [left], offset)
                except OSError as error:
                    raise DataError(f"{path}: cannot be read ({error.strerror}); run `hpcqa verify`.") from None
                if got <= 0:
                    raise DataError(f"{path}: shorter than when it was opened; run `hpcqa verify`.")
                offset, left = offset + got, left[got:]


def _allowed(wanted: int) -> int:
    """How many of so many handles this process may have; its soft limit is raised for them."""
    soft, hard = (limit if limit >= 0 else 1 << 62 for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < wanted + _OTHERS:
        with contextlib.suppress(OSError, ValueError):
            higher = min(wanted + _OTHERS, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (higher, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = higher
    return min(wanted, soft - _OTHERS)


def changes(values: np.ndarray, step: int = 0) -> np.ndarray:
    """Where a value is not the one before it, plus `step`: bool, the first True. (np.diff takes four times as long.)"""
    result = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1] + step, out=result[1:])
    return result


@kernel
def _read(
    descriptor: np.ndarray, offset: np.ndarray, first: np.ndarray, begin: np.ndarray, length: np.ndarray,
    out: np.ndarray,
) -> int:  # fmt: skip
    """Read stretches, as in Stretches; how many came in full before one that did not."""
    base = out.ctypes.data
    vectors = np.empty((_VECTORS, 2), np.uintp)  # struct iovec: address, length
    for k in range(len(descriptor)):
        place, part = offset[k], first[k]
        while part < first[k + 1]:
            number = min(first[k + 1] - part, _VECTORS)
            size = 0
            for m in range(number):
                vectors[m, 0] = base + begin[part + m]
                vectors[m, 1] = length[part + m]
                size += length[part + m]
            if _preadv(descriptor[k], vectors.ctypes.data, number, place) != size:
                return k
            place += size
            part += number
    return len(descriptor)
