"""The views of single exposures out of a run's shards, as the network sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpcqa.artifacts.catalog import MANIFEST, SHARD
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.parts import part_files, shard_number
from hpcqa.artifacts.store import open_arrays, read_table
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.pixels.dataset import ShardSet


@dataclass(frozen=True)
class ExposureViews:
    """One exposure: for each view its image (rows, columns) by CCD number; the focal plane; numbers of each CCD.

    Unknown cells of the background are NaN. `wrong_sum` are the CCDs whose data contradict their DATASUM.
    """

    expnum: int
    context: Mapping[int, np.ndarray]
    background: Mapping[int, np.ndarray]
    detail: Mapping[int, np.ndarray]
    focal_plane: np.ndarray
    failed: Mapping[int, int]
    number_names: tuple[str, ...] = ()
    numbers: Mapping[int, np.ndarray] = field(default_factory=dict)
    wrong_sum: tuple[int, ...] = ()


class Viewer:
    """Looks exposures up in the shards of a run."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Find the shards; each is opened when one of its exposures is looked at.

        Raises:
            DataError: the run has no shards or no manifest.
        """
        self._where = folder.need("shards", "shard")
        paths = {shard_number(path): path for path in part_files(folder, "shards")}
        if not paths:
            raise DataError(f"{self._where}: holds no shard; run `hpcqa shard run={folder.path}` first.")
        manifest = read_table(folder.need("manifest", "manifest"), MANIFEST, ("expnum", "shard"))
        expnum, first = np.unique(np.where(manifest["shard"] >= 0, manifest["expnum"], -1), return_index=True)
        shards = manifest["shard"][first].tolist()
        self._path = {
            number: paths[shard] for number, shard in zip(expnum.tolist(), shards, strict=True) if shard in paths
        }
        self._calibration = folder.find("calibration")
        # A report looks at few exposures: nothing is worth keeping in memory.
        self._config = dataclasses.replace(config, shard=dataclasses.replace(config.shard, reader_cache=0.0))
        self._open: tuple[Path, ShardSet] | None = None

    def __contains__(self, expnum: int) -> bool:
        return expnum in self._path

    def _shard_of(self, expnum: int) -> ShardSet:
        path = self._path[expnum]
        if self._open is None or self._open[0] != path:
            if self._open is not None:
                self._open[1].close()
            self._open = (path, ShardSet([path], self._calibration, self._config))
        return self._open[1]

    def views(self, expnum: int) -> ExposureViews:
        """Every view of an exposure.

        Raises:
            DataError: the exposure is in no shard, or a shard is damaged.
        """
        shard = self._shard_of(expnum) if expnum in self else None
        if shard is None or expnum not in shard.exposures:
            raise DataError(
                f"{self._where}: exposure {expnum} is in no shard; it is not in the tables, or it was cut "
                "(the report and manifest.parquet say why)."
            )
        rows = np.flatnonzero(shard.expnum == expnum)
        failed = shard.failed[rows]
        good = rows[failed == 0]
        ccdnum = shard.ccdnum[good].tolist()
        context, detail = (shard.batch(view, good).astype(np.float32) for view in ("context", "detail"))
        background = shard.background_sigmas(good)
        numbers = shard.numbers(good)
        plane = shard.focal_plane(np.flatnonzero(shard.exposures == expnum)[:1])
        return ExposureViews(
            expnum=expnum,
            context=dict(zip(ccdnum, context, strict=True)),
            background=dict(zip(ccdnum, background, strict=True)),
            detail=dict(zip(ccdnum, detail, strict=True)),
            focal_plane=plane[0].astype(np.float32),
            failed=dict(zip(shard.ccdnum[rows].tolist(), failed.tolist(), strict=True)),
            number_names=tuple(shard.number_names),
            numbers=dict(zip(ccdnum, numbers, strict=True)),
            wrong_sum=self._wrong_sums(expnum),
        )

    def _wrong_sums(self, expnum: int) -> tuple[int, ...]:
        with open_arrays(self._path[expnum], SHARD) as shard:
            if "wrong_sum" not in shard:
                return ()
            rows = (shard.read("expnum") == expnum) & shard.read("wrong_sum")
            return tuple(shard.read("ccdnum")[rows].tolist())
