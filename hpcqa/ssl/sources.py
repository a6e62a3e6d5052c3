"""Where embed gets its cutouts: from stored shards, or straight from the images by way of shards that do not stay.

With `embed.source=fits` the exposures of a shard are read by the very functions of the shard stage, with their threads,
into a file in a temporary folder (TMPDIR), which goes when its embeddings are written. So the embeddings and the
measured numbers beside them are those of stored shards to the last bit. At most two such files exist at a time, or one
more than there are processes that read (ssl/readers.py). A shard that is stored all the same (see `embed.stored`:
calibrate and pretrain learn from some) is not read again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.parts import first_own_shard, part_files, shard_number, shards_of_manifest
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.pixels.failures import Tally
from hpcqa.ssl.feed import Cutouts
from hpcqa.ssl.readers import Readers, make_shard


@dataclass(frozen=True)
class Source:
    """One shard: its file, or None where it is read from the images."""

    number: int
    stored: Path | None

    @property
    def name(self) -> str:
        return shard_name(self.number)


class LocatedCutouts(Cutouts, Protocol):
    """Cutouts whose cells have a place on the CCD."""

    background_bin: np.ndarray


@dataclass(frozen=True)
class Opened:
    """A shard that is ready to be embedded.

    Attributes:
        path: its file.
        transient: whether the file goes afterwards.
        cutouts: its views.
        attributes: what its numbers are.
    """

    path: Path
    transient: bool
    cutouts: LocatedCutouts
    attributes: Mapping[str, Any]


def of_run(config: Config, folder: RunFolder) -> list[Source]:
    """The shards to embed, in order.

    Raises:
        DataError: there are none.
    """
    stored = {shard_number(path): path for path in part_files(folder, "shards")}
    if config.embed.source == "fits":
        first = first_own_shard(folder) if config.survey.update else 0
        numbers = shards_of_manifest(folder.need("manifest", "manifest"))
        return [Source(number, stored.get(number)) for number in numbers[numbers >= first].tolist()]
    if not stored and not config.survey.update:
        raise DataError(
            f"{folder.output('shards')}: holds no shards; run `hpcqa shard run={folder.path}` first, or read the "
            "images with embed.source=fits."
        )
    return [Source(number, path) for number, path in stored.items()]


def report(tallies: Sequence[Tally], config: Config) -> None:
    """Say what went wrong with what each task read from images.

    Raises:
        DataError: a larger share than shard.max_failed.
    """
    total = Tally()
    for tally in tallies:
        total.add(tally)
    if total.seen:
        from hpcqa.pixels import shards  # here, so that the networks need no camera

        shards.report(total, config)


class Opener:
    """Opens shards, and makes those that are not stored."""

    def __init__(self, config: Config, folder: RunFolder, calibration: Path, processes: int = 1) -> None:
        """Args: `processes` that read exposures, beside this one if they are several."""
        self.tally, self.processes = Tally(), processes
        self._config, self._folder, self._calibration = config, folder, calibration
        self._room = tempfile.TemporaryDirectory(prefix="hpcqa-embed-", ignore_cleanup_errors=True)
        self._known: dict[str, str] = {}
        self._readers: Readers | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._readers is not None:
            self._readers.close(at_once=kind is not None)
        self._room.cleanup()

    def parents(self, source: Source) -> dict[str, str]:
        """Content digests of what embeddings of a shard are made from, the network aside."""
        origin = source.stored or self._folder.need("manifest", "manifest")
        parents = {self._folder.relative(path): self._content(path) for path in (origin, self._calibration)}
        if source.stored is None:
            # Settings that a stored shard would answer for.
            parents["reading"] = stage_digest(self._config, "shard")
        return parents

    def _content(self, path: Path) -> str:
        if path.parent == self._folder.output("shards"):
            return store.read_provenance(path).content
        if str(path) not in self._known:
            self._known[str(path)] = store.read_provenance(path).content
        return self._known[str(path)]

    def open(self, source: Source) -> Opened:
        """A shard's cutouts, with the first of each view read."""
        from hpcqa.pixels.dataset import ShardSet  # here, so that the networks need no camera

        path = source.stored or self._make(source)
        cutouts = ShardSet([path], self._calibration, self._config)
        with store.open_arrays(path, catalog.SHARD) as shard:
            attributes = {name: shard.attributes.get(name, []) for name in ("number_names", "number_units")}
        return Opened(path, source.stored is None, cutouts, attributes)

    def _make(self, source: Source) -> Path:
        room = Path(self._room.name)
        if self.processes > 1:
            with self._lock:  # none is started for shards that are embedded already
                self._readers = self._readers or Readers(self._config, self._folder, room, self.processes)
            path, tally = self._readers.make(source.number)
        else:
            path, tally = make_shard(self._config, self._folder, source.number, room)
        with self._lock:
            self.tally.add(tally)
        return path

    def close(self, opened: Opened | None) -> None:
        """Throw a shard away that was made for this."""
        if opened is not None and opened.transient:
            opened.path.unlink(missing_ok=True)
