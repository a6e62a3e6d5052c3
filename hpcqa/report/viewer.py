"""The views of single exposures out of a run's shards, as the network sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.pixels.dataset import ShardSet


@dataclass(frozen=True)
class ExposureViews:
    """One exposure: for each view its image (rows, columns) by CCD number; the focal plane; numbers of each CCD.

    Unknown cells of the background are NaN.
    """

    expnum: int
    context: Mapping[int, np.ndarray]
    background: Mapping[int, np.ndarray]
    detail: Mapping[int, np.ndarray]
    focal_plane: np.ndarray
    failed: Mapping[int, int]
    number_names: tuple[str, ...] = ()
    numbers: Mapping[int, np.ndarray] = field(default_factory=dict)


class Viewer:
    """Looks exposures up in the shards of a run."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Find the shards.

        Raises:
            DataError: the run has no shards.
        """
        where = folder.need("shards", "shard")
        paths = sorted(where.glob("shard-*.h5"))
        if not paths:
            raise DataError(f"{where}: holds no shard; run `hpcqa shard run={folder.path}` first.")
        # A report looks at few exposures: nothing is worth keeping in memory.
        shard = dataclasses.replace(config.shard, reader_cache=0.0)
        self._set = ShardSet(paths, folder.find("calibration"), dataclasses.replace(config, shard=shard))
        self._where = where

    def __contains__(self, expnum: int) -> bool:
        return bool(np.any(self._set.exposures == expnum))

    def views(self, expnum: int) -> ExposureViews:
        """Every view of an exposure.

        Raises:
            DataError: the exposure is in no shard, or a shard is damaged.
        """
        if expnum not in self:
            raise DataError(
                f"{self._where}: exposure {expnum} is in no shard; it is not in the tables, or it was cut "
                "(the report and manifest.parquet say why)."
            )
        rows = np.flatnonzero(self._set.expnum == expnum)
        failed = self._set.failed[rows]
        good = rows[failed == 0]
        ccdnum = self._set.ccdnum[good].tolist()
        context, detail = (self._set.batch(view, good).astype(np.float32) for view in ("context", "detail"))
        background = self._set.background_sigmas(good)
        numbers = self._set.numbers(good)
        plane = self._set.focal_plane(np.flatnonzero(self._set.exposures == expnum)[:1])
        return ExposureViews(
            expnum=expnum,
            context=dict(zip(ccdnum, context, strict=True)),
            background=dict(zip(ccdnum, background, strict=True)),
            detail=dict(zip(ccdnum, detail, strict=True)),
            focal_plane=plane[0].astype(np.float32),
            failed=dict(zip(self._set.ccdnum[rows].tolist(), failed.tolist(), strict=True)),
            number_names=tuple(self._set.number_names),
            numbers=dict(zip(ccdnum, numbers, strict=True)),
        )
