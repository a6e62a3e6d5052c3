"""The compiled decoder of RICE_1, the code that images are compressed with.

Written from the FITS standard 4.0 (section 10) and the description of the Rice code there; bit-identical to cfitsio and
astropy (tests/pixels/test_rice.py). All functions release the GIL. Nothing is read outside the buffer: the buffer ends
with PADDING zero bytes, every refill is checked against the end of its tile, and a damaged tile gives its number back.

Importing this module costs about a second (numba); the first call on a machine compiles for some seconds, later
processes load the compiled code from numba's cache. Import it only where pixels are read.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from hpcqa.kernels import inner_kernel

Array = np.ndarray[Any, Any]
Whole = Any  # a whole number, of the width that numba finds for it

# Zero bytes that must follow the compressed data, since the decoder reads eight at a time.
PADDING = 8


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(typing: Any, word: Any) -> Any:
    """Zero bits before the first one in a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _load64(typing: Any, data: Any, place: Any) -> Any:
    """Eight bytes of a contiguous uint8 array as a big-endian number, without a bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = cgutils.pointer_add(builder, array.data, args[1], ir.IntType(64).as_pointer())
        word = builder.load(address)
        word.align = 1
        return builder.bswap(word) if sys.byteorder == "little" else word

    return types.uint64(data, types.int64), generate


@inner_kernel
def _refill(data: Array, place: Whole, end: Whole, word: Any, have: Whole) -> Any:
    """Fill the word of bits up to 56 or more; the bits after `end` are of no meaning, but inside the buffer.

    A word holds the next bits, left-aligned; `have` of them count, the rest are the same bits that come again.
    """
    word |= _load64(data, min(place, end)) >> np.uint64(have)
    return place + ((63 - have) >> 3), word, have | 56


@inner_kernel
def _long_code(data: Array, place: Whole, end: Whole, word: Any, have: Whole, fs: Whole) -> Any:
    """One value whose run of zeros may be of any length, and the state of the bits after it."""
    zeros = np.int64(0)
    place, word, have = _refill(data, place, end, word, have)
    run = _leading_zeros(word)
    while run >= have and place <= end + 8:
        zeros += have
        place, word, have = _refill(data, place, end, word << np.uint64(have), 0)
        run = _leading_zeros(word)
    run = min(run, 62)
    word <<= np.uint64(run + 1)
    place, word, have = _refill(data, place, end, word, max(have - run - 1, 0))
    value = ((zeros + run) << fs) | np.int64((word >> np.uint64(1)) >> np.uint64(63 - fs))
    return place, word << np.uint64(fs), have - fs, value


@inner_kernel
def _signed(value: Whole) -> Whole:
    """Even values are the positive differences, odd ones the negative."""
    return (value >> 1) ^ -(value & 1)


@inner_kernel
def _split(word: Any, fs: Whole, low_shift: Any, fixed: Whole) -> Any:
    """One difference if its code lies wholly in the word, the bits that it takes, and the word after it.

    `low_shift` is 63 - fs and `fixed` is fs + 1, worked out once for all values of a block.
    """
    run = _leading_zeros(word)
    taken = run + fixed
    rest = word << np.uint64((run + 1) & 63)
    value = (run << fs) | np.int64((rest >> np.uint64(1)) >> low_shift)
    return (value >> 1) ^ -(value & 1), taken, word << np.uint64(taken & 63)


@inner_kernel
def _coded_block(
    data: Array,
    place: Whole,
    end: Whole,
    word: Any,
    have: Whole,
    last: Whole,
    fs: Whole,
    first: Whole,
    stop: Whole,
    out: Array,
) -> Any:
    """A block of differences in the Rice code with `fs` low bits: four at a time while they fit into one word.

    The next pixel waits for the place where this one's code ends; checking four codes at once keeps that chain short.
    """
    low_shift = np.uint64(63 - fs)
    fixed = fs + 1
    j = first
    while j < stop:
        place, word, have = _refill(data, place, end, word, have)
        if j + 4 <= stop:
            step0, taken0, next0 = _split(word, fs, low_shift, fixed)
            step1, taken1, next1 = _split(next0, fs, low_shift, fixed)
            step2, taken2, next2 = _split(next1, fs, low_shift, fixed)
            step3, taken3, next3 = _split(next2, fs, low_shift, fixed)
            taken = taken0 + taken1 + taken2 + taken3
            if taken <= have:
                # An unsigned index spares the test for negative ones.
                k = np.uint64(j)
                step1 += step0
                step2 += step1
                step3 += step2
                out[k] = np.int32(last + step0)
                out[k + np.uint64(1)] = np.int32(last + step1)
                out[k + np.uint64(2)] = np.int32(last + step2)
                last += step3
                out[k + np.uint64(3)] = np.int32(last)
                word = next3
                have -= taken
                j += 4
                continue
        place, word, have, value = _long_code(data, place, end, word, have, fs)
        last += _signed(value)
        out[np.uint64(j)] = np.int32(last)
        j += 1
    return place, word, have, last


@inner_kernel
def _steady_block(
    data: Array, place: Whole, end: Whole, word: Any, have: Whole, last: Whole, first: Whole, stop: Whole, out: Array
) -> Any:
    """A block in the code without low bits, as masks have: a set bit repeats the last value, and most bits are set."""
    j = first
    while j < stop:
        place, word, have = _refill(data, place, end, word, have)
        run = min(_leading_zeros(~word), have, stop - j)
        for k in range(j, j + run):
            out[np.uint64(k)] = np.int32(last)
        word, have = word << np.uint64(run), have - run
        j += run
        if j < stop and run < 32:
            place, word, have, value = _long_code(data, place, end, word, have, 0)
            last += _signed(value)
            out[np.uint64(j)] = np.int32(last)
            j += 1
    return place, word, have, last


@inner_kernel
def decode_block(
    data: Array,
    place: Whole,
    end: Whole,
    word: Any,
    have: Whole,
    last: Whole,
    fs: Whole,
    raw_bits: Whole,
    first: Whole,
    stop: Whole,
    out: Array,
) -> Any:
    """Values first to stop of a block, by its `fs`: all equal (-1), plain (the largest), or in the code."""
    if fs < 0:
        for j in range(first, stop):
            out[j] = np.int32(last)
    elif fs == 0:
        place, word, have, last = _steady_block(data, place, end, word, have, last, first, stop, out)
    elif fs < _most_low_bits(raw_bits):
        place, word, have, last = _coded_block(data, place, end, word, have, last, fs, first, stop, out)
    else:
        for j in range(first, stop):
            place, word, have = _refill(data, place, end, word, have)
            last += _signed(np.int64(word >> np.uint64(64 - raw_bits)))
            word <<= np.uint64(raw_bits)
            have -= raw_bits
            out[j] = np.int32(last)
    return place, word, have, last


@inner_kernel
def _most_low_bits(raw_bits: Whole) -> Whole:
    """The `fs` that means plain values."""
    return 25 if raw_bits == 32 else raw_bits - 2


@inner_kernel
def decode_tile(data: Array, start: Whole, end: Whole, num: Whole, block: Whole, byte_pix: Whole, out: Array) -> bool:
    """Decode the first `num` values of a tile in data[start:end] into `out` (int32).

    Args:
        data: uint8, with PADDING bytes after `end`.
        block: values in one block of the code.
        byte_pix: bytes of one value before compression, 1, 2 or 4; smaller values come unsigned (1) or signed (2).

    Returns:
        True if the tile was whole.
    """
    raw_bits = 8 * byte_pix
    fs_bits = 5 if byte_pix == 4 else byte_pix + 2
    if end - start < byte_pix:
        return False
    place, word, have = _refill(data, start, end, np.uint64(0), np.int64(0))
    last = np.int64(word >> np.uint64(64 - raw_bits))
    word <<= np.uint64(raw_bits)
    have -= raw_bits
    i = 0
    while i < num:
        place, word, have = _refill(data, place, end, word, have)
        # Blocks of nothing but the last value, of which a mask has several in turn: no bit set in any of their codes.
        same = min(min(_leading_zeros(word), have) // fs_bits, (num - i + block - 1) // block)
        if same > 1:
            stop = min(i + same * block, num)
            out[i:stop] = np.int32(last)
            word, have, i = word << np.uint64(same * fs_bits), have - same * fs_bits, stop
            if 8 * place - have > 8 * end:
                return False
            continue
        stop = min(i + block, num)
        fs = np.int64(word >> np.uint64(64 - fs_bits)) - 1
        word <<= np.uint64(fs_bits)
        have -= fs_bits
        place, word, have, last = decode_block(data, place, end, word, have, last, fs, raw_bits, i, stop, out)
        if 8 * place - have > 8 * end or fs > _most_low_bits(raw_bits):
            return False
        i = stop
    if byte_pix == 1:
        for j in range(num):
            out[j] &= 0xFF
    elif byte_pix == 2:
        for j in range(num):
            out[j] = np.int32(np.int16(out[j]))
    return True
