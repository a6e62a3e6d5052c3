"""The stage: train the backbone on a run's shards, going on where it was left, and export it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcqa.artifacts import store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World, joined, pick_device, set_threads
from hpcqa.ssl import attention, weights
from hpcqa.ssl.checkpoint import Checkpoints
from hpcqa.ssl.defects import network_of
from hpcqa.ssl.feed import Cutouts, Feed
from hpcqa.ssl.journal import Journal, check_tensorboard
from hpcqa.ssl.student_teacher import Teacher
from hpcqa.ssl.trainer import Check, Trainer, Unread, fresh_state
from hpcqa.ssl.vit import VisionTransformer
from hpcqa.ssl.watch import Watch

logger = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Train and write backbone.safetensors; nothing if it is there and made from the same settings and shards.

    Raises:
        ConfigError, DataError, EnvironmentProblem: what the configuration, the shards or the launcher have wrong.
        Preempted: asked to stop; the state is saved.
    """
    from hpcqa.pixels.dataset import ShardSet  # here, so that the trainer needs no camera

    shards = sorted(folder.need("shards", "shard").glob("shard-*.h5"))
    if not shards:
        raise DataError(f"{folder.output('shards')}: holds no shards; run `hpcqa shard run={folder.path}` first.")
    calibration = folder.need("calibration", "calibrate")
    # Every rank watches a share: thousands of files looked at by each of hundreds are a storm on a file system.
    watch = Watch(shards[ranks.rank :: ranks.world_size])
    cutouts = ShardSet(shards, calibration, config)
    contents = dict(zip(shards, cutouts.contents, strict=True))
    parents = {folder.relative(path): content for path, content in contents.items()}
    parents |= store.digests(folder, [calibration])
    device = pick_device(config.ssl.device, ranks.local_rank)
    set_threads(ranks.local_world_size)
    with joined(ranks, device) as world:
        if world.share(is_current(config, folder, parents)):
            logger.info("pretrain: %s is current", folder.output("backbone"))
            return
        before = -1
        while True:
            try:
                return train(config, folder, cutouts, world, parents, watch)
            except Unread as problem:
                # Ends: every turn has got further than the one before.
                if problem.kept <= before or not _were_only_touched(watch, contents, world):
                    raise
                before = problem.kept
            # Nothing that was read before: it may be from while a file was written.
            cutouts.close()
            cutouts = world.on_each(lambda: ShardSet(shards, calibration, config))


def _were_only_touched(watch: Watch, contents: Mapping[Path, str], world: World) -> bool:
    """Whether shards were written to and all hold what they held. The ranks look at a share each, one in every turn."""
    changed, some = watch.changed(), False
    while any(world.any_of([bool(changed)])()):
        some = True
        path = changed.pop() if changed else None
        if world.said(watch.renew(path, contents[path]) if path is not None else ""):
            return False
    if some:
        logger.warning("pretrain: shards were written to and hold what they held: back to the last checkpoint")
    return some


def is_current(config: Config, folder: RunFolder, parents: dict[str, str]) -> bool:
    """Whether the run's backbone was made from these settings and parents."""
    try:
        card = weights.read_card(folder.output("backbone"))
    except DataError:
        return False
    return card.get("config_digest") == stage_digest(config, "pretrain") and card.get("parents") == parents


def train(
    config: Config,
    folder: RunFolder,
    cutouts: Cutouts,
    world: World,
    parents: dict[str, str],
    watch: Watch | None = None,
) -> None:
    """Train on cutouts from wherever, and write the backbone with its card.

    Args:
        parents: content digests of what the cutouts came from, by path.
        watch: of the files that the cutouts come from.
    """
    check_tensorboard(config.ssl.tensorboard)
    backbone = starting_network(config)
    untrained = {"config_digest": stage_digest(config, "pretrain"), "parents": parents, "seed": config.seed}
    few = too_few(cutouts)
    if few:
        logger.warning("pretrain: %s, too few to learn from; the network stays untrained", few)
    if few or config.ssl.steps == 0:
        _export(folder, world, backbone, {**untrained, "step": 0, "images": 0, "metrics": {}})
        return
    digest = stage_digest(config, "pretrain")
    config = with_few_steps(config, int((cutouts.failed == 0).sum()))
    feed = Feed(cutouts, config, rank=world.rank, world_size=world.size)
    state = fresh_state(backbone, config, feed, world)
    checkpoints = Checkpoints(
        folder.output("checkpoints") / digest[:12],
        world,
        keep=config.ssl.keep,
        identity=json.loads(json.dumps(backbone.architecture.to_json())),
    )
    checkpoints.load_latest(state)
    events = folder.output("tensorboard") if config.ssl.tensorboard else None
    journal = Journal(folder.output("metrics"), state.counters.step, events) if world.is_first else None
    try:
        check = knn_check(config, folder, cutouts, world)
        write = journal.write if journal else None
        Trainer(config, feed, state, world, checkpoints=checkpoints, write=write, check=check, watch=watch).run()
    finally:
        if journal is not None:
            journal.close()
    if config.ssl.export == "best" and state.counters.best_step not in (-1, state.counters.step):
        checkpoints.load(state, state.counters.best_step)
    card = {
        **untrained,
        "step": state.counters.step,
        "images": state.counters.images,
        "metrics": journal.latest if journal else {},
    }
    network = state.teacher.backbone()
    content = _export(folder, world, network, card)
    if world.is_first:
        attention.write(config, folder, network, content, cutouts)
    world.barrier()


def too_few(cutouts: Cutouts) -> str:
    """How little there is, in words, where no view can be learned from it; empty if there is enough."""
    num_ccds, num_exposures = int((cutouts.failed == 0).sum()), len(cutouts.exposures)
    return f"{num_exposures} exposures with {num_ccds} usable CCDs" if min(num_ccds, num_exposures) < 2 else ""


def with_few_steps(config: Config, num_ccds: int) -> Config:
    """The configuration with no more steps than look at each of `num_ccds` CCDs ssl.max_passes times."""
    ssl = config.ssl
    most = math.ceil(ssl.max_passes * num_ccds / max(1, min(ssl.batch, num_ccds)))
    if most >= ssl.steps:
        return config
    logger.info("pretrain: %d steps are %g passes over %d CCDs: enough", most, ssl.max_passes, num_ccds)
    return dataclasses.replace(config, ssl=dataclasses.replace(ssl, steps=max(1, most)))


def knn_check(config: Config, folder: RunFolder, cutouts: Cutouts, world: World) -> Check | None:
    """The check of the trainer: the first rank scores, all ranks hear; None where there are no labels."""
    from hpcqa.ssl.online import OnlineKnn  # here, so that training needs no scipy where nothing is scored

    online = OnlineKnn.of(config, folder, cutouts, world.device) if world.is_first else None
    if not world.share(online is not None):
        return None
    controls: dict[str, float] = {}

    def score(network: VisionTransformer) -> dict[str, float]:
        assert online is not None
        if not controls:
            start = network_of(config).to(world.device)
            controls.update(online.controls(start.eval()))
        return {**online.check(network), **controls}

    def check(step: int, teacher: Teacher) -> dict[str, float]:
        network = teacher.backbone()
        found = world.on_first(lambda: score(network))
        logger.info("pretrain: step %d, %s", step, ", ".join(f"{name} {ap:.3f}" for name, ap in found.items()))
        return found

    return check


def starting_network(config: Config) -> VisionTransformer:
    """The network before training: random by the run's seed, or from the weights that ssl.init_from names."""
    network = network_of(config)
    if config.ssl.init_from:
        weights.initialise(network, Path(config.ssl.init_from))
    return network


def _export(folder: RunFolder, world: World, network: VisionTransformer, card: dict[str, Any]) -> str:
    """Write the backbone by the first rank; its content digest."""
    saved = world.on_first(lambda: weights.save_backbone(folder.output("backbone"), network, card))
    return str(saved["content"])
