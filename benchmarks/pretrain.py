"""How fast a training step is: against its bare network, against transformers, on two processes, and in MFU.

Every figure is measured beside its peers in this one run. They take turns, in one order and then in the other, and what
is shown is the median over the rounds of each round's ratio, with the quartiles between which half of the rounds lie:

    python benchmarks/pretrain.py                                            the demo's network, two cores
    python benchmarks/pretrain.py --device cuda --arch base large --json FILE    DECam's sizes, bf16

- `step_over_bare`: a whole step over the forward and backward of the same networks on crops that are there already.
- `data_wait_share`: what a step waits for its images when steps follow each other, as in training; from memory, or from
  the shards of `--run FOLDER`.
- `times_transformers`: the same recipe (two global crops, local crops, DINO with Sinkhorn, an EMA teacher, AdamW) put
  together from transformers' Dinov2WithRegistersModel and plain PyTorch, on the same images, sizes and numbers of
  crops and prototypes, over ours; `times_transformers_without_crops` leaves out its cropping, not ours.
- `mfu`: the arithmetic that the recipe asks for (hpcqa/ssl/flops.py) over the card's peak; `mfu_of_matmul`: over what a
  large matrix product reaches here.
- two gloo processes of one thread each: `efficiency` is images a second of both over twice those of one that has the
  machine to itself. Two processes that never talk, at the same time, share caches, memory and whoever else is on the
  host: what they reach of twice one is `two_apart` (the machine's ceiling), and the rest, `efficiency_over_apart`, is
  communication and waiting for whichever is slower just then; without the waiting, over the slower of the two apart in
  every round, it is `efficiency_over_slower`.

Needs torch, numpy and transformers (and `--run` h5py, pyarrow and numba): no camera's, no launcher's packages. On a
machine that others use too, `--cpu-time` counts the processor's time instead of the clock's, which means something only
with OMP_NUM_THREADS=1: threads that wait for each other are busy too.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcqa.config import Config, ModelConfig, SslConfig, ViewsConfig
from hpcqa.launch.costs import processor_name
from hpcqa.parallel.ranks import detect
from hpcqa.parallel.torchdist import World, joined
from hpcqa.ssl import flops, schedules
from hpcqa.ssl.defects import network_of
from hpcqa.ssl.encode import as_images, autocast
from hpcqa.ssl.feed import Cutouts, Feed
from hpcqa.ssl.losses import sinkhorn
from hpcqa.ssl.student_teacher import outcome_of
from hpcqa.ssl.trainer import Trainer, fresh_state
from hpcqa.ssl.vit import SIZES

PEAK_BF16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
WARMING, CONSECUTIVE = 2, 8
RECIPES = {"whole": "the whole recipe", "dino": "DINO alone"}
AIMS = {
    "step_over_bare": ("at most", 1.15),
    "data_wait_share": ("at most", 0.05),
    "times_transformers": ("at least", 1.0),
    "mfu": ("at least", 0.45),
    "efficiency": ("at least", 0.90),
    "efficiency_over_apart": ("at least", 0.90),
}
# conf/instrument/decam.yaml, which only Hydra reads.
DECAM = ViewsConfig(context=[512, 256], background=[256, 128], detail=[256, 256], focal_plane=[224, 224])


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

    def __init__(self, config: Config, world: World, cutouts: Cutouts) -> None:
        self.feed = Feed(cutouts, config, rank=world.rank, world_size=world.size)
        self.state = fresh_state(network_of(config), config, self.feed, world)
        self.trainer = Trainer(config, self.feed, self.state, world)
        self.config, self.world, self.waited = config, world, 0.0
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
        runner, teacher = self.trainer.runner, self.state.teacher
        found = outcome_of(runner, teacher, self._fixed, point, self.config.ssl, self.world)
        torch.stack(list(found.terms.values())).sum().backward()

    @property
    def images(self) -> int:
        return sum(self.feed.counts.values())


class Peer:
    """DINO from transformers' network and plain PyTorch, cropping image by image as a DataLoader's worker would."""

    def __init__(self, config: Config, device: torch.device, cutouts: Cutouts) -> None:
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
        self.config, self.device, self.cutouts = config, device, cutouts
        self._fixed: tuple[Tensor, list[Tensor]] | None = None
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
        self._train(*self._crops())

    def step_without_crops(self) -> None:
        """A step on crops that are there already."""
        self._fixed = self._fixed or self._crops()
        self._train(*self._fixed)

    def _crops(self) -> tuple[Tensor, list[Tensor]]:
        ssl = self.config.ssl
        rows = np.sort(self.rng.choice(len(self.cutouts.expnum), ssl.batch, replace=False))
        images = as_images(self.cutouts.batch("detail", rows), self.device)
        large = torch.stack([self._crop(image, ssl.global_crop) for _ in range(2) for image in images])
        small = [torch.stack([self._crop(image, ssl.local_crop) for image in images]) for _ in range(ssl.local_crops)]
        return large, small

    @staticmethod
    def _loss(student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
        """Caron et al. 2021 (arXiv:2104.14294), algorithm 1: every pair of different crops."""
        terms = [
            -(targets * (scores.float() / temperature).log_softmax(-1)).sum(-1).mean()
            for t, targets in enumerate(teacher)
            for s, scores in enumerate(student)
            if s != t
        ]
        return torch.stack(terms).mean()

    def _train(self, large: Tensor, small: list[Tensor]) -> None:
        ssl = self.config.ssl
        with autocast(self.device, ssl.precision):
            with torch.no_grad():
                taught = self._scores(self.teacher, large)
            scores = list(self._scores(self.student, large).chunk(2))
            if small:
                scores += list(self._scores(self.student, torch.cat(small)).chunk(len(small)))
        (balanced,) = sinkhorn([taught], ssl.teacher_temperature, self.world)
        loss = self._loss(scores, list(balanced.chunk(2)), ssl.temperature)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(0.99).add_(theirs, alpha=0.01)


def configuration(arch: str, batch: int, device: str, precision: str, *, recipe: str, compiled: bool = False) -> Config:
    """The whole recipe, or DINO alone on the detail view ("dino"); large sizes see DECam's views, with long heads."""
    small = arch in ("demo", "tiny")
    model = ModelConfig(arch=arch, stem="conv" if small and recipe != "dino" else "linear", compile=compiled)
    ssl = SslConfig(steps=10**6, batch=batch, device=device, precision=precision, knn_every=0, log_every=10**6)
    config = dataclasses.replace(Config(), model=model, ssl=ssl)
    if not small:
        model = dataclasses.replace(model, patch_background=8, patch_focal_plane=16, layer_scale=1e-5)
        ssl = dataclasses.replace(
            ssl, prototypes=65536, head_hidden=2048, head_bottleneck=256, local_crops=8,
            shared_head=False,
        )  # fmt: skip
        config = dataclasses.replace(config, model=model, views=DECAM)
    if recipe == "dino":
        ssl = dataclasses.replace(
            ssl, views=["detail"], mix=[1.0], crop_views=["detail"], defect_weight=0.0, number_weight=0.0,
            ibot_weight=0.0, koleo_weight=0.0,
        )  # fmt: skip
    return dataclasses.replace(config, ssl=ssl)


class Clock:
    """Seconds of work: of the clock, or (on a machine that others use too) of this process on the processor."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device, self.now = device, time.process_time if cpu_time else time.perf_counter

    def time(self, work: Callable[[], None]) -> float:
        began = self.now()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.now() - began

    def taking_turns(self, *steps: Callable[[], None], rounds: int) -> list[list[float]]:
        """Seconds of each in every round, in one order and then in the other, after rounds of warming up."""
        spent: list[list[float]] = [[] for _ in steps]
        for number in range(WARMING + rounds):
            turns = list(enumerate(steps))
            for place, step in turns if number % 2 else reversed(turns):
                spent[place].append(self.time(step))
        return [seconds[WARMING:] for seconds in spent]


def figure(values: Sequence[float]) -> dict[str, float]:
    """The median of some rounds, and the quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Round by round."""
    return figure([a / b for a, b in zip(above, below, strict=True)])


def waiting_share(ours: Ours, clock: Clock) -> float:
    """The share of the clock's time that steps, one after the other, wait for their images."""
    ours.step()
    ours.waited, began = 0.0, time.perf_counter()
    for _ in range(CONSECUTIVE):
        ours.step()
    if clock.device.type == "cuda":
        torch.cuda.synchronize(clock.device)
    return ours.waited / (time.perf_counter() - began)


def images_of(config: Config, run: Path | None) -> Cutouts:
    """Random images in memory, or a run's shards."""
    if run is None:
        return Memory(config.views)
    from hpcqa.pixels.dataset import ShardSet

    return ShardSet(sorted((run / "shards").glob("shard-*.h5")), run / "calibration.h5", config)


def two_processes(batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """One process, two that never talk, and two that train together, of one thread each, in turns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--as-rank", "--batch", str(batch), "--rounds", str(rounds)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    one = found[0]["one"]
    together = np.mean([rank["together"] for rank in found], axis=0)
    both_apart = [rank["apart"] for rank in found]
    apart = np.mean(both_apart, axis=0)
    images = found[0]["images"]
    return {
        "images_per_s_of_one": figure([images / seconds for seconds in one]),
        "two_apart": ratio(one, apart),
        "efficiency": ratio(one, together),
        "efficiency_over_apart": ratio(apart, together),
        "efficiency_over_slower": ratio(np.max(both_apart, axis=0), together),
    }


def as_rank(batch: int, rounds: int) -> None:
    """One of two processes: in every round the first steps alone, then each by itself, then both together."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    clock = Clock(cpu, False)
    with joined(detect(os.environ), cpu) as world:
        alone, together = (
            Ours(config, among, Memory(config.views))
            for among, config in (
                (World(detect({}), cpu), configuration("demo", batch, "cpu", "fp32", recipe="whole")),
                (world, configuration("demo", world.size * batch, "cpu", "fp32", recipe="whole")),
            )
        )

        def first_alone() -> None:
            if world.is_first:
                alone.step()

        seconds: dict[str, list[float]] = {"one": [], "apart": [], "together": []}
        for _ in range(WARMING + rounds):
            for name, step in (("one", first_alone), ("apart", alone.step), ("together", together.step)):
                world.barrier()
                seconds[name].append(clock.time(step))
        world.barrier()
    print(json.dumps({"images": alone.images} | {name: spent[WARMING:] for name, spent in seconds.items()}))


def row_of(arch: str, recipe: str, arguments: argparse.Namespace, peaks: dict[str, float | None]) -> dict[str, Any]:
    """One line of the table: a size and a recipe, beside its peers."""
    device = torch.device(arguments.device)
    clock, world = Clock(device, arguments.cpu_time), World(detect({}), device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    config = configuration(
        arch, arguments.batch, arguments.device, arguments.precision, recipe=recipe, compiled=arguments.compile
    )
    cutouts = images_of(config, arguments.run)
    ours = Ours(config, world, cutouts)
    row: dict[str, Any] = {"ccds_a_step": arguments.batch, "images_a_step": ours.images}
    row["data_wait_share"] = waiting_share(ours, clock)
    if device.type == "cuda":
        row["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if recipe == "dino":
        peer = Peer(config, device, cutouts)
        works = (ours.step, ours.bare, peer.step, peer.step_without_crops)
        step, bare, theirs, cropped = clock.taking_turns(*works, rounds=arguments.rounds)
        row["transformers_images_per_s"] = figure([ours.images / seconds for seconds in theirs])
        row["times_transformers"] = ratio(theirs, step)
        row["times_transformers_without_crops"] = ratio(cropped, step)
    else:
        step, bare = clock.taking_turns(ours.step, ours.bare, rounds=arguments.rounds)
    row["images_per_s"] = figure([ours.images / seconds for seconds in step])
    row["step_over_bare"] = ratio(step, bare)
    work = flops.of_step(ours.state.student.backbone.architecture, config.ssl, ours.feed.counts)
    row["gflop_an_image"] = work / ours.images / 1e9
    row["tflops"] = figure([work / seconds / 1e12 for seconds in step])
    row |= {name: figure([work / seconds / peak for seconds in step]) for name, peak in peaks.items() if peak}
    return row


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    found: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    found |= {"precision": arguments.precision, "compiled": arguments.compile, "cpu_time": arguments.cpu_time}
    measured = flops.measured_peak(device, arguments.precision == "bf16")
    known = next((value for key, value in PEAK_BF16.items() if key in name and arguments.precision == "bf16"), None)
    found["matmul_tflops"] = measured / 1e12
    peaks = {"mfu": known, "mfu_of_matmul": measured}
    for arch in arguments.arch:
        for recipe in arguments.recipe:
            found[f"{arch}, {RECIPES[recipe]}"] = row_of(arch, recipe, arguments, peaks)
    if device.type == "cpu" and not arguments.alone:
        found["two processes"] = two_processes(arguments.batch, 2 * arguments.rounds)
    return found


def print_table(found: Mapping[str, Any]) -> None:
    """Every figure, the quartiles behind it, and whether it is what is aimed at."""
    print(", ".join(f"{name} {value}" for name, value in found.items() if not isinstance(value, Mapping)))
    for title, row in found.items():
        if not isinstance(row, Mapping):
            continue
        print(f"\n{title:36s} {'median':>9} {'quartiles':>19}")
        for name, value in row.items():
            spread = f"{value['low']:9.4g} {value['high']:9.4g}" if isinstance(value, Mapping) else ""
            middle = value["median"] if isinstance(value, Mapping) else value
            print(f"  {name:34s} {middle:9.4g} {spread:19s}{aimed(name, middle)}".rstrip())


def aimed(name: str, value: float) -> str:
    if name not in AIMS:
        return ""
    way, aim = AIMS[name]
    met = value <= aim if way == "at most" else value >= aim
    return f"   (aim {way} {aim:g}: {'met' if met else 'missed'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", nargs="+", default=["demo"], choices=list(SIZES))
    parser.add_argument("--recipe", nargs="+", default=["whole", "dino"], choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=32, help="CCDs a step (default 32)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile our network (not the peer's)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's time, not the clock's")
    parser.add_argument("--alone", action="store_true", help="leave the two processes out")
    parser.add_argument("--run", type=Path, help="read the shards of this run (its views must be of the same size)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=15, help="in which all take turns (default 15)")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("fp32" if arguments.device == "cpu" else "bf16")
    if arguments.as_rank:
        as_rank(arguments.batch, arguments.rounds)
        return
    found = measure(arguments)
    print_table(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
