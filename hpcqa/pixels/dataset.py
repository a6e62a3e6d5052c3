"""Reading shards: whole batches in blocks, from thousands of files, with few handles and little memory.

Rows are numbered over all CCDs of all shards in order. A view is contiguous in its file, so a batch is read straight
from its bytes, in the order of the files, neighbours in one read, each row into its place. Where the bytes are comes
from the shards' index; HDF5 has no part in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import CALIBRATION, SHARD
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.pixels.focal import FocalPlane, focal_plane
from hpcqa.pixels.handles import Handles, Stretches, changes
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
            size = self._row_bytes(name)
            if name in self._cache or self._has_room(name):
                continue
            shards, edges = self._runs(rows, gap=BLOCK)
            first, last = rows[edges[:-1]], rows[edges[1:] - 1]
            with contextlib.suppress(DataError):
                self._handles.will_need(shards, self._bytes_at(name, shards, first), (last - first + 1) * size)

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
        return used + self._row_bytes(name) * len(self) <= self._room

    def _row_bytes(self, name: str) -> int:
        return int(np.prod(self._shapes[name])) * np.dtype(SHARD.column(name).dtype).itemsize

    def _bytes_at(self, name: str, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Where rows' bytes begin in their files: int64."""
        inside = (rows - self._starts[shards]) * self._row_bytes(name)
        return np.asarray(self._offsets[shards, ARRAYS.index(name)] + inside)

    def _runs(self, rows: np.ndarray, gap: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Stretches of sorted, distinct rows no further apart in one file: its number, (R,); their edges, (R + 1,)."""
        if not len(rows):
            return np.empty(0, np.int64), np.zeros(1, np.int64)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        is_new = changes(shard)
        is_new[1:] |= rows[1:] - rows[:-1] > gap
        first = np.flatnonzero(is_new)
        return shard[first], np.append(first, len(rows))

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a dataset, in any order, repeats allowed."""
        out = np.empty((len(rows), *self._shapes[name]), SHARD.column(name).dtype)
        if not out.size:
            return out
        places = np.argsort(rows, kind="stable")
        ordered = rows[places]
        is_first = changes(ordered)
        self._handles.read(self._stretches(name, ordered[is_first], places[is_first]), out.reshape(-1).view(np.uint8))
        if not is_first.all():
            out[places] = out[places[is_first]][np.cumsum(is_first) - 1]
        return out

    def _stretches(self, name: str, rows: np.ndarray, places: np.ndarray) -> Stretches:
        """Where the bytes of sorted, distinct rows are, and where they go: each row into its place."""
        size = self._row_bytes(name)
        shards, edges = self._runs(rows)
        # Neighbours in the file that are neighbours in the batch too are one part.
        is_new = changes(places, 1)
        is_new[edges[:-1]] = True
        parts = np.flatnonzero(is_new)
        lengths = (np.append(parts[1:], len(rows)) - parts) * size
        first = np.searchsorted(parts, edges)
        return Stretches(shards, self._bytes_at(name, shards, rows[edges[:-1]]), first, places[parts] * size, lengths)


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
