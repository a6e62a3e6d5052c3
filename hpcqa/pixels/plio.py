"""The compiled decoder of PLIO_1, the code that masks are compressed with: runs of equal integers, as a line list.

Written from the FITS standard 4.0 (section 10.4.3) and the description of IRAF's line lists there; bit-identical to
cfitsio (tests/pixels/test_plio.py). Nothing is read outside a tile's words or written outside the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import inner_kernel

Array = np.ndarray[Any, Any]
Whole = Any  # a whole number, of the width that numba finds for it

WORD = 2  # bytes of one instruction
# The four upper bits of a word are an instruction, the twelve lower ones its data.
_ZEROS, _SET, _ADD, _SUBTRACT, _VALUES, _ZEROS_AND_VALUE, _ADD_AND_PUT, _SUBTRACT_AND_PUT = range(8)
# Length of a line list by the old header (its third word), and where the new one has its lower and upper 15 bits.
_OLD_HEADER, _NEW_HEADER = 3, 7


@inner_kernel
def _word(data: Array, start: Whole, number: Whole) -> Whole:
    """Word `number` of a list, signed and big-endian."""
    place = start + 2 * number
    return np.int64(np.int16((np.uint16(data[place]) << np.uint16(8)) | np.uint16(data[place + 1])))


@inner_kernel
def _extent(data: Array, start: Whole, words: Whole) -> tuple[Whole, Whole]:
    """The first instruction of a list and the end of it, in words; (0, -1) for one that cannot be."""
    if words < _OLD_HEADER:
        return 0, -1
    length, first = _word(data, start, 2), _OLD_HEADER
    if length <= 0:
        if words < _NEW_HEADER:
            return 0, -1
        length = (_word(data, start, 4) << 15) + _word(data, start, 3)
        first = _word(data, start, 1)
    good = _OLD_HEADER <= first <= length <= words
    return (first, length) if good else (0, -1)


@inner_kernel
def _fill(out: Array, first: Whole, count: Whole, value: Whole) -> None:
    """Set `count` values, as far as they lie inside of the output."""
    for k in range(first, min(first + count, out.shape[0])):
        out[k] = value


@inner_kernel
def decode_tile(data: Array, start: Whole, end: Whole, num: Whole, out: Array) -> bool:
    """Decode the first `num` values of the tile in data[start:end] into `out` (int32).

    Args:
        data: uint8.

    Returns:
        True if the list was whole.
    """
    place, stop = _extent(data, start, (end - start) // WORD)
    if stop < 0:
        return False
    line = out[:num]
    done, value = np.int64(0), np.int64(1)
    while place < stop and done < num:
        word = _word(data, start, place)
        place += 1
        if word < 0:
            return False
        code, amount = word >> 12, word & 4095
        if code == _SET:
            if place == stop:
                return False
            value = (_word(data, start, place) << 12) + amount
            place += 1
        elif code in (_ADD, _ADD_AND_PUT):
            value += amount
        elif code in (_SUBTRACT, _SUBTRACT_AND_PUT):
            value -= amount
        else:
            _fill(line, done, amount, np.int32(value) if code == _VALUES else np.int32(0))
            done += amount
            if code == _ZEROS_AND_VALUE and amount > 0 and done <= num:
                line[done - 1] = np.int32(value)
        if code in (_ADD_AND_PUT, _SUBTRACT_AND_PUT):
            line[done] = np.int32(value)
            done += 1
    _fill(line, done, num - done, np.int32(0))
    return True
