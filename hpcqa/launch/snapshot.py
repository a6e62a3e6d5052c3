"""A copy of the package in the run folder, so that a queued job runs the code as it was when it was submitted.

What numba has compiled so far goes with it, and with the times of the files, by which numba knows what is stale: else
every task of every array would compile the pixel kernels again, a minute or more each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from hpcqa.errors import EnvironmentProblem

CODE_FOLDER = "code"
_LEFT_OUT = ("__pycache__",)


def package_files(package: Path) -> list[Path]:
    """The files of the package, in order."""
    return sorted(
        path for path in package.rglob("*") if path.is_file() and not any(part in _LEFT_OUT for part in path.parts)
    )


def compiled_files(package: Path) -> list[Path]:
    """Machine code that numba keeps beside the sources."""
    return [path for pattern in ("*.nbi", "*.nbc") for path in sorted(package.rglob(pattern))]


def digest(package: Path) -> str:
    """Digest of the names and contents of the package's files."""
    summary = hashlib.sha256()
    for path in package_files(package):
        summary.update(f"{path.relative_to(package).as_posix()}\0".encode())
        summary.update(hashlib.sha256(path.read_bytes()).digest())
    return summary.hexdigest()


def snapshot(run: Path, package: Path) -> Path:
    """Copy the package below RUN/code/ unless the same one is there.

    Returns:
        The folder to put first on PYTHONPATH; it holds a folder of the package's name.

    Raises:
        EnvironmentProblem: the run folder cannot be written.
    """
    target = run / CODE_FOLDER / digest(package)[:16]
    if target.exists():
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for path in [*package_files(package), *compiled_files(package)]:
            copy = temporary / package.name / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # Another process may be replacing compiled code just now.
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(path, copy)
        # Another submission may have been quicker with the same code.
        with contextlib.suppress(FileExistsError):
            temporary.rename(target)
    except OSError as error:
        raise EnvironmentProblem(
            f"{target}: cannot be written ({error.strerror}); choose a run folder that you may write to."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
