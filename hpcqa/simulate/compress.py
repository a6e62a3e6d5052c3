"""RICE tile compression of images, row by row, as cfitsio writes it (FITS standard 4.0, section 10.4 and appendix I).

Own code because astropy spends longer in Python on each row than on the row's pixels: 7 ms instead of 100 ms for a CCD
of 512 rows of 256 pixels. What is written opens in astropy and fitsio; tests/simulate/test_compress.py holds them
against each other.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.kernels import kernel

NUM_RANDOM = 10_000
NULL_VALUE = -2147483647  # cfitsio's code for NaN, the ZBLANK of the header
BLOCK = 32
# MAD of third-order differences to standard deviation: 1.4826 / sqrt(6), the noise3 of cfitsio's quantize.c.
NOISE3 = 0.6052697
FS_BITS, FS_MAX = 5, 25


@dataclass(frozen=True)
class Compressed:
    """One image as a table of compressed rows.

    `sizes` int32 (rows,): bytes of each row in `heap`; `plain` bool (rows,): rows that are gzipped floats, not RICE;
    `scale`, `zero` float64 (rows,) (ones and zeros for integer images).
    """

    shape: tuple[int, int]
    heap: bytes
    sizes: np.ndarray
    plain: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    integer: bool
    dither_seed: int
    has_nan: bool


def _random_values() -> np.ndarray:
    """The 10,000 random numbers of the FITS standard: Park and Miller's generator from 1; float32 (10000,)."""
    values = np.empty(NUM_RANDOM, np.float32)
    seed = 1
    for index in range(NUM_RANDOM):
        seed = 16807 * seed % 2147483647
        values[index] = seed / 2147483647
    return values


RANDOM = _random_values()


def compress_floats(image: np.ndarray, *, quantize: float = 4.0, dither_seed: int = 1) -> Compressed:
    """Quantize with SUBTRACTIVE_DITHER_1 to noise / `quantize` and RICE-compress.

    Args:
        image: float32 (rows, cols) with at least 9 columns; NaN is kept.
        dither_seed: 1 to 10,000.
    """
    image = np.ascontiguousarray(image, np.float32)
    rows, cols = image.shape
    buffer = np.empty((rows, cols * 5 + 64), np.uint8)
    sizes, scale, zero = np.zeros(rows, np.int32), np.ones(rows), np.zeros(rows)
    _encode_floats(image, quantize, dither_seed, RANDOM, buffer, sizes, scale, zero)
    plain = sizes == 0
    pieces = [buffer[row, : sizes[row]].tobytes() for row in range(rows)]
    for row in np.flatnonzero(plain):
        # A row without noise is not quantized: cfitsio keeps its floats, gzipped.
        pieces[row] = gzip.compress(image[row].astype(">f4").tobytes(), 1, mtime=0)
        sizes[row], scale[row], zero[row] = len(pieces[row]), 0.0, 0.0
    has_nan = bool(np.isnan(image).any())
    return Compressed((rows, cols), b"".join(pieces), sizes, plain, scale, zero, False, dither_seed, has_nan)


def compress_integers(image: np.ndarray) -> Compressed:
    """RICE-compress an int32 (rows, cols) image without loss."""
    image = np.ascontiguousarray(image, np.int32)
    rows, cols = image.shape
    buffer = np.empty((rows, cols * 5 + 64), np.uint8)
    sizes = np.zeros(rows, np.int32)
    _encode_integers(image, buffer, sizes)
    heap = b"".join(buffer[row, : sizes[row]].tobytes() for row in range(rows))
    ones, zeros = np.ones(rows), np.zeros(rows)
    return Compressed((rows, cols), heap, sizes, np.zeros(rows, bool), ones, zeros, True, 0, False)


@kernel
def _row_noise(row: np.ndarray) -> float:
    """Noise of a row from third-order differences two pixels apart; 0 for a constant row."""
    differences = np.empty(row.size - 4, np.float32)
    count = 0
    for col in range(2, row.size - 2):
        value = 2 * row[col] - row[col - 2] - row[col + 2]
        if not np.isnan(value):
            differences[count] = abs(value)
            count += 1
    return NOISE3 * float(np.median(differences[:count])) if count else 0.0


@kernel
def _quantize_row(
    row: np.ndarray, tile: int, dither_seed: int, scale: float, zero: float, random: np.ndarray, out: np.ndarray
) -> None:
    seed = (tile + dither_seed - 1) % NUM_RANDOM
    position = int(random[seed] * 500)
    for col in range(row.size):
        if np.isnan(row[col]):
            out[col] = NULL_VALUE
        else:
            out[col] = np.int32(np.floor((row[col] - zero) / scale + random[position] - 0.5 + 0.5))
        position += 1
        if position == NUM_RANDOM:
            seed = (seed + 1) % NUM_RANDOM
            position = int(random[seed] * 500)


@kernel
def _encode_floats(
    image: np.ndarray,
    quantize: float,
    dither_seed: int,
    random: np.ndarray,
    buffer: np.ndarray,
    sizes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
) -> None:
    integers = np.empty(image.shape[1], np.int32)
    for row in range(image.shape[0]):
        noise = _row_noise(image[row])
        low, high = np.nanmin(image[row]), np.nanmax(image[row])
        if not (noise > 0) or (high - low) * quantize / noise > 2e9:
            continue
        scale[row] = noise / quantize
        zero[row] = np.floor(low / scale[row] + 0.5) * scale[row]
        _quantize_row(image[row], row, dither_seed, scale[row], zero[row], random, integers)
        sizes[row] = _rice(integers, buffer[row])


@kernel
def _encode_integers(image: np.ndarray, buffer: np.ndarray, sizes: np.ndarray) -> None:
    for row in range(image.shape[0]):
        sizes[row] = _rice(image[row], buffer[row])


@kernel
def _rice(values: np.ndarray, out: np.ndarray) -> int:
    """RICE_1 code of int32 values in blocks of 32 into `out` (at least 5 bytes a value); returns the bytes used."""
    first = np.uint32(values[0])
    for byte in range(4):
        out[byte] = np.uint8((first >> np.uint32(24 - 8 * byte)) & np.uint32(255))
    used, pending, num_pending = 4, np.uint64(0), 0
    last = np.int64(values[0])
    mapped = np.empty(BLOCK, np.uint32)
    for start in range(0, values.size, BLOCK):
        size = min(BLOCK, values.size - start)
        total = _map_differences(values[start : start + size], last, mapped)
        last = np.int64(values[start + size - 1])
        split = _split(total, size)
        if split >= FS_MAX:
            used, pending, num_pending = _put(out, used, pending, num_pending, FS_MAX + 1, FS_BITS)
            for index in range(size):
                used, pending, num_pending = _put(out, used, pending, num_pending, mapped[index], 32)
        elif split == 0 and total == 0:
            used, pending, num_pending = _put(out, used, pending, num_pending, 0, FS_BITS)
        else:
            used, pending, num_pending = _put(out, used, pending, num_pending, split + 1, FS_BITS)
            for index in range(size):
                used, pending, num_pending = _put_split(out, used, pending, num_pending, mapped[index], split)
    if num_pending:
        out[used] = np.uint8((pending << np.uint64(8 - num_pending)) & np.uint64(255))
        used += 1
    return used


@kernel
def _map_differences(values: np.ndarray, last: Any, mapped: np.ndarray) -> float:
    """Differences from the value before, small numbers for small ones of either sign; returns their sum."""
    total = 0.0
    for index in range(values.size):
        value = np.int64(values[index])
        # Differences wrap at 32 bits, as they do in C.
        step = np.int32(value - last)
        doubled = np.int32(np.uint32(step) << np.uint32(1))
        mapped[index] = np.uint32(~doubled) if step < 0 else np.uint32(doubled)
        total += mapped[index]
        last = value
    return total


@kernel
def _split(total: float, size: int) -> int:
    """How many low bits of each difference are written as they are."""
    split = 0
    left: Any = np.int64(max((total - size // 2 - 1) / size, 0.0)) >> 1
    while left > 0:
        split += 1
        left >>= 1
    return split


@kernel
def _put_split(
    out: np.ndarray, used: int, pending: np.uint64, num_pending: int, value: np.uint32, split: int
) -> tuple[int, np.uint64, int]:
    """The high bits as so many zeros and a one, then the low bits."""
    zeros = np.int64(value) >> split
    while zeros >= 24:
        used, pending, num_pending = _put(out, used, pending, num_pending, 0, 24)
        zeros -= 24
    used, pending, num_pending = _put(out, used, pending, num_pending, 1, zeros + 1)
    if split:
        rest = np.int64(value) & ((1 << split) - 1)
        used, pending, num_pending = _put(out, used, pending, num_pending, rest, split)
    return used, pending, num_pending


@kernel
def _put(
    out: np.ndarray, used: int, pending: np.uint64, num_pending: int, value: Any, bits: Any
) -> tuple[int, np.uint64, int]:
    """Append `bits` (at most 32) low bits of a value, most significant first; fewer than 8 bits stay pending."""
    pending = (pending << np.uint64(bits)) | np.uint64(value)
    num_pending += bits
    while num_pending >= 8:
        num_pending -= 8
        out[used] = np.uint8((pending >> np.uint64(num_pending)) & np.uint64(255))
        used += 1
    pending &= np.uint64((1 << num_pending) - 1)
    return used, pending, num_pending
