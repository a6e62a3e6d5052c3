"""The embed stage: each shard once through the network, one output file for each, and the control beside it.

A file's content depends on its shard, the calibration and the network alone, so it does not matter which rank makes it.
Reading the next batch overlaps with the networks' work on this one, and so do writing the last shard's file and getting
the next shard ready: with `embed.source=fits` that means to read its exposures, into a shard that is thrown away
afterwards (ssl/sources.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.parts import part_files
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.observe import track
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import pick_device, set_threads
from hpcqa.ssl import readers, sources, weights
from hpcqa.ssl.coarse import GRID, coarse_maps, region_edges
from hpcqa.ssl.encode import as_images, defect_names, encode_with_answers
from hpcqa.ssl.feed import Cutouts
from hpcqa.ssl.vit import VisionTransformer

logger = logging.getLogger(__name__)

CCD_VIEWS = ("context", "background", "detail")
LOOKED_AT = "background"
TRAINED, UNTRAINED = "embeddings", "embeddings-untrained"
Columns = dict[str, np.ndarray]
Look = Callable[[np.ndarray, np.ndarray], None]  # rows, images of LOOKED_AT


@dataclass(frozen=True)
class Network:
    """A network and the folder that its embeddings go to; `identity` stands for its weights in provenance."""

    artifact: str
    model: VisionTransformer
    identity: str


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Embed every shard whose embeddings are not current.

    Raises:
        DataError: no shards, or a damaged shard, calibration or backbone.
    """
    work = sources.of_run(config, folder)
    calibration = folder.need("calibration", "calibrate")
    device = pick_device(config.embed.device, ranks.local_rank)
    set_threads(ranks.local_world_size)
    networks = load_networks(folder.need("backbone", "pretrain"), device, control=config.embed.control)
    if ranks.is_first:
        names = {source.name for source in work}
        for network in networks:
            store.remove_unfinished(folder.output(network.artifact), "embed")  # only one embed runs in a folder
            remove_strangers(folder.output(network.artifact), names)
            refuse_other_network(folder, network, names)
    mpi.barrier(ranks)  # nobody writes while the first one tidies up
    digest = stage_digest(config, "embed")
    from_images = sum(source.stored is None for source in work)
    processes = readers.worth(config, from_images // ranks.world_size)
    with sources.Opener(config, folder, calibration, processes) as opener:
        mine = mpi.hand_out(work, ranks)
        missing = _missing(mine, opener, folder, networks, digest, update=config.survey.update)
        jobs = track(opened_ahead(missing, opener), "embed", total=len(work), unit="shards", shown=ranks.is_first)
        done = embed_jobs(config, folder, jobs, opener, device, digest)
        tally = opener.tally
    counts = mpi.gather((done, tally), ranks)
    if counts is not None:
        written = sum(count for count, _ in counts)
        logger.info("embed: %d files written, %d were current", written, len(networks) * len(work) - written)
        sources.report([found for _, found in counts], config)


@dataclass(frozen=True)
class Job:
    """A shard, and the networks whose embeddings of it are missing."""

    source: sources.Source
    networks: tuple[Network, ...]
    parents: Mapping[str, str]
    opened: sources.Opened | None = None


def _missing(
    mine: Iterable[sources.Source],
    opener: sources.Opener,
    folder: RunFolder,
    networks: Sequence[Network],
    digest: str,
    *,
    update: bool,
) -> Iterator[Job]:
    for source in mine:
        shared = opener.parents(source)
        left = []
        for network in networks:
            parents = shared | {"network": network.identity}
            output = folder.output(network.artifact) / source.name
            current = store.is_current(output, catalog.EMBEDDING, config_digest=digest, parents=parents)
            if not (current or (update and is_embedded(folder, network.artifact, source.name, digest, parents))):
                left.append(network)
        if left:
            yield Job(source, tuple(left), shared)


def opened_ahead(jobs: Iterator[Job], opener: sources.Opener) -> Iterator[Job]:
    """The jobs with their cutouts, as many as read at once being opened while one is in use."""
    with ThreadPoolExecutor(opener.processes) as pool:
        waiting: list[tuple[Job, Future[sources.Opened]]] = []
        for job in jobs:
            waiting.append((job, pool.submit(opener.open, job.source)))
            if len(waiting) > opener.processes:
                first, future = waiting.pop(0)
                yield dataclasses.replace(first, opened=future.result())
        for last, future in waiting:
            yield dataclasses.replace(last, opened=future.result())


def embed_jobs(
    config: Config, folder: RunFolder, jobs: Iterable[Job], opener: sources.Opener, device: torch.device, digest: str
) -> int:
    """Embed opened shards and write their files, the last one's while the next one is worked on; how many files."""
    done = 0
    with ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for job in jobs:
            found = embed_job(config, job, device)
            opener.close(job.opened)
            if writing is not None:
                writing.result()
            writing = pool.submit(write_embeddings, config, folder, job, found, digest)
            done += len(job.networks)
        if writing is not None:
            writing.result()
    return done


def load_networks(backbone: Path, device: torch.device, *, control: bool) -> list[Network]:
    """The trained network, and the one it started as."""
    model, card = weights.load_backbone(backbone)
    networks = [Network(TRAINED, model.to(device), str(card["content"]))]
    if control:
        start = json.dumps([card["architecture"], card.get("seed", 1)], sort_keys=True)
        identity = "untrained:" + hashlib.sha256(start.encode()).hexdigest()
        networks.append(Network(UNTRAINED, weights.untrained(card).to(device), identity))
    return networks


def remove_strangers(folder: Path, names: Container[str]) -> None:
    """Remove embeddings of shards that are no more."""
    for path in folder.glob("shard-*.h5"):
        if path.name not in names:
            logger.info("embed: removing %s, whose shard is gone", path)
            path.unlink(missing_ok=True)


def refuse_other_network(folder: RunFolder, network: Network, shards: set[str]) -> None:
    """Embeddings of an earlier run whose shards are gone can't be made anew: they must be of this network.

    Raises:
        DataError: one is of another.
    """
    for path in part_files(folder, network.artifact):
        if path.name not in shards:
            with store.open_arrays(path, catalog.EMBEDDING) as arrays:
                found = str(arrays.attributes.get("network", ""))
            if found != network.identity:
                raise DataError(
                    f"{path}: was made by another network, and its shard is no longer there; use the backbone of that "
                    "run, or leave survey.update out to read every image again."
                )


def is_embedded(folder: RunFolder, artifact: str, name: str, digest: str, parents: Mapping[str, str]) -> bool:
    """Whether this run, or one that it is based on, has these embeddings."""
    places = [folder.output(artifact), *(base / NAMES[artifact] for base in folder.bases)]
    nearest = next((place / name for place in places if (place / name).exists()), None)
    return nearest is not None and store.is_current(nearest, catalog.EMBEDDING, config_digest=digest, parents=parents)


def embed_job(config: Config, job: Job, device: torch.device) -> list[Columns]:
    """The columns of EMBEDDING for an opened shard, by each of the job's networks."""
    assert job.opened is not None
    cutouts = job.opened.cutouts
    maps = np.full((len(cutouts.expnum), *GRID), np.nan, np.float16)

    def look(rows: np.ndarray, images: np.ndarray) -> None:
        maps[rows] = coarse_maps(images, config.views.background_softening)

    models = [network.model for network in job.networks]
    found = embed_by_each(cutouts, models, device, config.embed.batch, config.embed.precision, look)
    where = {"where": maps, "background_bin": cutouts.background_bin}
    return [
        columns | (where if network.artifact == TRAINED else {})
        for network, columns in zip(job.networks, found, strict=True)
    ]


def write_embeddings(config: Config, folder: RunFolder, job: Job, found: Sequence[Columns], digest: str) -> None:
    """Write the file of each of a job's networks."""
    assert job.opened is not None
    edges = [region_edges(config.views.background[axis], GRID[axis]).tolist() for axis in (0, 1)]
    for network, columns in zip(job.networks, found, strict=True):
        attributes = dict(job.opened.attributes) | _names(network.model)
        attributes |= {"failure_words": _failure_words(), "network": network.identity, "where_edges": edges}
        parents = {**job.parents, "network": network.identity}
        provenance = Provenance(digest, parents, instrument=config.instrument.name)
        output = folder.output(network.artifact) / job.source.name
        store.write_arrays(output, catalog.EMBEDDING, columns, provenance, attributes)


def _failure_words() -> list[str]:
    from hpcqa.pixels.failures import FAILURES

    return [words for _, words in FAILURES]


def _names(model: VisionTransformer) -> dict[str, list[str]]:
    of_ccds = [name for view in CCD_VIEWS for name in defect_names(model.architecture, view)]
    return {"defect_names": of_ccds, "exposure_defect_names": defect_names(model.architecture, "focal_plane")}


def embed(cutouts: Cutouts, model: VisionTransformer, device: torch.device, batch: int, precision: str) -> Columns:
    """`embed_by_each` of one network."""
    return embed_by_each(cutouts, [model], device, batch, precision)[0]


def embed_by_each(
    cutouts: Cutouts,
    models: Sequence[VisionTransformer],
    device: torch.device,
    batch: int,
    precision: str,
    look: Look | None = None,
) -> list[Columns]:
    """The columns of EMBEDDING for some shards, by each network; every image is read once.

    Only the views that a network has learnt are embedded.

    Args:
        cutouts: rows in the order of the output; CCDs without views get NaN.
        batch: images in one forward pass.
        look: is shown the images of the background as well, by the thread that reads them.
    """
    seen = {view for model in models for view in model.architecture.stems} | ({LOOKED_AT} if look else set())
    rows = {view: np.flatnonzero(cutouts.failed == 0) for view in CCD_VIEWS if view in seen}
    rows |= {"focal_plane": np.arange(len(cutouts.exposures))} if "focal_plane" in seen else {}
    batches = [(view, own[start : start + batch]) for view, own in rows.items() for start in range(0, len(own), batch)]
    # Answers stay on the device until all is asked: fetching each would have the device wait for the host.
    found: list[dict[str, list[tuple[Tensor, Tensor]]]] = [
        {view: [] for view in rows if view in model.architecture.stems} for model in models
    ]
    for view, values in _ahead(cutouts, batches, look):
        images = as_images(values, device)
        for model, answers in zip(models, found, strict=True):
            if view in answers:
                answers[view].append(encode_with_answers(model, images, view, precision))
    return [_columns(cutouts, model, rows, answers) for model, answers in zip(models, found, strict=True)]


def _columns(
    cutouts: Cutouts,
    model: VisionTransformer,
    rows: Mapping[str, np.ndarray],
    found: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
) -> Columns:
    num = len(cutouts.expnum)
    vectors, answers = {}, {}
    for view, pieces in found.items():
        # One of no images says how wide the others are.
        width, kinds = 3 * model.architecture.dim, len(defect_names(model.architecture, view))
        nothing = torch.zeros(0, width), torch.zeros(0, kinds)
        vectors[view], answers[view] = (
            torch.cat([piece.cpu() for piece in of_kind]).numpy() for of_kind in zip(nothing, *pieces, strict=True)
        )
    columns = {
        "expnum": cutouts.expnum,
        "ccdnum": cutouts.ccdnum,
        "failed": cutouts.failed,
        "numbers": cutouts.numbers(np.arange(num)),
        "exposure": cutouts.exposures,
    }
    of_ccds = [view for view in CCD_VIEWS if view in found]
    columns |= {view: _spread(vectors[view], rows[view], num) for view in of_ccds}
    if of_ccds:
        columns["defects"] = np.concatenate([_spread(answers[view], rows[view], num) for view in of_ccds], axis=1)
    if "focal_plane" in found:
        columns |= {"focal_plane": vectors["focal_plane"], "exposure_defects": answers["focal_plane"]}
    return columns


def _ahead(
    cutouts: Cutouts, batches: Sequence[tuple[str, np.ndarray]], look: Look | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The views and images of batches, read one ahead of the one in use."""

    def load(view: str, rows: np.ndarray) -> tuple[str, np.ndarray]:
        images = cutouts.focal_plane(rows) if view == "focal_plane" else cutouts.batch(view, rows)
        if look is not None and view == LOOKED_AT:
            look(rows, images)
        return view, images

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, *one) for one in batches[:1]]
        for following in [*batches[1:], None]:
            if not waiting:
                return
            values = waiting.pop().result()
            if following is not None:
                waiting.append(pool.submit(load, *following))
            yield values


def _spread(values: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """Values of some rows among `length` rows, NaN elsewhere."""
    spread = np.full((length, values.shape[1]), np.nan, np.float32)
    spread[rows] = values
    return spread
