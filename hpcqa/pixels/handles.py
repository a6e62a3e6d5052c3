"""Reading stretches of many files with few open handles: the least recently used are closed first.

Nothing is open after construction; handles and threads are made on first use in each process, so that a reader can be
forked, spawned and pickled. Opening, reading and closing are compiled loops around the system's calls: at 8 KiB a row
and a file in every tenth, Python's part would cost more than the system's. What such a loop cannot do is done again in
Python, one file at a time, which knows what to say.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import resource
import threading
import weakref
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
_USUAL = 256  # handles; a process may have no more than 1,024 files open, and more than one reader
_SHARE = 2  # one in so many of the files that this process may have open is a reader's at most
_SPARE = 16  # where handles are closed, one in so many is, so that the oldest need not be found for each new file
_MANY_NEW = 64  # files to open; on a parallel file system each costs a round trip

_open = types.ExternalFunction("open", types.int32(types.uintp, types.int32))
_close = types.ExternalFunction("close", types.int32(types.int32))
_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_preadv = types.ExternalFunction("preadv", types.intp(types.int32, types.uintp, types.int32, types.int64))
# In place of fstat: its record is the same on every processor, and older libraries have no function named fstat.
_statx = types.ExternalFunction(
    "statx", types.int32(types.int32, types.uintp, types.int32, types.uint32, types.uintp)
)  # fmt: skip
_HAS_STATX = hasattr(ctypes.CDLL(None), "statx")
_HOW = os.O_RDONLY | os.O_CLOEXEC
_EMPTY_PATH = 0x1000  # AT_EMPTY_PATH: of the open file itself
_WANTED = 0x40 | 0x200  # STATX_MTIME, STATX_SIZE
_STATX_WORDS = 32  # of 8 bytes


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
        self.paths, self.states, self.threads, self._most = list(paths), states, threads, min(most, len(paths))
        self._begin()

    def _begin(self) -> None:
        names = [os.fsencode(path) + b"\0" for path in self.paths]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._name = np.cumsum([0, *map(len, names)])[:-1]
        self._descriptor = np.full(len(self.paths), -1, np.int32)
        self._forget()
        _all.add(weakref.ref(self, _all.discard))
        weakref.finalize(self, _close_all, self._descriptor)

    def _forget(self) -> None:
        """Begin anew in this process."""
        self.most = min(self._most, _USUAL)
        self._used = np.zeros(len(self.paths), np.int64)
        self._turn = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def after_fork(self) -> None:
        """Close what is the other process's, at once: later its numbers may be other files' of this one."""
        _close_all(self._descriptor)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("paths", "states", "threads", "_most")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, stretches: Stretches, out: np.ndarray) -> None:
        """Fill parts of `out`, uint8 (n,), from some files; one call at a time, which uses several threads itself.

        Raises:
            DataError: a file is gone, unreadable, shorter than it was, or another one by now.
        """

        def work(part: Stretches) -> None:
            self._open(part.file)
            self._fill(part, out)

        with self._lock:
            for group in self._groups(stretches):
                size = int(group.length[group.first[0] : group.first[-1]].sum())
                self._share(group, work, self._make_room(group.file) >= _MANY_NEW or size >= _WORTH_THREADS)

    def will_need(self, stretches: Stretches) -> None:
        """Ask the system to have some stretches of one part each ready; nothing happens where it can't.

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

        with self._lock:
            for group in self._groups(stretches):
                self._share(group, work, self._make_room(group.file) >= _MANY_NEW)

    # Handles: only called by the one who holds the lock

    def _groups(self, stretches: Stretches) -> Iterator[Stretches]:
        """As many stretches at a time as there may be open files."""
        if self.most >= min(len(stretches.file), len(self.paths)):
            yield stretches
            return
        new = np.flatnonzero(np.diff(stretches.file, prepend=-1))
        for start, stop in itertools.pairwise([*new[:: self.most].tolist(), len(stretches.file)]):
            yield stretches[start:stop]

    def _make_room(self, files: np.ndarray) -> int:
        """Close the handles that were not used for longest; how many of these files are not open."""
        self._turn += 1
        new, again = _mark(files, self._turn, self._used, self._descriptor)
        if again:
            self._keep_more()
        too_many = self.num_open + new - self.most if new else 0
        if too_many > 0:
            idle = np.flatnonzero((self._descriptor >= 0) & (self._used < self._turn))
            oldest = idle[np.argsort(self._used[idle], kind="stable")]
            _close_files(oldest[: max(too_many, self.most // _SPARE)], self._descriptor)
        return new

    def _keep_more(self) -> None:
        """Let twice as many handles stay open: reads come back to files that were closed for want of room."""
        wanted = min(2 * self.most, self._most)
        if wanted > self.most:
            others = sum(one.most for one in _readers() if one is not self)
            self.most = max(self.most, _allowed(wanted + others) - others)

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
        done = 0
        while done < len(files):
            if _HAS_STATX:
                done += _open_files(files[done:], self._names, self._name, self.states, self._descriptor)
            if done < len(files):
                number = int(files[done])
                if self._descriptor[number] < 0:
                    self._descriptor[number] = self._opened(number)
                done += 1

    def _opened(self, number: int) -> int:
        path = self.paths[number]
        try:
            descriptor = os.open(path, _HOW)
        except OSError as error:
            advice = "is it still there?"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                advice = "lower shard.reader_handles or raise the limit on open files (ulimit -n)."
            raise DataError(f"{path}: cannot be opened ({error.strerror}); {advice}") from None
        if state_of(os.fstat(descriptor)) != tuple(self.states[number].tolist()):
            os.close(descriptor)
            raise DataError(f"{path}: was replaced while it was in use; start the stage again.")
        return descriptor

    @property
    def num_open(self) -> int:
        return int(np.count_nonzero(self._descriptor >= 0))

    def close(self) -> None:
        """Close all handles; they open again on the next use."""
        with self._lock:
            _close_all(self._descriptor)
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


_all: set[weakref.ref[Handles]] = set()  # no WeakSet: another thread may add to it while it is gone through


def _readers() -> list[Handles]:
    return [one for known in tuple(_all) if (one := known()) is not None]


def _close_all(descriptor: np.ndarray) -> None:
    """Not compiled: after a fork and at the end of a process nothing can be compiled any more."""
    for one in descriptor[descriptor >= 0].tolist():
        os.close(one)
    descriptor[:] = -1


def _after_fork() -> None:
    for one in _readers():
        one.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _allowed(wanted: int) -> int:
    """How many of so many handles this process may have; its soft limit is raised for them."""
    soft, hard = (limit if limit >= 0 else 1 << 62 for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < _SHARE * wanted:
        with contextlib.suppress(OSError, ValueError):
            higher = min(_SHARE * wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (higher, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = higher
    return min(wanted, soft // _SHARE)


@kernel
def _mark(files: np.ndarray, turn: int, used: np.ndarray, descriptor: np.ndarray) -> tuple[int, int]:
    """Note that some sorted files are used; how many are not open, and how many of these have been."""
    new, again, last = 0, 0, -1
    for number in files:
        if number != last:
            if descriptor[number] < 0:
                new += 1
                again += used[number] > 0
            used[number] = turn
            last = number
    return new, again


@kernel
def _open_files(
    files: np.ndarray, names: np.ndarray, name: np.ndarray, states: np.ndarray, descriptor: np.ndarray
) -> int:
    """Open some files that are not open; how many are before one that does not open, or is another one.

    Args:
        names: all paths, each with a zero after it; `name` is where each begins.
        states, descriptor: of all files, as in Handles.
    """
    found = np.empty(_STATX_WORDS, np.int64)
    halves, nothing = found.view(np.uint32), np.zeros(1, np.uint8)
    for k in range(len(files)):
        number = files[k]
        if descriptor[number] >= 0:
            continue
        new = _open(names.ctypes.data + name[number], _HOW)
        if new < 0:
            return k
        problem = _statx(new, nothing.ctypes.data, _EMPTY_PATH, _WANTED, found.ctypes.data)
        # struct statx: bytes 0 what is known, 40 size, 112 time of writing in seconds, 120 and its nanoseconds.
        is_known = problem == 0 and halves[0] & _WANTED == _WANTED
        modified = found[14] * 1_000_000_000 + np.int64(halves[30])
        if not is_known or found[5] != states[number, 0] or modified != states[number, 1]:
            _close(new)
            return k
        descriptor[number] = new
    return len(files)


@kernel
def _close_files(files: np.ndarray, descriptor: np.ndarray) -> None:
    for number in files:
        if descriptor[number] >= 0:
            old = descriptor[number]
            descriptor[number] = -1  # first, lest a process that is forked now takes it for open
            _close(old)


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
        if first[k + 1] == part + 1:  # most are: the system need not fetch the vector
            if _pread(descriptor[k], base + begin[part], length[part], place) != length[part]:
                return k
            continue
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
