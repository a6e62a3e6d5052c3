"""Views as float16: pixels in units of their noise through asinh, maps relative to a level. Row by row, in one pass."""

from __future__ import annotations

import numpy as np

from hpcqa.kernels import fast_kernel, inner_kernel, kernel
from hpcqa.pixels.floatbits import exponent, significand, size_bits

_LARGEST = np.float32(np.finfo(np.float32).max)
_LARGEST_HALF = np.float32(np.finfo(np.float16).max)
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LN_2 = np.float32(np.log(2.0))
# Of log((1 + s) / (1 - s)) = 2 s (1 + s^2 / 3 + s^4 / 5 ...), exact to 7e-10 where s is below 0.172.
_C3, _C5, _C7, _C9 = (np.float32(2.0 / odd) for odd in (3, 5, 7, 9))


def stretch(z: np.ndarray, softening: float) -> np.ndarray:
    """asinh(z / softening) of a float32 image (R, C) as float16, 0 where z is not finite."""
    return _stretched(z, np.float32(1.0 / softening)).view(np.float16)


@kernel
def _stretched(z: np.ndarray, scale: np.float32) -> np.ndarray:
    out, room = np.empty(z.shape, np.uint16), np.empty(z.shape[1], np.float32)
    _stretch_rows(z, scale, room, out)
    return out


@inner_kernel
def _stretch_rows(z: np.ndarray, scale: np.float32, room: np.ndarray, out: np.ndarray) -> None:
    for i in range(z.shape[0]):
        stretch_row(z[i], scale, room, out[i])


@inner_kernel
def stretch_row(z: np.ndarray, scale: np.float32, room: np.ndarray, out: np.ndarray) -> None:
    """One row (C,) of `stretch`, as the bits of float16 numbers: `scale` is 1 / softening, `room` (C,) float32."""
    _asinh_sizes(z, scale, room)
    _halves(room, z, out)


@fast_kernel
def _asinh_sizes(z: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """asinh(|z scale|) to 1.5e-7, far below float16's steps; 0 where z is not finite.

    The logarithm is written out, so that all of it is vector instructions: that of a power of two, and of what is left
    between the roots of 1/2 and of 2.
    """
    for j in range(out.shape[0]):
        size = min(abs(z[j]), _LARGEST) * scale if abs(z[j]) <= _LARGEST else _ZERO
        size = min(size, np.float32(1e15))
        argument = size + np.sqrt(size * size + _ONE)
        rest = significand(argument)
        s = (rest - _ONE) / (rest + _ONE)
        square = s * s
        out[j] = (
            exponent(argument) * _LN_2 + s * (((_C9 * square + _C7) * square + _C5) * square + _C3) * square + (s + s)
        )


def relative_halves(values: np.ndarray, level: float, reference: float) -> np.ndarray:
    """(values - level) / reference of a float32 map as float16, within its range; NaN stays NaN."""
    return _relative(values, np.float32(level), np.float32(reference)).view(np.float16)


@kernel
def _relative(values: np.ndarray, level: np.float32, reference: np.float32) -> np.ndarray:
    out, room = np.empty(values.shape, np.uint16), np.empty((2, values.shape[1]), np.float32)
    _relative_rows(values, level, reference, room, out)
    return out


@inner_kernel
def _relative_rows(
    values: np.ndarray, level: np.float32, reference: np.float32, room: np.ndarray, out: np.ndarray
) -> None:
    sizes, relative = room[0], room[1]
    for i in range(values.shape[0]):
        _relative_row(values[i], level, reference, sizes, relative)
        _halves(sizes, relative, out[i])


@fast_kernel
def _relative_row(
    values: np.ndarray, level: np.float32, reference: np.float32, sizes: np.ndarray, relative: np.ndarray
) -> None:
    """Sizes and signs for `_halves`."""
    for j in range(values.shape[0]):
        value = (values[j] - level) / reference
        relative[j] = value
        sizes[j] = min(abs(value), _LARGEST_HALF) if abs(value) >= _ZERO else np.float32(np.nan)


@inner_kernel
def _halves(sizes: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """The bits of float16 numbers, uint16: sizes from 0 to 65,504 with the signs of other numbers, rounded to even.

    NaN stays NaN. Unlike numpy's conversion this takes vector instructions.
    """
    bits, sign = sizes.view(np.uint32), signs.view(np.uint32)
    for j in range(out.shape[0]):
        # Adding 0.5 rounds a number below 2^-14 to a multiple of 2^-24, as float16 has them there.
        tiny = np.uint32(size_bits(sizes[j] + _HALF)) - np.uint32(0x3F000000)
        word = bits[j]
        usual = (
            word - np.uint32(0x38000000) + np.uint32(0xFFF) + ((word >> np.uint32(13)) & np.uint32(1))
        ) >> np.uint32(13)
        half = tiny if word < np.uint32(0x38800000) else usual
        half = half if word <= np.uint32(0x7F800000) else np.uint32(0x7E00)
        out[j] = np.uint16(half | ((sign[j] >> np.uint32(16)) & np.uint32(0x8000)))
