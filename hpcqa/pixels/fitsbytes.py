"""The bytes of one file, read by position: safe from several threads, aware of change, and able to give up waiting."""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hpcqa.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

# No such file; not a folder on the way to it; removed from its server (NFS) while it was open.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_GZIP_MAGIC = b"\x1f\x8b"
# A gzipped file is unpacked in memory; more than this is no image that a worker could hold.
_MAX_UNPACKED = 2 << 30
_AT_ONCE = 1 << 30  # bytes; the system's calls take 2 GiB at most


class FileMissing(DataError):
    """The file is not there, or no longer."""


class FileChanged(DataError):
    """The file changed while it was being read."""


class WrongSum(DataError):
    """The data are not those whose sum the header gives."""


class NoAnswer(DataError):
    """The file system did not answer in time."""


class Room:
    """Memory that is used again for one read after the other: touching fresh memory costs as much as reading into it.

    What was read into it before is lost with the next read.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        if self._bytes.size < size:
            self._bytes = np.empty(size + size // 4, np.uint8)
        return self._bytes[:size]


class ByteSource:
    """A file opened for reading at any position.

    Args:
        path: the file; gzipped files are unpacked in memory.
        timeout: seconds that all its reads together may wait for an answer; what is computed between them does not
            count, so that a busy machine reads the same as an idle one. None waits for ever.

    Raises:
        FileMissing: there is no such file.
        NoAnswer: the file system did not answer in time.
        DataError: the file can't be opened, is no plain file or is empty.
    """

    def __init__(self, path: Path, timeout: float | None = None) -> None:
        self.path = path
        self._timeout = self._patience = timeout
        self._stuck = False
        self._unpacked: bytes | None = None
        self._file: int = self._patiently(self._open)
        try:
            self._state = self._identity()
            self.size = self._state[0]
            if self.size == 0:
                raise DataError(f"{path}: the file is empty; fetch it again.")
            start = np.zeros(2, np.uint8)
            self._pread(0, start)
            if start.tobytes() == _GZIP_MAGIC:
                self._unpacked = self._patiently(self._unpack)
                self.size = len(self._unpacked)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. A read that never returned keeps it, since its number must not be used again."""
        if self._file >= 0 and not self._stuck:
            os.close(self._file)
        self._file = -1

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            FileChanged: the file is not what it was when it was opened.
            FileMissing: its server does not know it any more.
            NoAnswer: the file system did not answer in time.
            DataError: the file ends before, or can't be read.
        """
        return self.read_padded(offset, size, 0).tobytes()

    def read_padded(self, offset: int, size: int, padding: int, room: Room | None = None) -> NDArray[np.uint8]:
        """As `read`, an array with `padding` zeros behind the bytes; it lies in `room` if there is one."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DataError(
                f"{self.path}: truncated: bytes {offset} to {offset + size} are needed, the file has {self.size}."
            )
        found = np.empty(size + padding, np.uint8) if room is None else room.take(size + padding)
        found[size:] = 0
        if self._unpacked is not None:
            found[:size] = np.frombuffer(self._unpacked, np.uint8, size, offset)
        elif self._pread(offset, found[:size]) != size or self._identity() != self._state:
            raise FileChanged(f"{self.path}: the file changed while it was being read; try again when it is complete.")
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives, whose many small reads are waited for once: handing each to a thread costs more.

        Raises:
            NoAnswer: the file system did not answer in time.
            Exception: what `work` raises.
        """
        answer: T = self._patiently(work)
        return answer

    def expect(self, offset: int, size: int) -> None:
        """Tell the system that this part is wanted soon."""
        if self._unpacked is None and hasattr(os, "posix_fadvise") and 0 <= offset < self.size and size > 0:
            os.posix_fadvise(self._file, offset, min(size, self.size - offset), os.POSIX_FADV_WILLNEED)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as problem:
            raise self._refused(problem, "opened") from problem

    def _refused(self, problem: OSError, what: str) -> DataError:
        kind = FileMissing if problem.errno in _GONE else DataError
        return kind(f"{self.path}: can't be {what}: {problem.strerror}.")

    def _identity(self) -> tuple[int, int, int]:
        try:
            state = os.fstat(self._file)
        except OSError as problem:
            raise self._refused(problem, "read") from problem
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{self.path}: is not a plain file.")
        return state.st_size, state.st_mtime_ns, state.st_ino

    def _pread(self, offset: int, target: NDArray[np.uint8]) -> int:
        size: int = self._patiently(lambda: self._pread_now(offset, target))
        return size

    def _pread_now(self, offset: int, target: NDArray[np.uint8]) -> int:
        """Fill an array with the bytes from `offset` on; how many there are."""
        done = 0
        try:
            while done < target.size and (
                more := os.preadv(self._file, [target[done : done + _AT_ONCE].data], offset + done)
            ):
                done += more
        except OSError as problem:
            raise self._refused(problem, "read") from problem
        return done

    def _unpack(self) -> bytes:
        packed = np.empty(self.size, np.uint8)
        size = self._pread_now(0, packed)
        try:
            return gunzip(packed[:size].tobytes(), _MAX_UNPACKED)
        except ValueError as problem:
            raise DataError(f"{self.path}: damaged gzip file: {problem}.") from problem

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """Do `work`, in a thread of its own if there is a time-out: a hung file system can't be interrupted."""
        if self._patience is None or isinstance(threading.current_thread(), _Reader):
            return work()
        asked = time.monotonic()
        try:
            answer, problem = _ask(work, max(0.0, self._patience))
        except queue.Empty:
            self._stuck = True
            raise NoAnswer(f"{self.path}: no answer from the file system within {self._timeout:g} s.") from None
        finally:
            self._patience -= time.monotonic() - asked
        if problem is not None:
            raise problem
        return answer


class _Reader(threading.Thread):
    """A thread that does one piece of work after the other, for whoever waits for it."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="fits-read")
        self.work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (work := self.work.get()) is not None:
            try:
                self.done.put((work(), None))
            except BaseException as problem:  # noqa: BLE001 - handed to the thread that waits for it
                self.done.put((None, problem))
            del work


# Readers with nothing to do: starting a thread for every read would cost more than most reads.
_idle: list[_Reader] = []
os.register_at_fork(after_in_child=_idle.clear)


def _ask(work: Callable[[], Any], timeout: float) -> tuple[Any, BaseException | None]:
    """What a reader's work gave, or raised.

    Raises:
        queue.Empty: nothing within `timeout` seconds.
    """
    try:
        reader = _idle.pop()
    except IndexError:
        reader = _Reader()
    reader.work.put(work)
    try:
        answer = reader.done.get(timeout=timeout)
    except queue.Empty:
        # Should it ever come back, it ends.
        reader.work.put(None)
        raise
    _idle.append(reader)
    return answer


def gunzip(packed: bytes, limit: int) -> bytes:
    """Unpack gzip data of one or more members to at most `limit` bytes.

    Raises:
        ValueError: damaged, incomplete or too large.
    """
    parts = []
    while packed:
        engine = zlib.decompressobj(wbits=31)
        try:
            part = engine.decompress(packed, limit + 1)
        except zlib.error as problem:
            raise ValueError(str(problem)) from problem
        limit -= len(part)
        if limit < 0:
            raise ValueError("it unpacks to more than an image can hold")
        if not engine.eof:
            raise ValueError("it ends too early")
        parts.append(part)
        packed = engine.unused_data.lstrip(b"\x00")
    return b"".join(parts)
