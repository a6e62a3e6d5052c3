"""Whether the files that training reads are still what they were when it began.

A reader tells what it cannot read. Bytes that were overwritten in a file that is open it cannot tell, nor can a reader
that has a view in memory; a checkpoint must hold nothing that was learned from such bytes.

A file that was only touched, or copied over itself, holds what it held: training may go on, from the last checkpoint,
for nobody knows what was read while it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpcqa.errors import HpcqaError

_State = tuple[int, int] | None  # size, time of writing; None: cannot be looked at
_THREADS = 16  # on a parallel file system every look is a round trip


class Watch:
    """Files and what tells them from what they are replaced by: size and time of writing."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._found = dict(zip(paths, _states(paths), strict=True))

    def problem(self) -> str:
        """What has happened to the first file that is not as it was; empty if none."""
        return next((_change(path, *states) for path, states in self._changed().items()), "")

    def changed(self) -> list[Path]:
        """The files that are not as they were."""
        return list(self._changed())

    def renew(self, path: Path, content: str) -> str:
        """Take a shard as it is now if it still holds what the digest is of; what is wrong if not. It is read whole."""
        before, now = self._found[path], _state(path)
        if now is None or not _holds(path, content):
            return _change(path, before, now)
        self._found[path] = now  # as it was before it was read: what is written from then on is found next time
        return ""

    def _changed(self) -> dict[Path, tuple[_State, _State]]:
        """The states, then and now, of each file that is not as it was."""
        now = _states(list(self._found))
        pairs = zip(self._found.items(), now, strict=True)
        return {path: (before, after) for (path, before), after in pairs if after is None or after != before}


def _holds(path: Path, content: str) -> bool:
    """Whether a shard is whole and holds what the digest is of."""
    from hpcqa.artifacts import store  # here, so that a step can be timed where there is no h5py
    from hpcqa.artifacts.catalog import SHARD

    try:
        return not store.verify(path, SHARD) and store.read_provenance(path, SHARD).content == content
    except HpcqaError:
        return False


def _change(path: Path, before: _State, now: _State) -> str:
    if now is None:
        return f"{path}: is gone or cannot be looked at; it was there when training began."
    if before is not None and now[0] != before[0]:
        return f"{path}: has {now[0]} bytes and had {before[0]} when training began."
    return f"{path}: was written to while training read it."


def _states(paths: Sequence[Path]) -> list[_State]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_state, paths))


def _state(path: Path) -> _State:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
