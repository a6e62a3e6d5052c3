"""Pictures with a palette: maps and images of CCDs as small PNG files."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from hpcqa.report.figures import colour_map

# The first two places of every palette: nothing there, and something that has no value.
NOTHING, MISSING = (0, 0, 0, 0), (128, 128, 128, 70)
LEVELS = 96


@dataclass(frozen=True)
class Indexed:
    """A picture whose pixels are places in a palette: uint8 (rows, columns); RGBA uint8 (colours, 4)."""

    pixels: np.ndarray
    palette: np.ndarray

    def rgba(self) -> np.ndarray:
        """uint8 (rows, columns, 4)."""
        colours: np.ndarray = self.palette[self.pixels]
        return colours


def grey(image: np.ndarray, covered: np.ndarray | None = None) -> Indexed:
    """A stretched image, sky dark; its 1st and 99.7th percentiles are black and white.

    Args:
        image: (rows, columns); NaN where there is no value.
        covered: False where there is not even a CCD.
    """
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99.7)) if finite.size else (0.0, 1.0)
    return _placed(image, float(low), max(float(high), float(low) + 1e-3), "gray", covered)


def diverging(image: np.ndarray, covered: np.ndarray | None = None, *, reach: float = 3.0) -> Indexed:
    """A map around zero: blue below, red above, white at zero; arguments as in `grey`."""
    return _placed(image, -reach, reach, "RdBu_r", covered)


def heat(image: np.ndarray) -> Indexed:
    """Amounts (rows, columns), dark for none; bright for the largest but a few, so that one does not outshine all."""
    return _placed(image, 0.0, max(float(np.percentile(image, 99.5)), 1e-9), "magma", None)


def _placed(image: np.ndarray, low: float, high: float, table: str, covered: np.ndarray | None) -> Indexed:
    finite = np.isfinite(image)
    scaled = np.clip((np.where(finite, image, low).astype(np.float32) - low) / (high - low), 0, 1)
    pixels = (2 + np.round(scaled * (LEVELS - 1))).astype(np.uint8)
    pixels[~finite] = 1
    if covered is not None:
        pixels[~covered] = 0
    colours = colour_map(table, LEVELS)
    return Indexed(pixels, np.vstack([NOTHING, MISSING, colours]).astype(np.uint8))


def png(picture: Indexed) -> bytes:
    """The bytes of a palette PNG, a quarter of what matplotlib writes (PNG specification, third edition, W3C 2025)."""
    rows, columns = picture.pixels.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = picture.pixels
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", picture.palette[:, :3].tobytes()),
            _chunk(b"tRNS", picture.palette[:, 3].tobytes()),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
