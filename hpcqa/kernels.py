"""Compiling loops: numba, without the GIL, machine code cached on disk.

numba compiles what a loop calls into the loop, but looks only at the loop's own file to tell whether cached code is
stale. So the code lies in a folder named by a digest of all sources of the loop's package, and of this module: after a
change in any of them nothing old is run, and processes of the old and of the new sources don't meet. Loops call only
loops of their own package.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

# Reassociation lets sums vectorise; NaN keeps its meaning, so that tests for it stay tests.
_FAST = {"reassoc", "contract", "nsz"}
_FOLDERS = "kernels-"


def sources_digest(package: Path) -> str:
    """Digest of the names and contents of a package's modules, subpackages left out, and of this module."""
    summary = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(package.glob("*.py")):
        content = path.read_bytes()
        summary.update(f"{path.name} {len(content)}\0".encode() + content)
    return summary.hexdigest()[:16]


def remove_stale(cache: Path, current: str) -> None:
    """Remove the machine code of other sources from a cache folder that has none of the current ones yet."""
    if not (cache / current).exists():
        for folder in cache.glob(f"{_FOLDERS}*"):
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _say(package: Path) -> None:
    """Tell once why the first start takes longer: those over pixels take a minute (AMD EPYC, a core)."""
    logger.info("compiling the loops of hpcqa.%s for this processor, once; later starts find them", package.name)


@cache
def _say_homeless(package: Path) -> None:
    """Tell once that every process compiles."""
    logger.warning(
        "neither %s nor the user's cache folder can be written, so every process compiles the loops of hpcqa.%s anew: "
        "set NUMBA_CACHE_DIR to a folder that can be written.",
        package,
        package.name,
    )


@cache
def _cache_of(package: Path) -> type[caching.FunctionCache]:
    """Numba's cache, in a place for machine code of these sources of a package only."""
    folder = _FOLDERS + sources_digest(package)
    remove_stale(package / "__pycache__", folder)

    class OfTheseSources:
        def get_cache_path(self) -> str:
            return str(Path(super().get_cache_path(), folder))  # type: ignore[misc]

    class Places(caching.CompileResultCacheImpl):  # type: ignore[misc]
        # Where numba would look too: NUMBA_CACHE_DIR, beside the sources, the user's cache folder.
        _locator_classes = tuple(
            type(place.__name__, (OfTheseSources, place), {})
            for place in caching.CompileResultCacheImpl._locator_classes
        )

    class Cache(caching.FunctionCache):  # type: ignore[misc]
        _impl_class = Places

        def load_overload(self, signature: Any, target_context: Any) -> Any:
            found = super().load_overload(signature, target_context)
            if found is None:
                _say(package)
            return found

        def save_overload(self, signature: Any, compiled: Any) -> None:
            # A full disk, or a folder that newer sources have just removed, costs time later but nothing else.
            with contextlib.suppress(OSError):
                super().save_overload(signature, compiled)

    return Cache


def kernel(function: F) -> F:
    """Compile a function on its first call."""
    return _compile(function, False)


def fast_kernel(function: F) -> F:
    """As `kernel`; sums of floats may be taken in any order."""
    return _compile(function, _FAST)


def inner_kernel(function: F) -> F:
    """As `kernel`, for what other loops call thousands of times and that makes no arrays, nor calls what makes some.

    It keeps no count of who holds an array: each slice would cost two atomic instructions, which together were an
    eighth of the time that a CCD takes (`perf record` of benchmarks/shard.py, Intel Xeon, 2026-11-29).
    """
    return _compile(function, False, _nrt=False)


def _compile(function: F, fastmath: Any, **options: Any) -> F:
    # As numpy divides by zero: a test of every divisor would keep a loop from vector instructions.
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, **options)(function)
    package = Path(inspect.getfile(function)).parent
    try:
        compiled._cache = _cache_of(package)(function)
    except RuntimeError:  # numba's word for no place to write to
        _say_homeless(package)
    return cast(F, compiled)
