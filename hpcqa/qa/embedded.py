"""Reading what fit and classify work on: exposures of the manifest, and the blocks of embedding files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.parts import part_files, shard_number
from hpcqa.errors import DataError
from hpcqa.qa.blocks import NumberScale, Raw, segment_rows

CCD_BLOCKS = ("context", "background", "detail", "defects")
NETWORK = "network"  # what embeddings and classifiers name their network by, among the parents in provenance
EXPOSURE_BLOCKS = ("focal_plane", "exposure_defects")


@dataclass(frozen=True)
class ExposureTable:
    """One row for each exposure of the manifest, by increasing number.

    Attributes:
        expnum: int64; band: str; night: int32; shard: int32, -1 unknown or cut.
        first_shard: lower shards are an earlier run's and may hold exposures that are gone or elsewhere by now.
    """

    expnum: np.ndarray
    band: np.ndarray
    night: np.ndarray
    shard: np.ndarray | None = None
    first_shard: int = 0

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, np.ndarray], first_shard: int = 0) -> ExposureTable:
        """From columns expnum, band, night, shard and cuts; a row that is not cut speaks for its exposure."""
        order = np.lexsort((manifest["cuts"] != 0, manifest["expnum"]))
        expnum, first = np.unique(manifest["expnum"][order], return_index=True)
        rows = order[first]
        shard = manifest["shard"][rows] if first_shard else None
        return cls(expnum, manifest["band"][rows].astype(object), manifest["night"][rows], shard, first_shard)

    def wanted(self, path: Path, keep: np.ndarray | None) -> np.ndarray | None:
        """Which exposures of an embedding file count: sorted int64, or None for all of them.

        Args:
            keep: sorted int64, the exposures wanted; None: all.
        """
        if self.shard is None or shard_number(path) >= self.first_shard:
            return keep
        here: np.ndarray = self.expnum[self.shard == shard_number(path)]
        return here if keep is None else here[np.isin(here, keep)]

    def rows(self, expnum: np.ndarray, where: str) -> np.ndarray:
        """Rows of exposures.

        Raises:
            DataError: an exposure that the manifest lacks.
        """
        place = np.minimum(np.searchsorted(self.expnum, expnum), max(len(self.expnum) - 1, 0))
        there = self.expnum[place] == expnum if len(self.expnum) else np.zeros(len(expnum), bool)
        if not np.all(there):
            raise DataError(
                f"{where}: exposure {expnum[~there][0]} is not in the manifest; remove the file and run `hpcqa embed` "
                f"again."
            )
        return place


@dataclass(frozen=True)
class Embedded:
    """Exposures of embedding files that have at least one CCD with views, by increasing number in each file.

    Attributes:
        raw: their blocks, "numbers" as deviations from the survey.
        expnum: int64 (exposure,).
        ccdnum: int32 (ccd,).
        band: str (exposure,); night: int32 (exposure,).
        failed_expnum, failed_ccdnum, failed: the CCDs without views, and why, in bits.
        number_names: of the measured numbers.
        failure_words: what each failure bit means, from the lowest.
        where: coarse maps of the CCDs; None where the file has none.
    """

    raw: Raw
    expnum: np.ndarray
    ccdnum: np.ndarray
    band: np.ndarray
    night: np.ndarray
    failed_expnum: np.ndarray
    failed_ccdnum: np.ndarray
    failed: np.ndarray
    number_names: tuple[str, ...]
    failure_words: tuple[str, ...]
    where: Where | None = None


@dataclass(frozen=True)
class Where:
    """Coarse maps of some CCDs.

    Attributes:
        maps: float16 (ccd, down, across), mean deviation of the background from the usual one; NaN unknown.
        down, across: int64 (regions + 1,), edges of the regions in cells of the background view.
        cell: int32 (ccd,), native pixels along a side of a cell.
    """

    maps: np.ndarray
    down: np.ndarray
    across: np.ndarray
    cell: np.ndarray


def read_scale(path: Path | None) -> NumberScale | None:
    """The scale of the measured numbers in calibration.h5; None without one or without patterns."""
    if path is None:
        return None
    with store.open_arrays(path, catalog.CALIBRATION) as arrays:
        if not arrays.shape("ccdnum")[0]:
            return None
        names = ("ccdnum", "band", "number_median", "number_scatter")
        return NumberScale(*(arrays.read(name) for name in names))


def read_embedding(
    path: Path,
    exposures: ExposureTable,
    scale: NumberScale | None,
    keep: np.ndarray | None = None,
) -> Embedded:
    """One embedding file.

    Args:
        exposures: bands and nights.
        scale: of the measured numbers; None leaves them as they are.
        keep: sorted int64, the exposures wanted; None: all.

    Raises:
        DataError: damaged, or an exposure that the manifest lacks.
    """
    with store.open_arrays(path, catalog.EMBEDDING) as arrays:
        expnum, ccdnum, failed = (arrays.read(name) for name in ("expnum", "ccdnum", "failed"))
        order = np.lexsort((ccdnum, expnum))
        order = order[_wanted(expnum[order], exposures.wanted(path, keep))]
        good = order[failed[order] == 0]
        in_file = arrays.read("exposure")
        present, starts = np.unique(expnum[good], return_index=True)
        place = exposures.rows(present, str(path))
        band = exposures.band[place]
        sizes = np.diff(np.r_[starts, len(good)])
        numbers = arrays.read("numbers")[good]
        if scale is not None:
            numbers = scale.apply(numbers, ccdnum[good], np.repeat(band, sizes))
        ccd = {name: arrays.read(name)[good] for name in CCD_BLOCKS if name in arrays}
        by_number = np.argsort(in_file, kind="stable")
        rows = by_number[np.searchsorted(in_file, present, sorter=by_number)]
        exposure = {name: arrays.read(name)[rows] for name in EXPOSURE_BLOCKS if name in arrays}
        lost = order[failed[order] != 0]
        return Embedded(
            Raw(starts.astype(np.int64), {"numbers": numbers, **_with_columns(ccd)}, _with_columns(exposure)),
            present,
            ccdnum[good],
            band,
            exposures.night[place],
            expnum[lost],
            ccdnum[lost],
            failed[lost],
            tuple(arrays.attributes.get("number_names", ())),
            tuple(arrays.attributes.get("failure_words", ())),
            _where(arrays, good),
        )


def _where(arrays: store.ArrayFile, rows: np.ndarray) -> Where | None:
    if "where" not in arrays:
        return None
    down, across = (np.array(edges, np.int64) for edges in arrays.attributes["where_edges"])
    return Where(arrays.read("where")[rows], down, across, arrays.read("background_bin")[rows])


def _with_columns(blocks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in blocks.items() if values.shape[1]}


def _wanted(expnum: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    return np.ones(len(expnum), bool) if keep is None else np.isin(expnum, keep)


def concatenate(parts: Sequence[Embedded]) -> Embedded:
    """Several files as one, exposures by increasing number. Blocks that a part lacks are left out.

    Raises:
        DataError: the files hold blocks of different widths.
    """
    names = [name for name in parts[0].raw.ccd if all(name in part.raw.ccd for part in parts)]
    own = [name for name in parts[0].raw.exposure if all(name in part.raw.exposure for part in parts)]
    offsets = np.cumsum([0, *(part.raw.num_ccds for part in parts)])[:-1]
    starts = np.concatenate([part.raw.starts + offset for part, offset in zip(parts, offsets, strict=True)])
    raw = Raw(
        starts,
        {name: _stack([part.raw.ccd[name] for part in parts], name) for name in names},
        {name: _stack([part.raw.exposure[name] for part in parts], name) for name in own},
    )
    expnum = np.concatenate([part.expnum for part in parts])
    order = np.argsort(expnum, kind="stable")
    ccds = segment_rows(raw.starts[order], raw.sizes()[order])
    return Embedded(
        raw.select(order),
        expnum[order],
        np.concatenate([part.ccdnum for part in parts])[ccds],
        np.concatenate([part.band for part in parts])[order],
        np.concatenate([part.night for part in parts])[order],
        np.concatenate([part.failed_expnum for part in parts]),
        np.concatenate([part.failed_ccdnum for part in parts]),
        np.concatenate([part.failed for part in parts]),
        parts[0].number_names,
        parts[0].failure_words,
    )


def _stack(parts: list[np.ndarray], name: str) -> np.ndarray:
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise DataError(
            f"embeddings: {name} has {widths[0]} columns in some files and {widths[1]} in others; remove the folder "
            f"and run `hpcqa embed` again."
        )
    return np.concatenate(parts)


def embedding_paths(folder: RunFolder, artifact: str = "embeddings") -> list[Path]:
    """The embedding files of a run, in order.

    Raises:
        DataError: there are none.
    """
    paths = part_files(folder, artifact)
    if not paths:
        raise DataError(f"{folder.output(artifact)}: holds no embeddings; run `hpcqa embed run={folder.path}` first.")
    return paths


def read_embeddings(
    paths: Sequence[Path], exposures: ExposureTable, scale: NumberScale | None, keep: np.ndarray | None = None
) -> Embedded:
    """Several embedding files as one; see `read_embedding`."""
    return concatenate([read_embedding(path, exposures, scale, keep) for path in paths])
