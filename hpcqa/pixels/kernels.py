"""Compiling the loops over pixels: numba, without the GIL, machine code cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

# Reassociation lets sums vectorise; NaN keeps its meaning, so that tests for it stay tests.
_FAST = {"reassoc", "contract", "nsz"}


def kernel(function: F) -> F:
    """Compile a function on its first call."""
    return _compile(function, False)


def fast_kernel(function: F) -> F:
    """As `kernel`; sums of floats may be taken in any order."""
    return _compile(function, _FAST)


def _compile(function: F, fastmath: Any) -> F:
    try:
        return cast(F, numba.njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:
        # Neither the package's folder nor the user's cache folder can be written: compile in every process.
        return cast(F, numba.njit(nogil=True, fastmath=fastmath)(function))
