"""Does every file of a run hold what was written, and come from the files that are there now?"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import (
    CALIBRATION,
    CCD_DECISIONS,
    CLASSIFIER,
    DECISIONS,
    EMBEDDING,
    LABELS,
    MANIFEST,
    SHARD,
    SHARD_INDEX,
)
from hpcqa.artifacts.folder import NAMES, SHARD_INDEX_NAME, RunFolder
from hpcqa.artifacts.parts import first_own_shard, part_files, shard_number
from hpcqa.artifacts.schema import Schema
from hpcqa.errors import DataError, EnvironmentProblem

SINGLE: tuple[tuple[str, Schema], ...] = (
    ("manifest", MANIFEST),
    ("labels", LABELS),
    ("truth", LABELS),
    ("calibration", CALIBRATION),
    ("classifier", CLASSIFIER),
    ("decisions", DECISIONS),
    ("ccd_decisions", CCD_DECISIONS),
)
FOLDERS: tuple[tuple[str, Schema], ...] = (
    ("shards", SHARD),
    ("embeddings", EMBEDDING),
    ("embeddings-untrained", EMBEDDING),
)


def artifacts_of(folder: RunFolder) -> Iterator[tuple[Path, Schema]]:
    """Every file of a run that has a schema, with that schema."""
    for name, schema in SINGLE:
        if folder.output(name).exists():
            yield folder.output(name), schema
    for name, schema in FOLDERS:
        for path in sorted(folder.output(name).glob("*.h5")):
            yield path, schema


def verify_run(folder: RunFolder) -> list[str]:
    """What is wrong with a run's files, a sentence each; empty if nothing is.

    Every file is read in full: schema, key, digest of the content, and the digests of the files it was made from.
    """
    problems: list[str] = []
    for path, schema in artifacts_of(folder):
        found = store.verify(path, schema)
        problems += found or _parent_problems(path, folder)
    problems += _missing_shards(folder)
    problems += _misplaced_shards(folder)
    problems += _index_problems(folder.output("shards"))
    problems += _other_problems(folder)
    problems += [f"{path}: unfinished; left by a process that was killed; remove it." for path in leftovers(folder)]
    return problems


def _parent_problems(path: Path, folder: RunFolder) -> list[str]:
    problems = []
    for name, digest in store.read_provenance(path).parents.items():
        if name.split("/")[0] not in NAMES.values():
            continue  # a survey table, a rule file, a network: not among the run's own files
        places = [root / name for root in (folder.path, *folder.bases) if (root / name).exists()]
        if not places:
            problems.append(f"{path}: was made from {name}, which is no longer there; run its stage again.")
        elif not any(_digest_of(place) in (digest, None) for place in places):
            problems.append(f"{path}: was made from another {name} than there is now; run its stage again.")
    return problems


def _digest_of(path: Path) -> str | None:
    """The content digest that a file claims; None for a file that carries none, or that is reported as damaged."""
    if path.suffix not in (".parquet", ".h5"):
        return None
    try:
        return store.read_provenance(path).content
    except (DataError, EnvironmentProblem):
        return None


def _missing_shards(folder: RunFolder) -> list[str]:
    """Shards without an embedding where there are embeddings."""
    # An earlier run's embeddings serve for an earlier run's shards.
    first = first_own_shard(folder) if folder.output("manifest").exists() else 0
    wanted = {path.name for path in part_files(folder, "shards") if shard_number(path) >= first}
    problems = []
    for name in ("embeddings", "embeddings-untrained"):
        there = {path.name for path in folder.output(name).glob("*.h5")}
        problems += [
            f"{folder.output(name) / one}: missing; run `hpcqa embed` again." for one in sorted(wanted - there) if there
        ]
    return problems


def _misplaced_shards(folder: RunFolder) -> list[str]:
    """Sound shards that hold other exposures than the manifest puts into that number: copies, or another run's."""
    shards, manifest = sorted(folder.output("shards").glob("shard-*.h5")), folder.output("manifest")
    if not shards or not manifest.exists():
        return []
    try:
        rows = store.read_table(manifest, MANIFEST, ["expnum", "shard"])
    except (DataError, EnvironmentProblem):
        return []  # told already
    order = np.argsort(rows["shard"], kind="stable")
    number, expnum = rows["shard"][order], rows["expnum"][order]
    problems = []
    for path in shards:
        with contextlib.suppress(DataError, EnvironmentProblem):
            first, last = (np.searchsorted(number, shard_number(path), side) for side in ("left", "right"))
            with store.open_arrays(path, SHARD) as shard:
                found = shard.read("exposure")
            if not np.array_equal(np.unique(expnum[first:last]), np.unique(found)):
                problems.append(
                    f"{path}: holds other exposures than the manifest says; remove it and run `hpcqa shard`."
                )
    return problems


def _index_problems(shards: Path) -> list[str]:
    """Whether the shards' index is damaged, or knows a shard as it is by size and time but with another content.

    An index that lags behind is none: who opens it looks into the shards that were written since.
    """
    path = shards / SHARD_INDEX_NAME
    if not path.exists():
        return []
    if store.verify(path, SHARD_INDEX):
        return [f"{path}: damaged; remove it: it is made anew from the shards when they are read."]
    with store.open_arrays(path, SHARD_INDEX) as index:
        known = [index.read(name).tolist() for name in ("shard", "size", "modified", "content")]
    problems = []
    for name, size, modified, content in zip(*known, strict=True):
        file = shards / name
        with contextlib.suppress(OSError):
            found = file.stat()
            if (found.st_size, found.st_mtime_ns) == (size, modified) and _digest_of(file) not in (content, None):
                problems.append(f"{path}: speaks of another {name} than there is; remove it: it is made anew.")
    return problems


def _other_problems(folder: RunFolder) -> list[str]:
    problems = []
    evaluation, backbone = folder.output("evaluation"), folder.output("backbone")
    if evaluation.exists():
        try:
            store.read_json(evaluation)
        except DataError as error:
            problems.append(str(error))
    if backbone.exists() and not is_safetensors(backbone):
        problems.append(f"{backbone}: damaged or cut short; remove it and run `hpcqa pretrain` again.")
    return problems


def is_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says (8 bytes of length, JSON, tensors end to end)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(8 + length + max(ends, default=0) == size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def leftovers(folder: RunFolder) -> list[Path]:
    """Temporary files of writers."""
    roots = [folder.path, *(folder.path / NAMES[name] for name, _ in FOLDERS)]
    return sorted(path for root in roots if root.is_dir() for path in root.glob(".*.tmp"))
