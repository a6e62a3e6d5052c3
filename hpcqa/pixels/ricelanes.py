"""RICE_1 tiles decoded several at a time, one in each lane of the vector registers.

Where a code begins is known only when the one before it is decoded: one tile by itself keeps most of the processor
waiting. What is rare (a code longer than the bits at hand, a block without codes) is left to the decoder of single
tiles, lane by lane; the values are the same (tests/pixels/test_rice.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import inner_kernel
from hpcqa.pixels import lanes, rice
from hpcqa.pixels.lanes import all_lanes, any_above, leading_zeros

Array = np.ndarray[Any, Any]
Whole = Any  # a whole number, of the width that numba finds for it
Lanes = Any  # one number for each tile, lanes.LANES

_RAW_BITS, _FS_BITS, _FS_MAX = 32, 5, 25
# Rows of the table that holds the state of the tiles while they are decoded one by one.
PLACE, _WORD, _HAVE, _LAST, _FS, END = range(6)
ROWS = 6


@inner_kernel
def _refill(data: Array, place: Lanes, end: Lanes, word: Lanes, have: Lanes) -> Any:
    """As rice._refill."""
    word = word | (lanes.load_bytes(data, lanes.smaller(place, end)) >> have)
    return place + ((all_lanes(63) - have) >> all_lanes(3)), word, have | all_lanes(56)


@inner_kernel
def _split(word: Lanes, fs: Lanes, low_shift: Lanes, fixed: Lanes, top: Lanes) -> Any:
    """As rice._split; `top` is 1 << fs.

    The lowest bit of a word never counts: set, it keeps the run of zeros shorter than the word.
    """
    run = leading_zeros(word | all_lanes(1))
    begun = word << run
    # The bit that ends the run comes with the low bits, and is taken off again.
    value = (run << fs) + (begun >> low_shift) - top
    sign = all_lanes(0) - (value & all_lanes(1))
    return (value >> all_lanes(1)) ^ sign, run + fixed, begun << fixed


@inner_kernel
def _one_by_one(
    data: Array,
    place: Lanes,
    word: Lanes,
    have: Lanes,
    last: Lanes,
    fs: Lanes,
    state: Array,
    first: Whole,
    stop: Whole,
    out: Array,
) -> Any:
    """Some values of one block of every tile, by the decoder of single tiles."""
    lanes.store(place, state[PLACE])
    lanes.store(word, state[_WORD])
    lanes.store(have, state[_HAVE])
    lanes.store(last, state[_LAST])
    lanes.store(fs, state[_FS])
    for k in range(lanes.NUM):
        now = rice.decode_block(
            data,
            np.int64(state[PLACE, k]),
            np.int64(state[END, k]),
            state[_WORD, k],
            np.int64(state[_HAVE, k]),
            np.int64(state[_LAST, k]),
            np.int64(state[_FS, k]),
            _RAW_BITS,
            first,
            stop,
            out[k],
        )
        state[PLACE, k], state[_WORD, k], state[_HAVE, k], state[_LAST, k] = now
    return lanes.load(state[PLACE]), lanes.load(state[_WORD]), lanes.load(state[_HAVE]), lanes.load(state[_LAST])


@inner_kernel
def decode_tiles(data: Array, state: Array, num: Whole, block: Whole, out: Array) -> bool:
    """Decode the first `num` values of lanes.NUM tiles of 4-byte values.

    Args:
        data: uint8, with rice.PADDING bytes after the last end.
        state: uint64 (ROWS, lanes.NUM), of which the rows PLACE and END say where each tile's bytes begin and end; the
            rest is room.
        block: values in one block of the code.
        out: int32 (lanes.NUM, at least num), C-contiguous.

    Returns:
        True if all tiles were whole.
    """
    place, end = lanes.load(state[PLACE]), lanes.load(state[END])
    place, word, have = _refill(data, place, end, all_lanes(0), all_lanes(0))
    last = word >> all_lanes(64 - _RAW_BITS)
    word, have = word << all_lanes(_RAW_BITS), have - all_lanes(_RAW_BITS)
    i = 0
    while i < num:
        stop = min(i + block, num)
        place, word, have = _refill(data, place, end, word, have)
        fs = (word >> all_lanes(64 - _FS_BITS)) - all_lanes(1)
        word, have = word << all_lanes(_FS_BITS), have - all_lanes(_FS_BITS)
        # No low bits for a block without codes (-1) or with plain values.
        coded = not any_above(fs, all_lanes(_FS_MAX - 1))
        low_shift, fixed, top = all_lanes(63) - fs, fs + all_lanes(1), all_lanes(1) << (fs & all_lanes(31))
        j = i
        while coded and j + 4 <= stop:
            place, word, have = _refill(data, place, end, word, have)
            step0, taken0, next0 = _split(word, fs, low_shift, fixed, top)
            step1, taken1, next1 = _split(next0, fs, low_shift, fixed, top)
            step2, taken2, next2 = _split(next1, fs, low_shift, fixed, top)
            step3, taken3, next3 = _split(next2, fs, low_shift, fixed, top)
            taken = (taken0 + taken1) + (taken2 + taken3)
            if any_above(taken, have):
                place, word, have, last = _one_by_one(data, place, word, have, last, fs, state, j, j + 4, out)
            else:
                step1 = step0 + step1
                step2 = step1 + step2
                step3 = step2 + step3
                lanes.store_fours((last + step0, last + step1, last + step2, last + step3), out, j)
                last, word, have = last + step3, next3, have - taken
            j += 4
        if j < stop:
            place, word, have, last = _one_by_one(data, place, word, have, last, fs, state, j, stop, out)
            for k in range(lanes.NUM):
                if np.int64(state[_FS, k]) > _FS_MAX:
                    return False
        i = stop
    # Bits beyond the end were taken if a tile was damaged; the place in the bits never goes back.
    return not any_above((place << all_lanes(3)) - have, end << all_lanes(3))
