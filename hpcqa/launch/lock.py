"""One command at a time in a run folder.

The lock is a POSIX record lock on RUN/.lock: the kernel lets go of it when its process ends, however it ends, and
forked workers that outlive a killed parent do not keep it. The file says who holds it, for the message. On file systems
that cannot lock, what the file says is checked instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import EnvironmentProblem

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# A record lock does not keep its own process out, and closing the file a second time would let go of it.
_held_here: set[Path] = set()


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder for the time of a command.

    Raises:
        EnvironmentProblem: another live process or job works in it, or it cannot be written.
    """
    path = folder.path.resolve() / LOCK_NAME
    if path in _held_here:
        raise EnvironmentProblem(f"{folder.path}: in use by this process already.")
    descriptor = _open(path)
    try:
        _take(descriptor, path)
        _held_here.add(path)
        _write(descriptor, owner())
        yield
        _write(descriptor, {})
    finally:
        _held_here.discard(path)
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path.parent}: cannot be written ({error.strerror}); choose a run folder that you may write to."
        ) from None


def _take(descriptor: int, path: Path) -> None:
    before = _read(descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise EnvironmentProblem(f"{path.parent}: in use by {describe(before)}; wait for it or end it.") from None
        if error.errno not in _CANNOT_LOCK:
            raise EnvironmentProblem(f"{path}: cannot be locked ({error.strerror}); choose another folder.") from None
        refuse_live(before, path)
    if before and before.get("host") != socket.gethostname():
        logger.warning("%s was last used by %s, which did not end well.", path.parent, describe(before))


def refuse_live(before: dict[str, Any], path: Path) -> None:
    """Where the file system cannot lock: stop if the one who wrote the file may still be alive.

    Raises:
        EnvironmentProblem: it lives, or it is on another machine, where nobody can tell from here.
    """
    if not before:
        return
    if before.get("host") != socket.gethostname():
        raise EnvironmentProblem(
            f"{path.parent}: perhaps in use by {describe(before)}, and this file system cannot lock; if that has "
            f"ended, remove {path}."
        )
    if started(int(before.get("pid", 0))) == before.get("started"):
        raise EnvironmentProblem(f"{path.parent}: in use by {describe(before)}; wait for it or end it.")


def owner() -> dict[str, Any]:
    """Who this process is."""
    return {
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks, which tells it from a later one with its number; None: gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else ticks


def describe(who: dict[str, Any]) -> str:
    """The holder in words."""
    if not who:
        return "another process"
    job = f", job {who['job']}" if who.get("job") else ""
    return f"process {who.get('pid')} on {who.get('host')}{job}, since {who.get('since')}"


def _read(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(descriptor: int, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode() if content else b"", 0)
