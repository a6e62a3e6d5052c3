"""Reading pieces of many files with few open handles: the least recently used are closed first.

Nothing is open after construction; handles and threads are made on first use in each process, so that a reader can be
forked, spawned and pickled.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcqa.errors import DataError
from hpcqa.pixels.shardindex import state_of

_BUFFERS = 512  # of one read; systems allow 1,024
_WORTH_A_THREAD = 1 << 15  # bytes of a piece; for smaller ones a thread costs more than it hides


class Piece(NamedTuple):
    """`size` bytes of a file, from `offset` on, for some buffers one after another."""

    file: int
    offset: int
    size: int
    into: Sequence[memoryview]


class Handles:
    """Files that are read by several threads through at most so many handles (and one more for each thread)."""

    def __init__(self, paths: Sequence[Path], states: np.ndarray, most: int, threads: int) -> None:
        """Open nothing yet.

        Args:
            states: (len(paths), 2) int64, size and time of writing of each file as it was looked into.
            most: handles that stay open.
            threads: that read together.
        """
        self.paths, self.states, self.most, self.threads = list(paths), states, most, threads
        self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "states": self.states, "most": self.most, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, pieces: Sequence[Piece]) -> None:
        """Fill the buffers of some pieces.

        Raises:
            DataError: a file is gone, shorter than it was, or another one by now.
        """
        if self._process != os.getpid():
            self._forget()
        size = sum(piece.size for piece in pieces)
        if self.threads < 2 or len(pieces) < 2 or size < _WORTH_A_THREAD * len(pieces):
            self._read_some(pieces)
            return
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        # Each thread takes a stretch, so that a file is read in its order.
        edges = np.linspace(0, len(pieces), self.threads + 1).astype(int)
        parts = [pieces[a:b] for a, b in itertools.pairwise(edges.tolist())]
        for _ in self._pool.map(self._read_some, parts):
            pass

    def will_need(self, file: int, offset: int, size: int) -> None:
        """Ask the system to have these bytes ready; nothing happens where it can't."""
        if hasattr(os, "posix_fadvise"):
            if self._process != os.getpid():
                self._forget()
            descriptor = self._take(file)
            try:
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
            finally:
                self._leave(file)

    def _read_some(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            descriptor = self._take(piece.file)
            try:
                if len(piece.into) > _BUFFERS or os.preadv(descriptor, piece.into, piece.offset) != piece.size:
                    self._read_patiently(descriptor, piece)
            finally:
                self._leave(piece.file)

    def _read_patiently(self, descriptor: int, piece: Piece) -> None:
        """In as many reads as it takes."""
        offset = piece.offset
        for start in range(0, len(piece.into), _BUFFERS):
            buffers = list(piece.into[start : start + _BUFFERS])
            while buffers:
                got = os.preadv(descriptor, buffers, offset)
                if got <= 0:
                    path = self.paths[piece.file]
                    raise DataError(f"{path}: shorter than when it was opened; run `hpcqa verify`.")
                offset += got
                buffers = _without(buffers, got)

    def _take(self, number: int) -> int:
        """A file's handle, which is not closed before it is left."""
        with self._lock:
            descriptor = self._open.get(number)
            if descriptor is None:
                descriptor = self._open[number] = self._opened(number)
            else:
                self._open.move_to_end(number)
            self._users[number] = self._users.get(number, 0) + 1
            return descriptor

    def _leave(self, number: int) -> None:
        with self._lock:
            users = self._users.pop(number) - 1
            if users:
                self._users[number] = users

    def _opened(self, number: int) -> int:
        if len(self._open) >= self.most:
            self._close_some(len(self._open) - self.most + 1)
        try:
            descriptor = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.paths[number]}: cannot be opened ({error.strerror}); is it still there?") from None
        found = os.fstat(descriptor)
        if state_of(found) != tuple(self.states[number].tolist()):
            os.close(descriptor)
            raise DataError(f"{self.paths[number]}: was replaced while it was in use; start the stage again.")
        return descriptor

    def _close_some(self, count: int) -> None:
        """Close the handles that were not used for longest, but none that is in use."""
        idle = itertools.islice((number for number in self._open if number not in self._users), count)
        for number in list(idle):
            os.close(self._open.pop(number))

    @property
    def num_open(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all handles that are not in use; they open again on the next use."""
        with self._lock:
            self._close_some(len(self._open))
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(wait=False)
            self._pool = None


def _without(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of some buffers when so many bytes are in."""
    for place, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[place + 1 :]]
        done -= len(buffer)
    return []
