"""The files of an artifact that has one for each shard, some of which may be an earlier run's.

The manifest of a run that goes on from an earlier one (`survey.update`) leaves unchanged exposures in the shards that
the earlier run put them into, and numbers its own shards after all of those. So nothing is copied: a shard's file is
the nearest run's that has it, and an exposure belongs to the one shard that the manifest names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpcqa.artifacts.catalog import MANIFEST
from hpcqa.artifacts.folder import NAMES, RunFolder, shard_name
from hpcqa.artifacts.store import read_provenance
from hpcqa.config import Config
from hpcqa.errors import DataError

FIRST_SHARD = "first_shard"  # note in the manifest's provenance


def first_own_shard(folder: RunFolder) -> int:
    """The lowest shard number that the run's manifest gives out itself; those below are the earlier run's."""
    path = folder.find("manifest")
    return int(read_provenance(path, MANIFEST).notes.get(FIRST_SHARD, "0")) if path is not None else 0


def shard_number(path: Path) -> int:
    """The number of a shard, or of what was made from it.

    Raises:
        DataError: the file has no such name.
    """
    digits = path.stem.rpartition("-")[2]
    if not digits.isdigit():
        raise DataError(f"{path}: no shard's name; remove the file.")
    return int(digits)


def shards_of_manifest(path: Path) -> np.ndarray:
    """The numbers of all shards that a manifest names: int64, ascending.

    Raises:
        DataError: it is damaged.
    """
    try:
        # Neither read_table nor to_numpy: they import pandas where it is installed, half of the time of `hpcqa status`.
        numbers = pq.ParquetFile(path).read(columns=["shard"])["shard"].unique().to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and run its stage again.") from None
    return np.array(sorted(number for number in numbers if number >= 0), np.int64)


def stored_shards(config: Config, numbers: Sequence[int]) -> list[int]:
    """The shards that the shard stage writes: all, or an evenly spread share where embed reads the images itself."""
    if config.embed.source == "shards":
        return list(numbers)
    if config.survey.update or not numbers:
        return []
    count = max(1, round(config.embed.stored * len(numbers)))
    return [numbers[place] for place in sorted({round(x) for x in np.linspace(0, len(numbers) - 1, count)})]


def part_files(folder: RunFolder, artifact: str) -> list[Path]:
    """The files of "shards", "embeddings" or "embeddings-untrained" in the order of the shards; empty if none.

    Raises:
        DataError: the manifest is damaged.
    """
    found = folder.find(artifact)
    first = first_own_shard(folder)
    if not first:
        return sorted(found.glob("shard-*.h5")) if found is not None else []
    manifest = folder.find("manifest")
    assert manifest is not None
    places = [root / NAMES[artifact] for root in (folder.path, *folder.bases)]
    files = []
    for number in shards_of_manifest(manifest).tolist():
        file = next((place / shard_name(number) for place in places if (place / shard_name(number)).exists()), None)
        if file is not None:
            files.append(file)
    return files
