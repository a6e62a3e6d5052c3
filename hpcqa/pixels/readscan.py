"""Decoding an image and scanning it in one pass: rows are looked at while the processor still has them at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcqa.kernels import kernel
from hpcqa.pixels.decoder import read_next, rooms
from hpcqa.pixels.scanrows import scan_rows


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
            their rows. Rows without a tile are in `out` already.
        out: float32 (R, C), the image. masked: uint8, same shape. in_row: masked pixels in each row.
        step, split, facts, arrays, numbers: as for scanrows.scan_rows.

    Returns:
        -1, or the index of the first tile that is damaged.
    """
    data, tiles, scaling, code, randoms, extra = coded
    room = rooms(tiles)
    rows, num = out.shape[0], tiles.shape[0]
    first = scanned = 0
    while first < num:
        done = read_next(data, tiles, first, scaling, code, randoms, extra, room, out)
        if done == 0:
            return first
        first += done
        ready = tiles[first, 3] // step * step if first < num else rows
        if ready > scanned:
            scan_rows(out, masked, in_row, scanned, ready, step, split, facts, arrays, numbers)
            scanned = ready
    scan_rows(out, masked, in_row, scanned, rows, step, split, facts, arrays, numbers)
    return -1
