"""Run as one process of several (ranks.py WHAT FOLDER): trains on fake cutouts, or measures losses across ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hpcqa.artifacts.folder import RunFolder
from hpcqa.parallel import preemption
from hpcqa.parallel.preemption import Preempted
from hpcqa.parallel.ranks import detect
from hpcqa.parallel.torchdist import World, joined
from hpcqa.ssl import losses, pretrain
from tests.ssl.fakes import FakeCutouts, small_config

SETTINGS = {"steps": 3, "batch": 16, "positives": "exposure", "log_every": 1}


def train(world: World, folder: Path, **more: object) -> None:
    pretrain.train(small_config(**{**SETTINGS, **more}), RunFolder(folder), FakeCutouts(), world, {})


def measure(world: World, folder: Path) -> None:
    """Losses and gradients of unevenly split features, from all ranks."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(7, 5, generator=generator)
    edges = [0, 7] if world.size == 1 else [0, 2, 7]
    mine = whole[edges[world.rank] : edges[world.rank + 1]].clone().requires_grad_()
    share = world.size / 7
    loss = losses.koleo(mine, world, share)
    loss.backward()
    targets = losses.sinkhorn(mine, 0.1, world)
    centre = losses.moved_centre(torch.zeros(5), mine, world)
    total = world.sum(loss.detach()) / world.size
    assert mine.grad is not None
    rows = [world.gather(piece.detach())[0] for piece in (mine.grad / world.size, targets)]
    flags = world.any_of([world.rank == world.size - 1, False])
    if world.is_first:
        torch.save({"koleo": total, "gradient": rows[0], "targets": rows[1], "centre": centre, "flags": flags},
                   folder / f"measured-{world.size}.pt")  # fmt: skip


def everything(world: World, folder: Path) -> None:
    """Measure, train, and stop because one rank alone is asked to: starting processes is what takes time."""
    measure(world, folder)
    train(world, folder / "trained")
    preemption.requested = lambda: world.rank == 1
    try:
        train(world, folder / "stopped")
    except Preempted:
        (folder / f"preempted-{world.rank}").touch()


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(detect(os.environ), torch.device("cpu")) as world:
        if what == "forever":
            train(world, folder, steps=100000, checkpoint_every=1)
        else:
            everything(world, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
