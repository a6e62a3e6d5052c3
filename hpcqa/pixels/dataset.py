"""Reading shards: whole batches in blocks, from thousands of files, with few handles and little memory.

Rows are numbered over all CCDs of all shards in order. A view is contiguous in its file, so a batch is read straight
from its bytes, in the order of the files, neighbours in one read, each row into its place. Where the bytes are comes
from the shards' index; HDF5 has no part in it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import CALIBRATION, SHARD
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.kernels import kernel
from hpcqa.pixels.focal import FocalPlane, focal_plane
from hpcqa.pixels.handles import Handles, Stretches
from hpcqa.pixels.order import BLOCK
from hpcqa.pixels.shardindex import ARRAYS, open_index

VIEWS = ("context", "background", "detail")
_BEHIND = {"context": ("context",), "background": ("background", "background_noise"), "detail": ("detail",)}
_EXPOSURES_AT_ONCE = 64
_READERS = 4  # threads: enough to hide a file system's latency


class ShardSet:
    """All CCDs of some shards.

    Attributes:
        expnum, ccdnum, failed: (N,) of every CCD row, int64, int32, int64.
        exposures: (M,) int64, every exposure in order.
        number_names: names of the measured numbers.
        contents: content digest of each shard.
        background_bin: (N,) int32, native pixels along a side of a cell of the background view.
    """

    def __init__(self, paths: Sequence[Path], calibration: Path | None, config: Config) -> None:
        """Find out what the shards hold; none stays open.

        Raises:
            DataError: no shard, a damaged one, or one whose numbers are others.
        """
        if not paths:
            raise DataError("no shards were given; run `hpcqa shard` first.")
        index = open_index(paths)
        columns = index.columns
        self.expnum, self.ccdnum, self.failed = (columns[name] for name in ("expnum", "ccdnum", "failed"))
        self.exposures, self.number_names, self.contents = columns["exposure"], index.names, index.contents
        self.background_bin = columns["background_bin"]
        self._starts, self._offsets = index.starts, index.offsets
        self._shapes = dict(zip(ARRAYS, index.rows, strict=True))
        self._dtypes = {name: np.dtype(SHARD.column(name).dtype) for name in ARRAYS}
        self._row_bytes = {name: math.prod(self._shapes[name]) * self._dtypes[name].itemsize for name in ARRAYS}
        self._members = _Members(self.expnum, self.exposures)
        self._views, self._camera = config.views, config.instrument.name
        self._room = int(config.shard.reader_cache * 1e9)
        self._handles = Handles(paths, index.states, config.shard.reader_handles, _READERS)
        self._patterns, self._pattern = _read_patterns(
            calibration, self.ccdnum, self._members.spread(columns["exposure_band"])
        )
        self._planes: dict[int, FocalPlane] = {}
        self._cache: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.expnum)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}

    def close(self) -> None:
        """Close all handles; they open again on the next use."""
        self._handles.close()

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Measured numbers: float32 (B, F) in the order of `number_names`."""
        return self._fetch("numbers", rows)

    def batch(self, view: str, rows: np.ndarray) -> np.ndarray:
        """A view of some rows, ready for the network.

        Args:
            view: context, background (calibrated) or detail.
            rows: int (B,), in any order, repeats allowed.

        Returns:
            float16 (B, H, W), without NaN; 0 where nothing is known.
        """
        if view not in VIEWS:
            raise ValueError(f"view {view!r}: expected one of {', '.join(VIEWS)}")
        if view == "background":
            sigmas: np.ndarray = np.nan_to_num(self.background_sigmas(rows), nan=0.0).astype(np.float16)
            return sigmas
        return self._fetch(view, rows)

    def background_sigmas(self, rows: np.ndarray) -> np.ndarray:
        """Calibrated background maps: float32 (B, H, W), asinh(z / softening), NaN where unknown.

        z is the map less the pattern of its CCD and band over its expected scatter, photon noise and the floor.
        """
        rows = np.asarray(rows, np.int64)
        maps = self._fetch("background", rows).astype(np.float32)
        noise = self._fetch("background_noise", rows).astype(np.float32)
        if self._patterns is not None:
            maps -= self._patterns[self._pattern[rows]]
        z = maps / np.sqrt(noise * noise + np.float32(self._views.background_floor) ** 2)
        stretched: np.ndarray = np.arcsinh(z / np.float32(self._views.background_softening))
        return stretched

    def focal_plane(self, exposure_rows: np.ndarray) -> np.ndarray:
        """All CCDs of some exposures as on the sky: float16 (B, H, W), 0 where there is no CCD or nothing known."""
        exposure_rows = np.asarray(exposure_rows, np.int64)
        shape = (self._views.focal_plane[0], self._views.focal_plane[1])
        images = np.zeros((len(exposure_rows), *shape), np.float16)
        for start in range(0, len(exposure_rows), _EXPOSURES_AT_ONCE):
            part = exposure_rows[start : start + _EXPOSURES_AT_ONCE]
            members = [self._members.of(row) for row in part.tolist()]
            places = np.repeat(np.arange(len(part)), [len(rows) for rows in members])
            rows = np.concatenate(members) if members else np.empty(0, np.int64)
            good = self.failed[rows] == 0
            if good.any():
                images[start : start + len(part)] = self._assemble(rows[good], places[good], len(part), shape)
        return images

    def _assemble(self, rows: np.ndarray, places: np.ndarray, num: int, shape: tuple[int, int]) -> np.ndarray:
        maps = self.background_sigmas(rows)
        sides = self.background_bin[rows]
        image = np.zeros((num, *shape), np.float32)
        for side in np.unique(sides).tolist():
            of_side = sides == side
            plane = self._plane(side, shape, maps.shape[1:])
            image += plane.assemble(maps[of_side], places[of_side], self.ccdnum[rows[of_side]], num)
        return image

    def _plane(self, side: int, shape: tuple[int, int], cells: tuple[int, ...]) -> FocalPlane:
        if side not in self._planes:
            self._planes[side] = focal_plane(instruments.get(self._camera), shape, (cells[0], cells[1]), side)
        return self._planes[side]

    # Bytes

    def will_need(self, view: str, rows: np.ndarray) -> None:
        """Ask the system to have a view's bytes of some rows ready, in pieces as long as possible.

        Nothing is read where the view is in memory or will be. A file that cannot be read is told when it is read.
        """
        rows = np.unique(np.asarray(rows, np.int64))
        for name in _BEHIND[view]:
            if name in self._cache or self._has_room(name):
                continue
            with contextlib.suppress(DataError):
                # As if they went to where they come from: neighbours are one part, with what is between them.
                self._handles.will_need(self._stretches(name, rows, rows, BLOCK))

    def _fetch(self, name: str, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        whole = self._cached(name)
        return whole[rows] if whole is not None else self._read(name, rows)

    def _cached(self, name: str) -> np.ndarray | None:
        """The whole dataset in memory, if there is room for it."""
        if name not in self._cache:
            if not self._has_room(name):
                return None
            self._cache[name] = self._read(name, np.arange(len(self)))
        return self._cache[name]

    def _has_room(self, name: str) -> bool:
        used = sum(values.nbytes for values in self._cache.values())
        return used + self._row_bytes[name] * len(self) <= self._room

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a dataset, in any order, repeats allowed."""
        out = np.empty((len(rows), *self._shapes[name]), self._dtypes[name])
        if not out.size:
            return out
        places = np.argsort(rows, kind="stable")
        ordered = rows[places]
        self._handles.read(self._stretches(name, ordered, places), out.reshape(-1).view(np.uint8))
        is_again = ordered[1:] == ordered[:-1]
        if is_again.any():
            first = np.append(True, ~is_again)
            out[places] = out[places[first]][np.cumsum(first) - 1]
        return out

    def _stretches(self, name: str, rows: np.ndarray, places: np.ndarray, gap: int = 1) -> Stretches:
        """Where the bytes of sorted rows are, in pieces no further apart than `gap`, and which places they go to."""
        offsets = self._offsets[:, ARRAYS.index(name)]
        return Stretches(*_stretches(rows, places, gap, self._starts, offsets, self._row_bytes[name]))


@kernel
def _stretches(
    rows: np.ndarray, places: np.ndarray, gap: int, starts: np.ndarray, offsets: np.ndarray, size: int
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """The parts of Stretches for sorted rows; of a row that is there several times, the first.

    Args:
        places: of each row in the array.
        starts, offsets: the first row of each file and where its bytes begin.
        size: bytes of a row.
    """
    most = len(rows)
    file, offset, first = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most + 1, np.int64)
    begin, length = np.empty(most, np.int64), np.empty(most, np.int64)
    shard, stretches, parts, before = 0, 0, 0, 0
    for k in range(most):
        step = rows[k] - rows[before]
        if k and not step:
            continue
        is_new = k == 0 or step > gap
        if k == 0 or rows[k] >= starts[shard + 1]:
            shard, is_new = np.searchsorted(starts, rows[k], side="right") - 1, True
        if is_new:
            file[stretches], offset[stretches] = shard, offsets[shard] + (rows[k] - starts[shard]) * size
            first[stretches] = parts
            stretches += 1
        # Neighbours in the file that are neighbours in the array too are one part.
        if not is_new and places[k] == places[before] + step:
            length[parts - 1] += step * size
        else:
            begin[parts], length[parts] = places[k] * size, size
            parts += 1
        before = k
    first[stretches] = parts
    return file[:stretches], offset[:stretches], first[: stretches + 1], begin[:parts], length[:parts]


class _Members:
    """Which rows belong to which exposure."""

    def __init__(self, expnum: np.ndarray, exposures: np.ndarray) -> None:
        order = np.argsort(expnum, kind="stable")
        ordered = expnum[order]
        self._order = order.astype(np.int32) if len(order) < 2**31 else order
        self._start, self._stop = (np.searchsorted(ordered, exposures, side) for side in ("left", "right"))

    def of(self, exposure_row: int) -> np.ndarray:
        """The rows of one exposure, in order: int64."""
        return np.asarray(self._order[self._start[exposure_row] : self._stop[exposure_row]], np.int64)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A text of each exposure, handed out to its rows: object (N,)."""
        result = np.full(len(self._order), "", dtype=object)
        lengths = self._stop - self._start
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        result[self._order[np.repeat(self._start, lengths) + inside]] = np.repeat(values, lengths)
        return result


def _read_patterns(path: Path | None, ccdnum: np.ndarray, band: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The patterns (P + 1, H, W), the last of them zero, and each row's place in them."""
    if path is None:
        return None, np.zeros(0, np.int32)
    with store.open_arrays(path, CALIBRATION) as calibration:
        patterns = calibration.read("background")
        keys = list(zip(calibration.read("band").tolist(), calibration.read("ccdnum").tolist(), strict=True))
    place = np.full(len(ccdnum), len(patterns), np.int32)
    for name in {name for name, _ in keys}:
        mine = np.flatnonzero(band == name)
        known = {number: row for row, (other, number) in enumerate(keys) if other == name}
        numbers, index = np.unique(ccdnum[mine], return_inverse=True)
        place[mine] = np.array([known.get(number, len(patterns)) for number in numbers.tolist()], np.int32)[index]
    return np.concatenate([patterns, np.zeros_like(patterns[:1])]), place
