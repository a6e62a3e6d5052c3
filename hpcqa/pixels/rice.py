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

# Zero bytes that must follow the compressed data, since the decoder reads eight at a time.
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
def _load64(typing: Any, data: Any, place: Any) -> Any:
    """Eight bytes of a contiguous uint8 array as a big-endian number, without a bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = cgutils.pointer_add(builder, array.data, args[1], ir.IntType(64).as_pointer())
        word = builder.load(address)
        word.align = 1
        return builder.bswap(word) if sys.byteorder == "little" else word

    return types.uint64(data, types.int64), generate


def _randoms() -> Array:
    """The standard's 10,000 random numbers (Park and Miller), float64 of their float32 values."""
    seed, values = 1, []
    for _ in range(NUM_RANDOMS):
        seed = 16807 * seed % 2147483647
        values.append(seed / 2147483647)
    return np.array(values, np.float32).astype(np.float64)


@compiled
def _refill(data: Array, place: int, end: int, word: Any, have: int) -> Any:
    """Fill the word of bits up to 56 or more; the bits after `end` are of no meaning, but inside the buffer.

    A word holds the next bits, left-aligned; `have` of them count, the rest are the same bits that come again.
    """
    word |= _load64(data, min(place, end)) >> np.uint64(have)
    return place + ((63 - have) >> 3), word, have | 56


@compiled
def _long_code(data: Array, place: int, end: int, word: Any, have: int, fs: int) -> Any:
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


@compiled
def _signed(value: int) -> int:
    """Even values are the positive differences, odd ones the negative."""
    return (value >> 1) ^ -(value & 1)


@compiled
def _split(word: Any, fs: int, low_shift: Any, fixed: int) -> Any:
    """One difference if its code lies wholly in the word, the bits that it takes, and the word after it.

    `low_shift` is 63 - fs and `fixed` is fs + 1, worked out once for all values of a block.
    """
    run = _leading_zeros(word)
    taken = run + fixed
    rest = word << np.uint64((run + 1) & 63)
    value = (run << fs) | np.int64((rest >> np.uint64(1)) >> low_shift)
    return (value >> 1) ^ -(value & 1), taken, word << np.uint64(taken & 63)


@compiled
def _coded_block(
    data: Array, place: int, end: int, word: Any, have: int, last: int, fs: int, first: int, stop: int, out: Array
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


@compiled
def decode_tile(data: Array, start: int, end: int, num: int, block: int, byte_pix: int, out: Array) -> bool:  # noqa: C901
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
    fs_max = 25 if byte_pix == 4 else 8 * byte_pix - 2
    if end - start < byte_pix:
        return False
    place, word, have = _refill(data, start, end, np.uint64(0), np.int64(0))
    last = np.int64(word >> np.uint64(64 - raw_bits))
    word <<= np.uint64(raw_bits)
    have -= raw_bits
    i = 0
    while i < num:
        stop = min(i + block, num)
        place, word, have = _refill(data, place, end, word, have)
        fs = np.int64(word >> np.uint64(64 - fs_bits)) - 1
        word <<= np.uint64(fs_bits)
        have -= fs_bits
        if fs < 0:
            for j in range(i, stop):
                out[j] = np.int32(last)
        elif fs < fs_max:
            place, word, have, last = _coded_block(data, place, end, word, have, last, fs, i, stop, out)
        else:
            for j in range(i, stop):
                place, word, have = _refill(data, place, end, word, have)
                last += _signed(np.int64(word >> np.uint64(64 - raw_bits)))
                word <<= np.uint64(raw_bits)
                have -= raw_bits
                out[j] = np.int32(last)
        if 8 * place - have > 8 * end or fs > fs_max:
            return False
        i = stop
    if byte_pix == 1:
        for j in range(num):
            out[j] &= 0xFF
    elif byte_pix == 2:
        for j in range(num):
            out[j] = np.int32(np.int16(out[j]))
    return True


@compiled
def _unquantise(  # noqa: C901
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
        for k in range(num):
            out[k] = np.float32(np.float64(values[k]) * scale + zero)
    else:
        seed = (tile - 1) % NUM_RANDOMS
        following: Any = np.int64(randoms[seed] * 500.0)
        done: Any = 0
        while done < num:
            run = min(num - done, NUM_RANDOMS - following)
            part = values[done : done + run]
            random = randoms[following : following + run]
            target = out[done : done + run]
            for k in range(run):
                target[k] = np.float32((np.float64(part[k]) - random[k] + 0.5) * scale + zero)
            done += run
            seed = (seed + 1) % NUM_RANDOMS
            following = np.int64(randoms[seed] * 500.0)
        if dither == DITHER_2:
            for k in range(num):
                if values[k] == _EXACT_ZERO:
                    out[k] = np.float32(0.0)
    if has_blank:
        for k in range(num):
            if values[k] == blank:
                out[k] = np.float32(np.nan)


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
def _add_row(row: Array, masked: Array, has_mask: bool, sums: Array, counts: Array) -> int:
    """Add the finite, unmasked pixels of an image row to the sums (float64) and counts (int32) of its columns.

    Returns:
        1 if every pixel was added and `counts` left as it was, else 0: nearly all rows are whole, and faster so.
    """
    odd = np.int32(0)
    for c in range(sums.size):
        odd += np.int32(row[c] - row[c] != 0)
    if odd == 0 and not has_mask:
        for c in range(sums.size):
            sums[c] += row[c]
        return 1
    for c in range(sums.size):
        use = (row[c] - row[c] == 0) & (not (has_mask and masked[c]))
        sums[c] += row[c] if use else np.float32(0)
        counts[c] += np.int32(use)
    return 0


@compiled
def _finish_row(sums: Array, counts: Array, height: int, whole: int, step: int, out: Array) -> None:
    """Gather `step` columns into each cell of a binned row, and begin anew.

    Of the `height` image rows in it, `whole` are not in `counts`.
    """
    for cell in range(out.size):
        first = cell * step
        stop = min(first + step, sums.size)
        total = 0.0
        for c in range(first, stop):
            total += sums[np.uint64(c)]
        count = whole * (stop - first)
        if whole < height:
            for c in range(first, stop):
                count += counts[np.uint64(c)]
        out[cell] = np.float32(total / count) if count > 0 else np.float32(np.nan)
    sums[:] = 0.0
    if whole < height:
        counts[:] = 0


@compiled
def bin_image(image: Array, masked: Array, has_mask: bool, step: int, out: Array) -> None:
    """Means of the finite, unmasked pixels in cells of step x step pixels; NaN where there are none.

    Args:
        image: float32 (rows, cols). masked: bool, same shape (1 x cols is enough without `has_mask`).
        out: float32 (ceil(rows / step), ceil(cols / step)); cells at the far edges may be smaller.
    """
    rows, cols = image.shape
    sums = np.zeros(cols, np.float64)
    counts = np.zeros(cols, np.int32)
    whole = 0
    for r in range(rows):
        whole += _add_row(image[r], masked[r if has_mask else 0], has_mask, sums, counts)
        if (r + 1) % step == 0 or r + 1 == rows:
            _finish_row(sums, counts, r % step + 1, whole, step, out[r // step])
            whole = 0


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
    sums = np.zeros(cols, np.float64)
    counts = np.zeros(cols, np.int32)
    whole = 0
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
            whole += _add_row(source[k * cols : (k + 1) * cols], masked[r if has_mask else 0], has_mask, sums, counts)
            if (r + 1) % step == 0 or r + 1 == rows:
                _finish_row(sums, counts, r % step + 1, whole, step, out[r // step])
                whole = 0
    return -1


RANDOMS: Array = _randoms()
