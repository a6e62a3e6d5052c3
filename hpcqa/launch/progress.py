"""How far a stage is, read from what it has written; nothing is asked of the processes that write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.parts import first_own_shard, shards_of_manifest, stored_shards
from hpcqa.artifacts.store import read_provenance
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.stages import Stage

# Artifacts that are one file per shard.
PER_SHARD = ("shards", "embeddings")
# Files that stand for an artifact that is a folder.
LAST_FILE = {"survey": "truth.csv", "report": "index.html"}
# Of an artifact of many files, this many are compared with their parents.
SAMPLE = 32


@dataclass(frozen=True)
class Progress:
    """Pieces done of all; rate in pieces a second and seconds left where they can be told."""

    done: int
    total: int
    rate: float | None = None
    left_s: float | None = None

    @property
    def is_complete(self) -> bool:
        return self.total > 0 and self.done >= self.total


def own_shards(config: Config, folder: RunFolder) -> list[int]:
    """Numbers of the shards that the run makes itself: all that the manifest names, or those that an update adds."""
    path = folder.find("manifest")
    if path is None:
        return []
    try:
        first = first_own_shard(folder) if config.survey.update else 0
        return [number for number in shards_of_manifest(path).tolist() if number >= first]
    except DataError:
        return []


def is_lent(config: Config, folder: RunFolder, stage: Stage) -> bool:
    """Whether an update uses what the earlier run's stage wrote."""
    if not config.survey.update or any(standing_file(folder, artifact).exists() for artifact in stage.writes):
        return False
    if stage.name in ("calibrate", "pretrain"):
        return all(folder.find(artifact) is not None for artifact in stage.writes)
    if stage.writes[0] in PER_SHARD:
        return folder.output("manifest").exists() and not own_shards(config, folder)
    if stage.name != "fit":
        return False
    from hpcqa.qa.fit import classifier_lender  # here, because it brings torch along

    return classifier_lender(config, folder) is not None


def progress_of(config: Config, folder: RunFolder, stage: Stage, shards: Sequence[int]) -> Progress:
    """How far one stage is, by its files.

    Args:
        shards: numbers of the run's own shards.
    """
    if is_lent(config, folder, stage):
        return Progress(1, 1)
    if stage.ranks == "torch":
        return training_progress(folder, config.ssl.steps)
    if stage.writes[0] in PER_SHARD:
        wanted = wanted_shards(config, stage, shards)
        if not wanted and config.embed.source == "fits" and stage.name == "shard":
            return Progress(1, 1)
        return files_progress(shard_times(folder, stage.writes[0], wanted), len(wanted))
    done = all(standing_file(folder, artifact).exists() for artifact in stage.writes)
    return Progress(int(done), 1)


def wanted_shards(config: Config, stage: Stage, shards: Sequence[int]) -> Sequence[int]:
    """Those of the run's own shards that a stage leaves files of: `shard` may store a few of them only."""
    return stored_shards(config, shards) if stage.name == "shard" else shards


def shard_times(folder: RunFolder, artifact: str, shards: Sequence[int]) -> list[float]:
    """When each file of a per-shard artifact was finished, in seconds, oldest first."""
    names = {shard_name(number) for number in shards}
    place = folder.output(artifact)
    if not place.is_dir():
        return []
    return sorted(path.stat().st_mtime for path in place.iterdir() if path.name in names)


def files_progress(times: Sequence[float], total: int) -> Progress:
    """Progress of files by the times they were finished at; the rate is that of the last quarter of an hour."""
    recent = [moment for moment in times if moment > times[-1] - 900.0] if times else []
    rate = (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 2 and recent[-1] > recent[0] else None
    left = (total - len(times)) / rate if rate and len(times) < total else None
    return Progress(len(times), total, rate, left)


def training_progress(folder: RunFolder, steps: int) -> Progress:
    """Steps of the training, by its metrics."""
    if standing_file(folder, "backbone").exists():
        return Progress(max(steps, 1), max(steps, 1))
    entries = [entry for entry in last_entries(folder.output("metrics")) if isinstance(entry.get("step"), int)]
    if not entries:
        return Progress(0, max(steps, 1))
    done = max(int(str(entry["step"])) for entry in entries)
    rate = steps_per_s(entries)
    return Progress(min(done, max(steps - 1, 0)), max(steps, 1), rate, (steps - done) / rate if rate else None)


def steps_per_s(entries: Sequence[Mapping[str, object]]) -> float | None:
    """Optimizer steps a second by the last line that has a speed; None if none has."""
    for entry in reversed(entries):
        speed, images, step = (entry.get(name) for name in ("images_per_s", "images", "step"))
        if all(isinstance(value, (int, float)) and value > 0 for value in (speed, images, step)):
            return float(str(speed)) * float(str(step)) / float(str(images))
    return None


def last_entries(path: Path, size: int = 65536) -> Iterator[Mapping[str, object]]:
    """The last lines of a file of JSON lines; damaged ones are left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        for line in file.read().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def standing_file(folder: RunFolder, artifact: str) -> Path:
    """The file whose presence says that an artifact is there."""
    place = folder.output(artifact)
    return place / LAST_FILE[artifact] if artifact in LAST_FILE else place


# What is missing ----------------------------------------------------------------------------------------------------


def missing(config: Config, folder: RunFolder, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that have something to do: unfinished, made from what has changed since, or after one that has."""
    shards = own_shards(config, folder)
    touched: set[str] = set()
    found = []
    for stage in stages:
        if touched & set(stage.reads) or not is_finished(config, folder, stage, shards):
            found.append(stage)
            touched |= set(stage.writes)
    return found


def is_finished(config: Config, folder: RunFolder, stage: Stage, shards: Sequence[int]) -> bool:
    """Whether a stage's artifacts are all there and as new as what they were made from."""
    if is_lent(config, folder, stage):
        return True
    if not progress_of(config, folder, stage, shards).is_complete:
        return False
    wanted = wanted_shards(config, stage, shards)
    return all(
        is_fresh(folder, path, stage) for artifact in stage.writes for path in files_of(folder, artifact, wanted)
    )


def files_of(folder: RunFolder, artifact: str, shards: Sequence[int]) -> list[Path]:
    """The file of an artifact, or a sample of its files."""
    if artifact not in PER_SHARD:
        return [standing_file(folder, artifact)]
    places = sorted({round(value) for value in np.linspace(0, len(shards) - 1, min(len(shards), SAMPLE))})
    return [folder.output(artifact) / shard_name(shards[place]) for place in places]


def is_fresh(folder: RunFolder, path: Path, stage: Stage) -> bool:
    """Whether a file's parents are still what they were; files without provenance go by time."""
    try:
        parents = read_provenance(path).parents
    except DataError:
        return _is_newer(folder, path, stage)
    for name, content in parents.items():
        parent = folder.path / name
        if not parent.exists() or parent.is_dir():
            continue  # an input of the survey, which only the stage itself can compare
        try:
            if read_provenance(parent).content != content:
                return False
        except DataError:
            continue
    return True


def _is_newer(folder: RunFolder, path: Path, stage: Stage) -> bool:
    sources = [standing_file(folder, artifact) for artifact in stage.reads]
    return all(path.stat().st_mtime >= source.stat().st_mtime for source in sources if source.is_file())
