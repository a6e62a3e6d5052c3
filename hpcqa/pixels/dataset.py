"""Reading shards: whole batches in blocks, from thousands of files, with few handles and little memory.

Rows are numbered over all CCDs of all shards in order. A view is contiguous in its file, so a batch is read straight
from its bytes: rows sorted, neighbours together, one read each. Nothing is open after construction; handles are opened
on first use in each process, so that the set can be forked, spawned and pickled.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import CALIBRATION, SHARD
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.pixels.focal import FocalPlane, focal_plane
from hpcqa.streams import stream

VIEWS = ("context", "background", "detail")
_ARRAYS = ("context", "background", "background_noise", "detail", "numbers")
_OPENERS = 8  # threads that read the shards' directories
_EXPOSURES_AT_ONCE = 64


@dataclass(frozen=True)
class _Block:
    """Where one dataset of one shard lies: byte offset, dtype and shape of a row."""

    offset: int
    dtype: np.dtype[Any]
    row: tuple[int, ...]


@dataclass(frozen=True)
class _Shard:
    """The directory of one file."""

    expnum: np.ndarray
    ccdnum: np.ndarray
    failed: np.ndarray
    background_bin: np.ndarray
    exposure: np.ndarray
    band: np.ndarray
    names: tuple[str, ...]
    blocks: dict[str, _Block]
    state: tuple[int, int]


def _read_directory(path: Path) -> _Shard:
    with store.open_arrays(path, SHARD) as shard:
        blocks = {}
        for name in _ARRAYS:
            if all(shard.shape(name)):
                mapped = shard.mapping(name)
                blocks[name] = _Block(mapped.offset, mapped.dtype, mapped.shape[1:])
        return _Shard(
            shard.read("expnum"),
            shard.read("ccdnum"),
            shard.read("failed"),
            shard.read("background_bin"),
            shard.read("exposure"),
            shard.read("exposure_band"),
            tuple(str(name) for name in shard.attributes["number_names"]),
            blocks,
            _state_of(path.stat()),
        )


def _state_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


class _Handles:
    """Open files, the least recently used closed first; a process of its own starts with none."""

    def __init__(self, paths: Sequence[Path], states: Sequence[tuple[int, int]], most: int) -> None:
        self.paths, self.states, self.most = list(paths), list(states), most
        self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "states": self.states, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, number: int, offset: int, into: memoryview) -> None:
        """Fill a buffer from a file.

        Raises:
            DataError: the file is gone, shorter than it was, or another one by now.
        """
        if self._process != os.getpid():
            self._forget()
        # One reader at a time: a handle may not be closed under another thread's read.
        with self._lock:
            descriptor = self._descriptor(number)
            done = 0
            while done < len(into):
                got = os.preadv(descriptor, [into[done:]], offset + done)
                if got <= 0:
                    raise DataError(f"{self.paths[number]}: shorter than when it was opened; run `hpcqa verify`.")
                done += got

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self.most:
            os.close(self._open.popitem(last=False)[1])
        try:
            descriptor = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.paths[number]}: cannot be opened ({error.strerror}); is it still there?") from None
        if _state_of(os.fstat(descriptor)) != self.states[number]:
            os.close(descriptor)
            raise DataError(f"{self.paths[number]}: was replaced while it was in use; start the stage again.")
        self._open[number] = descriptor
        return descriptor

    @property
    def num_open(self) -> int:
        return len(self._open)

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


class ShardSet:
    """All CCDs of some shards.

    Attributes:
        expnum, ccdnum, failed: (N,) of every CCD row, int64, int32, int64.
        exposures: (M,) int64, every exposure in order.
        number_names: names of the measured numbers.
    """

    def __init__(self, paths: Sequence[Path], calibration: Path | None, config: Config) -> None:
        """Read the directories of the shards.

        Raises:
            DataError: no shard, a damaged one, or one whose numbers are others.
        """
        if not paths:
            raise DataError("no shards were given; run `hpcqa shard` first.")
        with ThreadPoolExecutor(min(_OPENERS, len(paths))) as pool:
            shards = list(pool.map(_read_directory, paths))
        self.expnum = np.concatenate([shard.expnum for shard in shards])
        self.ccdnum = np.concatenate([shard.ccdnum for shard in shards])
        self.failed = np.concatenate([shard.failed for shard in shards])
        self.exposures = np.concatenate([shard.exposure for shard in shards])
        self.number_names = shards[0].names
        self._check(paths, shards)
        self._background_bin = np.concatenate([shard.background_bin for shard in shards])
        self._starts = np.concatenate([[0], np.cumsum([len(shard.expnum) for shard in shards])]).astype(np.int64)
        self._blocks = [shard.blocks for shard in shards]
        self._rows_of_exposure = _group(self.expnum, self.exposures)
        bands = np.concatenate([shard.band for shard in shards])
        self._views, self._camera = config.views, config.instrument.name
        self._room = int(config.shard.reader_cache * 1e9)
        self._handles = _Handles(paths, [shard.state for shard in shards], config.shard.reader_handles)
        self._patterns, self._pattern = _read_patterns(calibration, self.ccdnum, self._bands_of_rows(bands))
        self._planes: dict[int, FocalPlane] = {}
        self._cache: dict[str, np.ndarray] = {}

    def _check(self, paths: Sequence[Path], shards: Sequence[_Shard]) -> None:
        rows = {name: block.row for shard in shards for name, block in shard.blocks.items()}
        for path, shard in zip(paths, shards, strict=True):
            if shard.names != self.number_names or any(rows[name] != b.row for name, b in shard.blocks.items()):
                raise DataError(
                    f"{path}: its views or numbers differ from those of {paths[0]}; remove the older one and run "
                    "`hpcqa shard` again."
                )

    def _bands_of_rows(self, bands: np.ndarray) -> np.ndarray:
        result = np.full(len(self.expnum), "", dtype=object)
        for rows, band in zip(self._rows_of_exposure, bands, strict=True):
            result[rows] = band
        return result

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
            members = [self._rows_of_exposure[row] for row in part.tolist()]
            places = np.repeat(np.arange(len(part)), [len(rows) for rows in members])
            rows = np.concatenate(members) if members else np.empty(0, np.int64)
            good = self.failed[rows] == 0
            if good.any():
                images[start : start + len(part)] = self._assemble(rows[good], places[good], len(part), shape)
        return images

    def _assemble(self, rows: np.ndarray, places: np.ndarray, num: int, shape: tuple[int, int]) -> np.ndarray:
        maps = self.background_sigmas(rows)
        sides = self._background_bin[rows]
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

    def _fetch(self, name: str, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        whole = self._cached(name)
        return whole[rows] if whole is not None else self._read(name, rows)

    def _cached(self, name: str) -> np.ndarray | None:
        """The whole dataset in memory, if there is room for it."""
        if name not in self._cache:
            size = self._row_bytes(name) * len(self)
            used = sum(values.nbytes for values in self._cache.values())
            if used + size > self._room:
                return None
            self._cache[name] = self._read(name, np.arange(len(self)))
        return self._cache[name]

    def _row(self, name: str) -> _Block:
        return next(
            (blocks[name] for blocks in self._blocks if name in blocks), _Block(0, np.dtype(np.float16), (0, 0))
        )

    def _row_bytes(self, name: str) -> int:
        block = self._row(name)
        return int(np.prod(block.row)) * block.dtype.itemsize

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a dataset: sorted, and neighbours in a file read together."""
        kind, size = self._row(name), self._row_bytes(name)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        distinct, back = np.unique(ordered, return_inverse=True)
        out = np.empty((len(distinct), *kind.row), kind.dtype)
        flat = out.reshape(-1).view(np.uint8).data if out.size else memoryview(b"")
        shard = np.searchsorted(self._starts, distinct, side="right") - 1
        breaks = np.flatnonzero((np.diff(distinct) != 1) | (np.diff(shard) != 0)) + 1
        edges = np.concatenate([[0], breaks, [len(distinct)]]) if len(distinct) else np.zeros(1, np.int64)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            number = int(shard[start])
            offset = self._blocks[number][name].offset + int(distinct[start] - self._starts[number]) * size
            self._handles.read(number, offset, flat[start * size : stop * size])
        if len(distinct) == len(rows) and np.array_equal(order, np.arange(len(rows))):
            return out
        result = np.empty((len(rows), *kind.row), kind.dtype)
        result[order] = out[back]
        return result


def _group(expnum: np.ndarray, exposures: np.ndarray) -> list[np.ndarray]:
    """The rows of each exposure."""
    order = np.argsort(expnum, kind="stable")
    ordered = expnum[order]
    start, stop = np.searchsorted(ordered, exposures, "left"), np.searchsorted(ordered, exposures, "right")
    return [np.sort(order[a:b]) for a, b in zip(start.tolist(), stop.tolist(), strict=True)]


def _read_patterns(path: Path | None, ccdnum: np.ndarray, band: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The patterns (P + 1, H, W), the last of them zero, and each row's place in them."""
    if path is None:
        return None, np.zeros(len(ccdnum), np.int64)
    with store.open_arrays(path, CALIBRATION) as calibration:
        patterns = calibration.read("background")
        keys = zip(calibration.read("ccdnum").tolist(), calibration.read("band").tolist(), strict=True)
        place = {key: number for number, key in enumerate(keys)}
    rows = [place.get(key, len(patterns)) for key in zip(ccdnum.tolist(), band.tolist(), strict=True)]
    return np.concatenate([patterns, np.zeros_like(patterns[:1])]), np.array(rows, np.int64)


# The order of training ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def position_order(num: int, seed: int, epoch: int, block: int = 16, mix: int = 256) -> np.ndarray:
    """The order in which an epoch visits `num` rows: int64, a permutation, read-only.

    Blocks of `block` neighbouring rows are shuffled, and rows are shuffled among every `mix` blocks: a batch is read in
    long pieces from few files, yet neighbours rarely meet. `block=1` is a plain permutation.
    """
    generator = stream(seed, "order", epoch)
    blocks = generator.permutation(-(-num // block))
    order = (blocks[:, None] * block + np.arange(block)).ravel()
    order = order[order < num]
    for start in range(0, num, block * mix):
        generator.shuffle(order[start : start + block * mix])
    order.flags.writeable = False
    return order


def rows_at(
    position: int, count: int, *, num: int, seed: int, rank: int = 0, world_size: int = 1, block: int = 16
) -> np.ndarray:
    """This rank's rows of the global batch of `count` rows that begins at a position of the endless order.

    The position counts rows since the start of training; epochs follow one another without a gap. The batch is dealt
    out in contiguous pieces, so that all ranks together see the same rows whatever their number.
    """
    first = position + count * rank // world_size
    last = position + count * (rank + 1) // world_size
    pieces = []
    while first < last:
        epoch, place = divmod(first, num)
        taken = min(last - first, num - place)
        pieces.append(position_order(num, seed, epoch, block)[place : place + taken])
        first += taken
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
