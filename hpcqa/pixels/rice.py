"""The compiled decoder of tile-compressed images: RICE_1 with every quantisation, fused with binning.

Written from the FITS standard 4.0 (section 10) and the description of the Rice code there; bit-identical to cfitsio and
astropy (tests/pixels/test_rice.py). All functions release the GIL. Nothing is read outside the buffer: the buffer ends
with PADDING zero bytes, every refill is checked against the end of its tile, and a damaged tile gives its number back.

Importing this module costs about a second (numba); the first call on a machine compiles for some seconds, later
processes load the compiled code from numba's cache. Import it only where pixels are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

Array = np.ndarray[Any, Any]

# Zero bytes that must follow the compressed data, since the decoder reads four at a time.
PADDING = 8
NUM_RANDOMS = 10000
NO_DITHER, DITHER_1, DITHER_2 = 0, 1, 2
# The quantised value that SUBTRACTIVE_DITHER_2 keeps for pixels of exactly zero.
_EXACT_ZERO = -2147483646


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, with the machine code cached on disk wherever numba finds a place for it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the package folder nor the user's cache folder can be written: compile in every process.
        return numba.njit(nogil=True)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(typing: Any, word: Any) -> Any:
    """Zero bits before the first one in a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _load32(typing: Any, data: Any, place: Any) -> Any:
    """Four bytes of a contiguous uint8 array as a big-endian number, without a bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = cgutils.pointer_add(builder, array.data, args[1], ir.IntType(32).as_pointer())
        word = builder.load(address)
        word.align = 1
        if sys.byteorder == "little":
            word = builder.bswap(word)
        return builder.zext(word, ir.IntType(64))

    return types.uint64(data, types.int64), generate


@compiled
def _randoms() -> Array:
    """The standard's 10,000 random numbers (Park and Miller), float64 of their float32 values."""
    values = np.empty(NUM_RANDOMS, np.float64)
    seed = 1.0
    for i in range(NUM_RANDOMS):
        product = 16807.0 * seed
        seed = product - 2147483647.0 * np.floor(product / 2147483647.0)
        values[i] = np.float64(np.float32(seed / 2147483647.0))
    return values


@compiled
def decode_tile(data: Array, start: int, end: int, num: int, block: int, byte_pix: int, out: Array) -> bool:
    """Decode the first `num` values of a tile in data[start:end] into `out` (int32).

    Args:
        data: uint8, with PADDING bytes after `end`.
        block: values in one block of the code.
        byte_pix: bytes of one value before compression, 1, 2 or 4; smaller values come unsigned (1) or signed (2).

    Returns:
        True if the tile was whole.
    """
    fs_bits = 5
    fs_max = 25
    if byte_pix == 2:
        fs_bits = 4
        fs_max = 14
    elif byte_pix == 1:
        fs_bits = 3
        fs_max = 6
    raw_bits = 8 * byte_pix
    if end - start < byte_pix:
        return False
    last: Any = np.int64(_load32(data, start) >> np.uint64(32 - raw_bits))
    place = start + byte_pix
    word = np.uint64(0)  # the next bits, left-aligned
    have = np.int64(0)  # how many of them
    i = 0
    while i < num:
        if have <= 32:
            if place > end + 4:
                return False
            word |= _load32(data, place) << np.uint64(32 - have)
            place += 4
            have += 32
        fs = np.int64(word >> np.uint64(64 - fs_bits)) - 1
        word <<= np.uint64(fs_bits)
        have -= fs_bits
        stop = min(i + block, num)
        if fs < 0:
            for j in range(i, stop):
                out[j] = np.int32(last)
        elif fs < fs_max:
            for j in range(i, stop):
                if have <= 32:
                    if place > end + 4:
                        return False
                    word |= _load32(data, place) << np.uint64(32 - have)
                    place += 4
                    have += 32
                zeros: Any = _leading_zeros(word)
                if zeros + 1 + fs > have:
                    zeros = np.int64(0)
                    while word == 0:
                        if place > end + 4:
                            return False
                        zeros += have
                        word = _load32(data, place) << np.uint64(32)
                        place += 4
                        have = 32
                    skip = _leading_zeros(word)
                    zeros += skip
                    word = (word << np.uint64(skip)) << np.uint64(1)
                    have -= skip + 1
                    if have <= 32:
                        if place > end + 4:
                            return False
                        word |= _load32(data, place) << np.uint64(32 - have)
                        place += 4
                        have += 32
                else:
                    word = (word << np.uint64(zeros)) << np.uint64(1)
                    have -= zeros + 1
                difference = (zeros << fs) | np.int64((word >> np.uint64(1)) >> np.uint64(63 - fs))
                word <<= np.uint64(fs)
                have -= fs
                last += (difference >> 1) ^ -(difference & 1)
                out[j] = np.int32(last)
        elif fs == fs_max:
            for j in range(i, stop):
                if have <= 32:
                    if place > end + 4:
                        return False
                    word |= _load32(data, place) << np.uint64(32 - have)
                    place += 4
                    have += 32
                difference = np.int64(word >> np.uint64(64 - raw_bits))
                word <<= np.uint64(raw_bits)
                have -= raw_bits
                last += (difference >> 1) ^ -(difference & 1)
                out[j] = np.int32(last)
        else:
            return False
        i = stop
    if 8 * place - have > 8 * end:
        return False
    if byte_pix == 1:
        for j in range(num):
            out[j] &= 0xFF
    elif byte_pix == 2:
        for j in range(num):
            out[j] = np.int32(np.int16(out[j]))
    return True


@compiled
def _unquantise(
    values: Array,
    num: int,
    scale: float,
    zero: float,
    dither: int,
    tile: int,
    randoms: Array,
    blank: int,
    has_blank: bool,
    out: Array,
) -> None:
    """Turn quantised int32 values into float32; `tile` is the tile's number from 0 plus ZDITHER0."""
    if dither == NO_DITHER:
        for j in range(num):
            out[j] = np.float32(np.float64(values[j]) * scale + zero)
    else:
        seed = (tile - 1) % NUM_RANDOMS
        following = np.int64(randoms[seed] * 500.0)
        j = 0
        while j < num:
            run = min(num - j, NUM_RANDOMS - following)
            part = values[j : j + run]
            random = randoms[following : following + run]
            target = out[j : j + run]
            for k in range(run):
                target[k] = np.float32((np.float64(part[k]) - random[k] + 0.5) * scale + zero)
            j += run
            seed = (seed + 1) % NUM_RANDOMS
            following = np.int64(randoms[seed] * 500.0)
        if dither == DITHER_2:
            for j in range(num):
                if values[j] == _EXACT_ZERO:
                    out[j] = np.float32(0.0)
    if has_blank:
        for j in range(num):
            if values[j] == blank:
                out[j] = np.float32(np.nan)


@compiled
def read_floats(
    data: Array,
    tiles: Array,
    scales: Array,
    zeros: Array,
    blanks: Array,
    has_blank: bool,
    code: Array,
    randoms: Array,
    extra: Array,
    corner: Array,
    out: Array,
) -> int:
    """Decode quantised tiles into the window `out` of the image.

    Args:
        data: uint8, the compressed bytes with PADDING zero bytes at the end.
        tiles: int64 (N, 8): start and end in `data`, number of the tile from 0, first row, first column, rows, columns,
            and the tile's row in `extra` (-1: it is in `data`).
        scales, zeros: float64 (N,). blanks: int32 (N,), the value that means NaN if `has_blank`.
        code: int64 (4,): block, byte_pix, dither, ZDITHER0.
        randoms: float64 (10000,).
        extra: float32 (M, largest tile), tiles that were stored in another way.
        corner: int64 (2,), row and column of the image where `out` begins.
        out: float32 (rows, columns), C-contiguous.

    Returns:
        -1, or the index of the first tile that is damaged.
    """
    largest = 1
    for t in range(tiles.shape[0]):
        largest = max(largest, tiles[t, 5] * tiles[t, 6])
    values = np.empty(largest, np.int32)
    floats = np.empty(largest, np.float32)
    rows, cols = out.shape
    for t in range(tiles.shape[0]):
        row, col, height, width = tiles[t, 3] - corner[0], tiles[t, 4] - corner[1], tiles[t, 5], tiles[t, 6]
        num = height * width
        if height == 1:
            num = min(num, cols - col)
        direct = height == 1 and col == 0
        source = out[row] if direct else floats
        if tiles[t, 7] >= 0:
            source = extra[tiles[t, 7]]
        else:
            if not decode_tile(data, tiles[t, 0], tiles[t, 1], num, code[0], code[1], values):
                return t
            number = tiles[t, 2] + code[3]
            _unquantise(values, num, scales[t], zeros[t], code[2], number, randoms, blanks[t], has_blank, source)
            if direct:
                continue
        for r in range(max(0, -row), min(height, rows - row)):
            for c in range(max(0, -col), min(width, cols - col)):
                out[row + r, col + c] = source[r * width + c]
    return -1


@compiled
def read_integers(data: Array, tiles: Array, code: Array, extra: Array, corner: Array, out: Array) -> int:
    """As `read_floats`, for integer images: `extra` and `out` are int32."""
    largest = 1
    for t in range(tiles.shape[0]):
        largest = max(largest, tiles[t, 5] * tiles[t, 6])
    values = np.empty(largest, np.int32)
    rows, cols = out.shape
    for t in range(tiles.shape[0]):
        row, col, height, width = tiles[t, 3] - corner[0], tiles[t, 4] - corner[1], tiles[t, 5], tiles[t, 6]
        source = values
        if tiles[t, 7] >= 0:
            source = extra[tiles[t, 7]]
        else:
            num = height * width
            if height == 1:
                num = min(num, cols - col)
            if not decode_tile(data, tiles[t, 0], tiles[t, 1], num, code[0], code[1], values):
                return t
        for r in range(max(0, -row), min(height, rows - row)):
            for c in range(max(0, -col), min(width, cols - col)):
                out[row + r, col + c] = source[r * width + c]
    return -1


@compiled
def _add_row(row: Array, masked: Array, has_mask: bool, step: int, sums: Array, counts: Array) -> None:
    """Add the finite, unmasked pixels of one image row to the cells of its binned row."""
    cols = row.size
    for cell in range(sums.size):
        total = 0.0
        count = 0
        for c in range(cell * step, min((cell + 1) * step, cols)):
            value = np.float64(row[c])
            use = np.isfinite(value) and not (has_mask and masked[c])
            total += value if use else 0.0
            count += 1 if use else 0
        sums[cell] += total
        counts[cell] += count


@compiled
def _finish_row(sums: Array, counts: Array, out: Array) -> None:
    for cell in range(sums.size):
        out[cell] = np.float32(sums[cell] / counts[cell]) if counts[cell] > 0 else np.float32(np.nan)
        sums[cell] = 0.0
        counts[cell] = 0


@compiled
def bin_image(image: Array, masked: Array, has_mask: bool, step: int, out: Array) -> None:
    """Means of the finite, unmasked pixels in cells of step x step pixels; NaN where there are none.

    Args:
        image: float32 (rows, cols). masked: bool, same shape (1 x cols is enough without `has_mask`).
        out: float32 (ceil(rows / step), ceil(cols / step)); cells at the far edges may be smaller.
    """
    sums = np.zeros(out.shape[1], np.float64)
    counts = np.zeros(out.shape[1], np.int64)
    rows = image.shape[0]
    for r in range(rows):
        _add_row(image[r], masked[r if has_mask else 0], has_mask, step, sums, counts)
        if (r + 1) % step == 0 or r + 1 == rows:
            _finish_row(sums, counts, out[r // step])


@compiled
def read_binned(
    data: Array,
    tiles: Array,
    scales: Array,
    zeros: Array,
    blanks: Array,
    has_blank: bool,
    code: Array,
    randoms: Array,
    extra: Array,
    masked: Array,
    has_mask: bool,
    step: int,
    shape: tuple[int, int],
    out: Array,
) -> int:
    """`read_floats` and `bin_image` in one pass, for tiles as wide as the image; `shape` is the image's."""
    rows, cols = shape
    largest = 1
    for t in range(tiles.shape[0]):
        largest = max(largest, tiles[t, 5] * tiles[t, 6])
    values = np.empty(largest, np.int32)
    floats = np.empty(largest, np.float32)
    sums = np.zeros(out.shape[1], np.float64)
    counts = np.zeros(out.shape[1], np.int64)
    for t in range(tiles.shape[0]):
        num = tiles[t, 5] * cols
        source = floats
        if tiles[t, 7] >= 0:
            source = extra[tiles[t, 7]]
        else:
            if not decode_tile(data, tiles[t, 0], tiles[t, 1], num, code[0], code[1], values):
                return t
            number = tiles[t, 2] + code[3]
            _unquantise(values, num, scales[t], zeros[t], code[2], number, randoms, blanks[t], has_blank, source)
        for k in range(tiles[t, 5]):
            r = tiles[t, 3] + k
            _add_row(source[k * cols : (k + 1) * cols], masked[r if has_mask else 0], has_mask, step, sums, counts)
            if (r + 1) % step == 0 or r + 1 == rows:
                _finish_row(sums, counts, out[r // step])
    return -1


RANDOMS: Array = _randoms()
