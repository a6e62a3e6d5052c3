"""The sum that a FITS file carries of each HDU's data: DATASUM (FITS standard 4.0, section 4.4.2.7 and appendix J).

CHECKSUM, which covers the header too, is not looked at: whoever edits a keyword makes it stale, and the pixels are as
good as before.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcqa.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcqa.pixels.fitsheader import Header

# Sums are taken in ones' complement: modulo this, which stands for zero too.
_ONES = (1 << 32) - 1


@kernel
def _sum_words(words: np.ndarray, is_little: bool) -> Any:
    """Sum of big-endian words of 32 bits, loaded in this machine's order; exact up to 2^32 words."""
    total = np.uint64(0)
    for k in range(words.size):
        word = words[k]
        if is_little:
            word = (word >> 24) | ((word >> 8) & 0xFF00) | ((word & 0xFF00) << 8) | (word << 24)
        total += np.uint64(np.uint32(word))
    return total


def sum_of(data: NDArray[np.uint8]) -> int:
    """The sum of a data unit, contiguous uint8 (N,); bytes that the last word lacks are zeros."""
    whole = data.size // 4 * 4
    total = int(_sum_words(data[:whole].view(np.uint32), sys.byteorder == "little"))
    return (total + int.from_bytes(data[whole:].tobytes().ljust(4, b"\0"), "big")) % _ONES


def sum_wanted(header: Header) -> int | None:
    """What DATASUM says, to compare with `sum_of`; None where there is none, or no number."""
    value = header.get("DATASUM")
    if isinstance(value, str):
        value = int(value) if value.strip().isdecimal() else None
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _ONES
    return value % _ONES if known else None
