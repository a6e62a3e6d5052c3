"""How fast a training step is: against its bare network, against transformers, on two processes, and (CUDA) in MFU.

Every figure is measured beside its peers in this one run, taking turns, and the median is shown:

    python benchmarks/pretrain.py                        the demo's network, two cores
    python benchmarks/pretrain.py --device cuda --arch base large --batch 64

The peer is the same recipe (two global crops, local crops, DINO with Sinkhorn, an EMA teacher, AdamW) put together from
transformers' Dinov2WithRegistersModel and plain PyTorch, on the same images, sizes, numbers of crops and prototypes.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcqa.config import Config, ModelConfig, SslConfig, ViewsConfig
from hpcqa.parallel.ranks import detect
from hpcqa.parallel.torchdist import World, joined
from hpcqa.ssl import schedules, views
from hpcqa.ssl.encode import as_images, autocast
from hpcqa.ssl.feed import Feed
from hpcqa.ssl.losses import dino, sinkhorn
from hpcqa.ssl.pretrain import starting_network
from hpcqa.ssl.student_teacher import targets_of, terms_of
from hpcqa.ssl.trainer import Trainer, fresh_state
from hpcqa.ssl.vit import SIZES

PEAK_BF16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
REPEATS = 7


class Memory:
    """Random cutouts in memory."""

    def __init__(self, views_config: ViewsConfig, exposures: int = 64, ccds: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.exposures = np.arange(exposures, dtype=np.int64)
        self.expnum = np.repeat(self.exposures, ccds)
        self.ccdnum = np.tile(np.arange(1, ccds + 1, dtype=np.int32), exposures)
        self.failed = np.zeros(len(self.expnum), np.int64)
        self.number_names = ["sky", "fwhm"]
        shape = {view: getattr(views_config, view) for view in ("context", "background", "detail")}
        self.arrays = {
            view: rng.standard_normal((len(self.expnum), *size), np.float32).astype(np.float16)
            for view, size in shape.items()
        }
        self.planes = rng.standard_normal((exposures, *views_config.focal_plane), np.float32).astype(np.float16)

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), 2), np.float32)

    def batch(self, view: str, rows: np.ndarray) -> np.ndarray:
        return self.arrays[view][rows]

    def focal_plane(self, exposure_rows: np.ndarray) -> np.ndarray:
        return self.planes[exposure_rows]

    def will_need(self, view: str, rows: np.ndarray) -> None:
        """All is in memory."""


class Ours:
    """The trainer of this package."""

    def __init__(self, config: Config, world: World) -> None:
        self.feed = Feed(Memory(config.views), config, rank=world.rank, world_size=world.size)
        self.state = fresh_state(starting_network(config), config, self.feed, world)
        self.trainer = Trainer(config, self.feed, self.state, world)
        self.config, self.world, self.number, self.waited = config, world, 0, 0.0
        self.stream = self.feed.stream(0, 10**9)
        self._fixed: Any = None

    def step(self) -> None:
        began = time.perf_counter()
        images = next(self.stream)
        self.waited += time.perf_counter() - began
        assert self.trainer.step(images) is not None

    def bare(self) -> None:
        """Forward and backward of the same networks on crops that are there already, and nothing else."""
        if self._fixed is None:
            piece = self.feed.load(0).pieces[0]
            self._fixed = {view: self.trainer.tasks.of(view, part, 0) for view, part in piece.items()}
        point = schedules.at(self.config.ssl, 0)
        with autocast(self.world.device, self.config.ssl.precision):
            targets = targets_of(self.state.teacher, self._fixed, point, self.world)
            answers = self.trainer.runner(self._fixed)
        terms = terms_of(answers, targets, self._fixed, self.config.ssl, self.world)
        torch.stack(list(terms.values())).sum().backward()

    @property
    def images(self) -> int:
        return sum(self.feed.counts.values())


class Peer:
    """DINO from transformers' network and plain PyTorch, cropping image by image as a DataLoader's worker would."""

    def __init__(self, config: Config, device: torch.device) -> None:
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        ssl, dim, depth, heads = config.ssl, *SIZES[config.model.arch][:3]
        side = config.views.detail[0]
        settings = Dinov2WithRegistersConfig(
            hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, image_size=side, num_channels=1,
            patch_size=config.model.patch, num_register_tokens=config.model.registers,
        )  # fmt: skip
        head = nn.Sequential(
            nn.Linear(dim, ssl.head_hidden), nn.GELU(), nn.Linear(ssl.head_hidden, ssl.head_hidden), nn.GELU(),
            nn.Linear(ssl.head_hidden, ssl.head_bottleneck), nn.Linear(ssl.head_bottleneck, ssl.prototypes, bias=False),
        )  # fmt: skip
        self.student = nn.ModuleDict({"body": Dinov2WithRegistersModel(settings), "head": head}).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4)
        self.config, self.device, self.memory = config, device, Memory(config.views)
        self.world = World(detect({}), device)
        self.rng = np.random.default_rng(1)

    def _crop(self, image: Tensor, share: float) -> Tensor:
        size = round(share * image.shape[-1] / self.config.model.patch) * self.config.model.patch
        top, left = (int(self.rng.integers(0, image.shape[-1] - size + 1)) for _ in range(2))
        window = image[:, top : top + size, left : left + size]
        window = window.flip(2) if self.rng.random() < 0.5 else window
        return window + 0.05 * torch.randn_like(window)

    def _scores(self, network: nn.ModuleDict, crops: Tensor) -> Tensor:
        scores: Tensor = network["head"](network["body"](crops).last_hidden_state[:, 0])
        return scores

    def step(self) -> None:
        ssl = self.config.ssl
        rows = self.rng.integers(0, len(self.memory.expnum), ssl.batch)
        images = as_images(self.memory.batch("detail", rows), self.device)
        large = torch.stack([self._crop(image, ssl.global_crop) for _ in range(2) for image in images])
        small = [torch.stack([self._crop(image, ssl.local_crop) for image in images]) for _ in range(ssl.local_crops)]
        with autocast(self.device, ssl.precision):
            with torch.no_grad():
                taught = self._scores(self.teacher, large)
            scores = list(self._scores(self.student, large).chunk(2))
            if small:
                scores += list(self._scores(self.student, torch.cat(small)).chunk(len(small)))
        targets = list(sinkhorn(taught, ssl.teacher_temperature, self.world).chunk(2))
        loss = dino(scores, targets, ssl.temperature, 1 / ssl.batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(0.99).add_(theirs, alpha=0.01)


def configuration(arch: str, batch: int, device: str, precision: str, *, recipe: str) -> Config:
    """The demo's whole recipe, or DINO alone on the detail view ("dino")."""
    model = ModelConfig(arch=arch, stem="linear" if recipe == "dino" else "conv")
    ssl = SslConfig(steps=10**6, batch=batch, device=device, precision=precision, knn_every=0, log_every=10**6)
    if recipe == "dino":
        ssl = dataclasses.replace(
            ssl, views=["detail"], mix=[1.0], crop_views=["detail"], defect_weight=0.0, number_weight=0.0,
            ibot_weight=0.0, koleo_weight=0.0,
        )  # fmt: skip
    return dataclasses.replace(Config(), model=model, ssl=ssl)


def taking_turns(device: torch.device, *steps: Callable[[], None]) -> list[float]:
    """Median seconds of each, measured in turns after two rounds of warming up."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(REPEATS + 2):
        for step, spent in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 2:
                spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in times]


def flops(arch: str, config: Config) -> float:
    """Multiply-adds times two of one DINO image: student forward and backward (3), teacher forward (1)."""
    dim, depth, _, _ = SIZES[arch]
    model, ssl = config.model, config.ssl
    shape = starting_shape(config)

    def forward(share: float) -> float:
        rows, cols = views.crop_size(shape, share)
        tokens = rows * cols // model.patch**2 + 1 + model.registers
        return depth * tokens * (24 * dim**2 + 4 * tokens * dim)

    large, small = forward(ssl.global_crop), forward(ssl.local_crop)
    return 3 * (2 * large + ssl.local_crops * small) + 2 * large


def starting_shape(config: Config) -> Any:
    return starting_network(config).architecture.stems["detail"]


def two_processes(arguments: argparse.Namespace) -> tuple[float, float]:
    """Images a second of one process with one thread, and of two with one thread each on the same batch a rank."""
    rates = []
    for size in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, __file__, "--rank-of", str(size), "--batch", str(arguments.batch)]
        processes = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(size)
        ]
        rates.append(float(processes[0].communicate()[0].split()[-1]))
        for process in processes[1:]:
            process.wait()
    return rates[0], rates[1]


def one_of_several(size: int, batch: int) -> None:
    torch.set_num_threads(1)
    with joined(detect(os.environ), torch.device("cpu")) as world:
        ours = Ours(configuration("demo", batch * size, "cpu", "fp32", recipe="demo"), world)
        (seconds,) = taking_turns(world.device, ours.step)
        print(ours.images / seconds)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    world = World(detect({}), device)
    precision = "bf16" if device.type == "cuda" else "fp32"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": []}
    for arch in arguments.arch:
        for recipe in ("demo", "dino"):
            config = configuration(arch, arguments.batch, arguments.device, precision, recipe=recipe)
            ours = Ours(config, world)
            row: dict[str, Any] = {"arch": arch, "recipe": recipe, "batch": arguments.batch}
            if recipe == "dino":
                peer = Peer(config, device)
                step, bare, theirs = taking_turns(device, ours.step, ours.bare, peer.step)
                row["transformers_ms_an_image"] = 1e3 * theirs / arguments.batch
                row["times_transformers"] = theirs / step
                peak = next((value for key, value in PEAK_BF16.items() if key in name), None)
                row["mfu"] = flops(arch, config) * arguments.batch / step / peak if peak else None
            else:
                step, bare = taking_turns(device, ours.step, ours.bare)
            row |= {
                "ms_an_image": 1e3 * step / ours.images,
                "images_per_s": ours.images / step,
                "step_over_bare": step / bare,
                "data_wait_share": ours.waited / (step * (REPEATS + 2)),
            }
            if device.type == "cuda":
                row["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
                torch.cuda.reset_peak_memory_stats(device)
            found["rows"].append(row)
    if device.type == "cpu":
        one, two = two_processes(arguments)
        found["two_processes_efficiency"] = two / (2 * one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", nargs="+", default=["demo"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank-of", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        one_of_several(arguments.rank_of, arguments.batch)
        return
    print(json.dumps(measure(arguments), indent=1))


if __name__ == "__main__":
    main()
