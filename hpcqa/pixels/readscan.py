"""Decoding an image and scanning it in one pass: rows are looked at while the processor still has them at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import inner_kernel, kernel
from hpcqa.pixels import lanes
from hpcqa.pixels.decoder import read_next, rooms
from hpcqa.pixels.scanrows import scan_rows
from hpcqa.pixels.streaming import fence, stream_copy


@kernel
def read_and_scan(
    coded: tuple[Any, ...],
    out: np.ndarray,
    masked: np.ndarray,
    in_row: np.ndarray,
    step: int,
    split: int,
    facts: tuple[np.float32, np.float32, np.float32],
    arrays: tuple[np.ndarray, ...],
    numbers: np.ndarray,
) -> int:
    """Decode tiles of one row each, and scan all rows of the image.

    Args:
        coded: data, tiles, scaling, code, randoms and extra, as for decoder.read_floats; the tiles in the order of
            their rows. Rows without a tile, between two tiles never two of them, are in `out` already.
        out: float32 (R, C), the image. masked: uint8, same shape. in_row: masked pixels in each row.
        step, split, facts, arrays, numbers: as for scanrows.scan_rows.

    Returns:
        -1, or the index of the first tile that is damaged.
    """
    # Rows wait here until all of their row of the working image are in: those of two turns of the decoder, and more.
    band = np.empty((step * (-(-4 * lanes.NUM // step) + 1), out.shape[1]), np.float32)
    room = rooms(coded[1])
    return _read_and_scan(coded, out, masked, in_row, step, split, facts, arrays, numbers, band, room)


@inner_kernel
def _read_and_scan(
    coded: tuple[Any, ...],
    out: np.ndarray,
    masked: np.ndarray,
    in_row: np.ndarray,
    step: int,
    split: int,
    facts: tuple[np.float32, np.float32, np.float32],
    arrays: tuple[np.ndarray, ...],
    numbers: np.ndarray,
    band: np.ndarray,
    room: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> int:
    data, tiles, scaling, code, randoms, extra = coded
    rows, num = out.shape[0], tiles.shape[0]
    first = scanned = gathered = 0
    while scanned < rows:
        if first < num:
            done = read_next(data, tiles, first, scaling, code, randoms, extra, room, band)
            if done == 0:
                return first
            for t in range(first, first + done):
                _gather(out, gathered, tiles[t, 3], band)
                gathered = tiles[t, 3] + 1
            first += done
        if first == num:
            last = min(scanned + band.shape[0], rows)
            _gather(out, gathered, last, band)
            gathered = last
        ready = gathered // step * step if gathered < rows else rows
        if ready > scanned:
            scan_rows(band, masked, in_row, scanned, ready, step, split, facts, arrays, numbers)
            for i in range(scanned, ready):
                stream_copy(band[i % band.shape[0]], out[i])
            scanned = ready
    fence()
    return -1


@inner_kernel
def _gather(image: np.ndarray, first: int, last: int, band: np.ndarray) -> None:
    """Take rows that are in the image already."""
    for i in range(first, last):
        row, kept = image[i], band[i % band.shape[0]]
        for j in range(row.size):
            kept[j] = row[j]
