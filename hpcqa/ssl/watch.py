"""Whether the files that training reads are still what they were when it began.

A reader tells what it cannot read. Bytes that were overwritten in a file that is open it cannot tell, nor can a reader
that has a view in memory; a checkpoint must hold nothing that was learned from such bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 16  # on a parallel file system every look is a round trip


class Watch:
    """Files and what tells them from what they are replaced by: size and time of writing."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._found = dict(zip(paths, _states(paths), strict=True))

    def problem(self) -> str:
        """What has happened to the first file that is not as it was; empty if none."""
        for (path, before), now in zip(self._found.items(), _states(list(self._found)), strict=True):
            if now is None:
                return f"{path}: is gone or cannot be looked at; it was there when training began."
            if before is not None and now[0] != before[0]:
                return f"{path}: has {now[0]} bytes and had {before[0]} when training began."
            if now != before:
                return f"{path}: was written to while training read it."
        return ""


def _states(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_state, paths))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
