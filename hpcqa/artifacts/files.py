"""Files under a run: written beside their place under a temporary name, synced and renamed, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.errors import DataError, EnvironmentProblem

logger = logging.getLogger(__name__)


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
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _as_problem(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, stage: str, *, names: str = "*", shared: bool = False) -> None:
    """Remove the temporary files of writers that were killed.

    Args:
        stage: whose writers, for the log.
        names: glob of the names that the files would have got.
        shared: others may be writing there now, so only files of this machine's processes that are no more go.
    """
    for path in folder.glob(f".{names}.{socket.gethostname() if shared else '*'}.*.tmp"):
        if shared and not _is_orphaned(path):
            continue
        path.unlink(missing_ok=True)
        logger.info("%s: removed %s, left by a process that was killed", stage, path.name)


def _is_orphaned(temporary: Path) -> bool:
    process = temporary.name.rsplit(".", 2)[1]
    processes = Path("/proc")
    return process.isdigit() and processes.exists() and not (processes / process).exists()


def sync(path: Path) -> None:
    """Have a file's or a folder's content on disk before going on."""
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
    write_text(path, json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")


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


def jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
