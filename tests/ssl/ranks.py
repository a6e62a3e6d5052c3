"""Run as one process of several (ranks.py WHAT FOLDER): trains on fake cutouts, or measures losses across ranks."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from pathlib import Path

import torch

from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import DataError
from hpcqa.parallel import preemption
from hpcqa.parallel.preemption import Preempted
from hpcqa.parallel.ranks import detect
from hpcqa.parallel.torchdist import World, joined
from hpcqa.ssl import losses, pretrain
from hpcqa.ssl.watch import Watch
from tests.ssl.fakes import FakeCutouts, small_config

# Four ranks with two pieces each have one image of a context view in each piece: KoLeo looks over all ranks.
SETTINGS = {"steps": 3, "batch": 16, "mix": [0.5, 1.0, 0.5, 0.5], "positives": "exposure", "log_every": 1}
TWO_PIECES = {"accumulate": 2, "centring": "softmax", "clip": 0.3, "shared_head": False}


def train(world: World, folder: Path, **more: object) -> None:
    config = small_config(**{**SETTINGS, **more})
    model = dataclasses.replace(config.model, drop_path=0.3, activation_checkpointing=more.get("parallel") == "fsdp")
    pretrain.train(dataclasses.replace(config, model=model), RunFolder(folder), FakeCutouts(), world, {})


def train_until_stopped(world: World, folder: Path, **more: object) -> None:
    """Stop after a step, because one rank alone is asked to."""
    requested, preemption.requested = preemption.requested, lambda: world.rank == 1
    try:
        train(world, folder, **more)
    except Preempted:
        (folder / f"preempted-{world.rank}").touch()
    finally:
        preemption.requested = requested


def train_on_what_one_cannot_read(world: World, folder: Path) -> None:
    """One rank alone meets a damaged shard, or sees that a file has changed: all say the same."""
    cutouts = FakeCutouts()
    if world.rank == 1:
        cutouts.damaged, cutouts.sound_reads = set(range(len(cutouts.expnum))), 8
    shard = folder / f"shard-{world.rank}.h5"
    folder.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(b"1234")
    world.barrier()
    watch = Watch([folder / f"shard-{rank}.h5" for rank in range(world.size)])
    world.barrier()
    if world.rank == 1:
        shard.write_bytes(b"123")
    world.barrier()
    for name, read, watched in (("unreadable", cutouts, None), ("changed", FakeCutouts(), watch)):
        try:
            pretrain.train(small_config(**SETTINGS), RunFolder(folder / name), read, world, {}, watched)
        except DataError as problem:
            (folder / f"{name}-{world.rank}").write_text(str(problem))


def measure(world: World, folder: Path) -> None:
    """Losses and gradients of two unevenly split groups of features, from all ranks."""
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randn(num, 5, generator=generator) for num in (7, 5)]
    edges = {1: ((0, 7), (0, 5)), 2: ((0, 2, 7), (0, 4, 5))}[world.size]
    mine = [
        one[own[world.rank] : own[world.rank + 1]].clone().requires_grad_()
        for one, own in zip(whole, edges, strict=True)
    ]
    of_ranks = [[end - begin for begin, end in itertools.pairwise(own)] for own in edges]
    gathered = world.gather(mine, of_ranks)()
    spreads = [
        losses.koleo(own, *found, world.size / len(one)) for own, found, one in zip(mine, gathered, whole, strict=True)
    ]
    torch.stack(spreads).sum().backward()
    targets = losses.sinkhorn(mine, 0.1, world)
    at_once = [
        rows[start : start + len(own)]
        for rows, (_, start), own in zip(
            losses.sinkhorn([rows for rows, _ in gathered], 0.1, world.alone()), gathered, mine, strict=True
        )
    ]
    centre = losses.moved_centre(torch.zeros(5), mine[0], world)
    totals = [total / world.size for total in world.sum(*(loss.detach() for loss in spreads))]
    gradients = [one.grad / world.size for one in mine if one.grad is not None]
    rows = [found for found, _ in world.gather([*gradients, *targets, *at_once], [*of_ranks, *of_ranks, *of_ranks])()]
    flags = world.any_of([world.rank == world.size - 1, False])()
    if world.is_first:
        found = {"koleo": torch.stack(totals), "gradient": torch.cat(rows[:2]), "targets": torch.cat(rows[2:4]),
                 "at_once": torch.cat(rows[4:]), "centre": centre, "flags": flags}  # fmt: skip
        torch.save(found, folder / f"measured-{world.size}.pt")


def everything(world: World, folder: Path) -> None:
    """All that two ranks are to do, whole and sharded: starting processes is what takes time."""
    measure(world, folder)
    train(world, folder / "trained")
    train(world, folder / "sharded", parallel="fsdp", clip=0.3)
    train_until_stopped(world, folder / "stopped")
    train_until_stopped(world, folder / "stopped-sharded", parallel="fsdp", clip=0.3)
    train_on_what_one_cannot_read(world, folder / "damaged")


def of_four(world: World, folder: Path) -> None:
    """Four ranks, two pieces each; and going on, sharded, from what two whole ranks left."""
    train(world, folder / "trained", **TWO_PIECES)
    train(world, folder / "crops-alone", defect_weight=0.0)
    train(world, folder / "stopped", parallel="fsdp")


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(detect(os.environ), torch.device("cpu")) as world:
        if what == "forever":
            train(world, folder, steps=100000, checkpoint_every=1)
        else:
            {"everything": everything, "four": of_four}[what](world, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
