"""From compressed tiles to pixels: decoding, undoing the quantisation, and binning in the same pass.

Written from the FITS standard 4.0 (section 10); bit-identical to cfitsio and astropy (test_fits_formats.py in
tests/pixels). All functions release the GIL; a damaged tile gives its number back. numba costs about a second to
import, and compiles for some seconds when a machine sees this first: import it only where pixels are read.

`tiles` is int64 (N, 8): start and end in the data, number of the tile from 0, first row, first column, rows, columns,
and the tile's row in `extra` (-1: it is in the data). `code` is int64 (5,): block, byte_pix, dither, ZDITHER0, and
whether the codec is PLIO_1 instead of RICE_1. `scaling` is scales and zeros, float64 (N,), blanks, int32 (N,), the
values that mean NaN, and whether there are any.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels import lanes, plio, rice, ricelanes

Array = np.ndarray[Any, Any]
Whole = Any  # a whole number, of the width that numba finds for it

NUM_RANDOMS = 10000
NO_DITHER, DITHER_1, DITHER_2 = 0, 1, 2
# The quantised value that SUBTRACTIVE_DITHER_2 keeps for pixels of exactly zero.
_EXACT_ZERO = -2147483646


def _randoms() -> Array:
    """The standard's 10,000 random numbers (Park and Miller), float32."""
    seed, values = 1, []
    for _ in range(NUM_RANDOMS):
        seed = 16807 * seed % 2147483647
        values.append(seed / 2147483647)
    return np.array(values, np.float32)


@inner_kernel
def _unquantise(  # noqa: C901
    values: Array,
    num: Whole,
    scale: Any,
    zero: Any,
    dither: Whole,
    tile: Whole,
    randoms: Array,
    blank: Any,
    has_blank: Any,
    out: Array,
) -> None:
    """Turn quantised int32 values into float32; `tile` is the tile's number from 0 plus ZDITHER0."""
    if dither == NO_DITHER:
        for k in range(num):
            out[k] = np.float32(np.float64(values[k]) * scale + zero)
    else:
        seed = (tile - 1) % NUM_RANDOMS
        following: Any = np.int64(np.float64(randoms[seed]) * 500.0)
        done: Any = 0
        while done < num:
            run = min(num - done, NUM_RANDOMS - following)
            part = values[done : done + run]
            random = randoms[following : following + run]
            target = out[done : done + run]
            for k in range(run):
                target[k] = np.float32((np.float64(part[k]) - np.float64(random[k]) + 0.5) * scale + zero)
            done += run
            seed = (seed + 1) % NUM_RANDOMS
            following = np.int64(np.float64(randoms[seed]) * 500.0)
        if dither == DITHER_2:
            for k in range(num):
                if values[k] == _EXACT_ZERO:
                    out[k] = np.float32(0.0)
    if has_blank:
        for k in range(num):
            if values[k] == blank:
                out[k] = np.float32(np.nan)


@kernel
def rooms(tiles: Array) -> tuple[Array, Array, Array]:
    """Room for the values of the tiles that are decoded at once, for one of them as pixels, and for their state.

    Returns:
        int32, a row for each; float32, as long as a row; uint64 as for ricelanes.decode_tiles.
    """
    largest = np.int64(1)
    rows = lanes.NUM if tiles.shape[0] >= lanes.NUM else 1
    for t in range(tiles.shape[0]):
        largest = max(largest, tiles[t, 5] * tiles[t, 6])
        rows = rows if tiles[t, 5] == 1 else 1
    state = np.empty((ricelanes.ROWS, lanes.NUM), np.uint64)
    return np.empty((rows, largest), np.int32), np.empty(largest, np.float32), state


@inner_kernel
def _alike(tiles: Array, t: Whole) -> bool:
    """Whether tile t and those after it are as many as there are lanes, one-row, of one width, and in the data."""
    if t + lanes.NUM > tiles.shape[0]:
        return False
    for k in range(t, t + lanes.NUM):
        same = tiles[k, 4] == tiles[t, 4] and tiles[k, 6] == tiles[t, 6]
        if not same or tiles[k, 5] != 1 or tiles[k, 7] >= 0:
            return False
    return True


@inner_kernel
def _decode(data: Array, tile: Array, num: Whole, code: Array, values: Array) -> bool:
    if code[4] != 0:
        return plio.decode_tile(data, tile[0], tile[1], num, values)
    return rice.decode_tile(data, tile[0], tile[1], num, code[0], code[1], values)


@inner_kernel
def _decode_next(data: Array, tiles: Array, t: Whole, num: Whole, code: Array, values: Array, state: Array) -> Whole:
    """Decode tile t, and those after it that go with it, into the rows of `values`; how many, 0 if t is damaged."""
    if values.shape[0] == lanes.NUM and code[4] == 0 and code[1] == 4 and _alike(tiles, t):
        for k in range(lanes.NUM):
            state[ricelanes.PLACE, k], state[ricelanes.END, k] = tiles[t + k, 0], tiles[t + k, 1]
        if ricelanes.decode_tiles(data, state, num, code[0], values):
            return lanes.NUM
    return 1 if _decode(data, tiles[t], num, code, values[0]) else 0


@inner_kernel
def _to_floats(
    values: Array,
    num: Whole,
    t: Whole,
    tiles: Array,
    scaling: tuple[Array, Array, Array, bool],
    code: Array,
    randoms: Array,
    out: Array,
) -> None:
    """The first `num` values of tile t as pixels."""
    scales, zeros, blanks, has_blank = scaling
    number = tiles[t, 2] + code[3]
    _unquantise(values, num, scales[t], zeros[t], code[2], number, randoms, blanks[t], has_blank, out)


@inner_kernel
def _place(source: Array, tile: Array, out: Array) -> None:
    """Copy a decoded tile to its place in the image."""
    row, col, height, width = tile[3], tile[4], tile[5], tile[6]
    for r in range(height):
        for c in range(width):
            out[row + r, col + c] = source[r * width + c]


@kernel
def read_floats(
    data: Array,
    tiles: Array,
    scaling: tuple[Array, Array, Array, bool],
    code: Array,
    randoms: Array,
    extra: Array,
    out: Array,
) -> Whole:
    """Decode quantised tiles into an image.

    Args:
        data: uint8, the compressed bytes with rice.PADDING zero bytes at the end.
        tiles, scaling, code: see the module.
        randoms: float32 (10000,).
        extra: float32 (M, largest tile), tiles that were stored in another way.
        out: float32 (rows, columns), C-contiguous, the image.

    Returns:
        -1, or the index of the first tile that is damaged.
    """
    room = rooms(tiles)
    first = 0
    while first < tiles.shape[0]:
        done = read_next(data, tiles, first, scaling, code, randoms, extra, room, out)
        if done == 0:
            return first
        first += done
    return -1


@inner_kernel
def read_next(
    data: Array,
    tiles: Array,
    first: Whole,
    scaling: tuple[Array, Array, Array, bool],
    code: Array,
    randoms: Array,
    extra: Array,
    room: tuple[Array, Array, Array],
    out: Array,
) -> Whole:
    """Decode tile `first`, and those after it that go with it, into the image; how many, 0 if it is damaged.

    `room` is `rooms(tiles)`; the rest is as for `read_floats`.
    """
    values, floats, state = room
    if tiles[first, 7] >= 0:
        _place(extra[tiles[first, 7]], tiles[first], out)
        return 1
    num = tiles[first, 5] * tiles[first, 6]
    done = _decode_next(data, tiles, first, num, code, values, state)
    for t in range(first, first + done):
        # Whole rows are written where they belong.
        direct = tiles[t, 5] == 1 and tiles[t, 6] == out.shape[1]
        target = out[tiles[t, 3]] if direct else floats
        _to_floats(values[t - first], num, t, tiles, scaling, code, randoms, target)
        if not direct:
            _place(floats, tiles[t], out)
    return done


@kernel
def read_integers(data: Array, tiles: Array, code: Array, extra: Array, out: Array) -> Whole:
    """As `read_floats`, for integer images: `extra` and `out` are int32."""
    values = rooms(tiles)[0][0]
    for t in range(tiles.shape[0]):
        if tiles[t, 7] >= 0:
            _place(extra[tiles[t, 7]], tiles[t], out)
            continue
        num = tiles[t, 5] * tiles[t, 6]
        direct = tiles[t, 5] == 1 and tiles[t, 6] == out.shape[1]
        target = out[tiles[t, 3]] if direct else values
        if not _decode(data, tiles[t], num, code, target):
            return t
        if not direct:
            _place(values, tiles[t], out)
    return -1


@kernel
def read_codes(data: Array, tiles: Array, code: Array, extra: Array, out: Array, seen: Array) -> tuple[Whole, bool]:
    """As `read_integers`, for tiles of one whole row each and values that fit into a byte.

    Args:
        out: uint8 (rows, columns). seen: bool (256,) set where a pixel has that value.

    Returns:
        As `read_integers`; and whether all values fit: if not, the rest is not decoded.
    """
    values = rooms(tiles)[0][0]
    few = np.uint64(0)
    for t in range(tiles.shape[0]):
        stored = tiles[t, 7] >= 0
        if not stored and not _decode(data, tiles[t], out.shape[1], code, values):
            return t, True
        row = extra[tiles[t, 7], : out.shape[1]] if stored else values[: out.shape[1]]
        largest = _all_bits(row)
        if largest < 0 or largest > 255:
            return -1, False
        if 0 < largest < 64:
            few |= _few_codes(row, out[tiles[t, 3]])
            continue
        out[tiles[t, 3]] = row
        for j in range(row.size if largest else 1):
            seen[row[j]] = True
    for value in range(64):
        seen[value] |= (few >> np.uint64(value)) & np.uint64(1) != 0
    return -1, True


@fast_kernel
def _all_bits(row: Array) -> Whole:
    bits = np.int32(0)
    for j in range(row.shape[0]):
        bits |= row[j]
    return bits


@fast_kernel
def _few_codes(row: Array, out: Array) -> Any:
    """Values below 64 as bytes; which there are, by the bits of a number."""
    seen = np.uint64(0)
    for j in range(out.shape[0]):
        seen |= np.uint64(1) << np.uint64(row[j])
        out[j] = np.uint8(row[j])
    return seen


@kernel
def codes_to_flags(codes: Array, bad: Array) -> None:
    """Codes (rows, columns), uint8, become 1 where `bad`, bool (256,), has them, else 0."""
    few = np.uint64(0)
    for value in range(64):
        few |= np.uint64(bad[value]) << np.uint64(value)
    is_few = not bad[64:].any()
    for i in range(codes.shape[0]):
        if is_few:
            _flag_few(few, codes[i])
        else:
            for j in range(codes.shape[1]):
                codes[i, j] = np.uint8(bad[codes[i, j]])


@fast_kernel
def _flag_few(bad: Any, codes: Array) -> None:
    for j in range(codes.shape[0]):
        code = np.uint64(codes[j])
        codes[j] = np.uint8((bad >> (code & np.uint64(63))) & np.uint64(1)) if code < np.uint64(64) else np.uint8(0)


@inner_kernel
def _add_row(row: Array, masked: Array, has_mask: bool, sums: Array, counts: Array) -> Whole:
    """Add the finite, unmasked pixels of an image row to the sums (float64) and counts (int32) of its columns.

    Returns:
        1 if every pixel was added and `counts` left as it was, else 0: nearly all rows are whole, and faster so.
    """
    odd = np.int32(0)
    for c in range(sums.size):
        odd = np.int32(odd + np.int32(row[c] - row[c] != 0))
    if odd == 0 and not has_mask:
        for c in range(sums.size):
            sums[c] += row[c]
        return 1
    for c in range(sums.size):
        use = (row[c] - row[c] == 0) & (not (has_mask and masked[c]))
        sums[c] += row[c] if use else np.float32(0)
        counts[c] += np.int32(use)
    return 0


@inner_kernel
def _finish_row(sums: Array, counts: Array, height: Whole, whole: Whole, step: Whole, out: Array) -> None:
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


@kernel
def bin_image(image: Array, masked: Array, has_mask: bool, step: Whole, out: Array) -> None:
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


@kernel
def read_binned(
    data: Array,
    tiles: Array,
    scaling: tuple[Array, Array, Array, bool],
    code: Array,
    randoms: Array,
    extra: Array,
    masked: Array,
    has_mask: bool,
    step: Whole,
    shape: tuple[Whole, Whole],
    out: Array,
) -> Whole:
    """`read_floats` and `bin_image` in one pass, for tiles as wide as the image; `shape` is the image's."""
    rows, cols = shape
    values, floats, state = rooms(tiles)
    sums, counts = np.zeros(cols, np.float64), np.zeros(cols, np.int32)
    whole = following = 0
    while following < tiles.shape[0]:
        first = following
        stored = tiles[first, 7] >= 0
        following += 1 if stored else _decode_next(data, tiles, first, tiles[first, 5] * cols, code, values, state)
        if following == first:
            return first
        for t in range(first, following):
            source = extra[tiles[t, 7]] if stored else floats
            if not stored:
                _to_floats(values[t - first], tiles[t, 5] * cols, t, tiles, scaling, code, randoms, floats)
            for k in range(tiles[t, 5]):
                r = tiles[t, 3] + k
                line = source[k * cols : (k + 1) * cols]
                whole += _add_row(line, masked[r if has_mask else 0], has_mask, sums, counts)
                if (r + 1) % step == 0 or r + 1 == rows:
                    _finish_row(sums, counts, r % step + 1, whole, step, out[r // step])
                    whole = 0
    return -1


RANDOMS: Array = _randoms()
