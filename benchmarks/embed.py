"""How fast embed is: against the bare network on the same batches, on two ranks, and straight from FITS.

    python benchmarks/embed.py                                   the demo's network and views, from synthetic shards
    python benchmarks/embed.py --device cuda --arch small base --batch 256 --size release
    python benchmarks/embed.py --ranks 1 2                       one thread a rank, through mpiexec
    python benchmarks/embed.py --fits RUN --readers 2            a run with a manifest, calibration.h5 and a backbone

- `share_of_bare`: the stage's own loop, from opening the shards to the files written, over one batch of each view, on
  the device already, going through the network again and again. Both do as many images of each view, in turn, in
  pieces of all shards; medians and quartiles of the rounds' ratios.
- `times_one`: CCDs a second of so many ranks over those of the first number, of one thread each, in turn.
- `share_of_the_best`: the loop from FITS over what overlapping can give at best: the first shard is read, the last one
  goes through the network, and between them every shard takes what is longest, its reading, its network pass, or the
  processor time of both over the cores that there are. Reading alone and both are by as many processes
  (hpcqa/ssl/readers.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# As every command of hpcqa: threads that wait sleep, because others read meanwhile. torch looks when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, EmbedConfig, ModelConfig, ViewsConfig
from hpcqa.config.frozen import base_runs, load
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks
from hpcqa.ssl import embed, flops, readers, sources
from hpcqa.ssl.encode import as_images, encode_with_answers
from hpcqa.ssl.vit import VisionTransformer, build

DR11_EXPOSURES, DR11_CCDS = 223_749, 60
RELEASE = ViewsConfig(context=[512, 256], background=[128, 64], detail=[256, 256], focal_plane=[256, 256])
VIEWS = (*embed.CCD_VIEWS, "focal_plane")
AIMS = {"share_of_bare": 0.9, "times_one": 1.7, "share_of_the_best": 0.9}
Found = dict[str, Any]


def write_shard(path: Path, views: ViewsConfig, exposures: int, ccds: int, seed: int) -> None:
    """A shard of noise, laid out like a real one."""
    rng = np.random.default_rng(seed)
    count = exposures * ccds
    expnum = np.arange(seed * exposures, (seed + 1) * exposures, dtype=np.int64)

    def noise(size: list[int]) -> np.ndarray:
        return rng.standard_normal((count, *size), np.float32).astype(np.float16)

    arrays: dict[str, np.ndarray] = {
        "expnum": np.repeat(expnum, ccds),
        "ccdnum": np.tile(np.arange(1, ccds + 1, dtype=np.int32), exposures),
        "failed": np.zeros(count, np.int64),
        "bin": np.full(count, 8, np.int32),
        "background_bin": np.full(count, 32, np.int32),
        "context": noise(views.context),
        "background": noise(views.background) * np.float16(1e-3),
        "background_noise": np.full((count, *views.background), 1e-3, np.float16),
        "detail": noise(views.detail),
        "numbers": rng.standard_normal((count, 4), np.float32),
        "exposure": expnum,
        "exposure_band": np.array(["r"] * exposures, dtype=object),
        "exposure_sky": np.ones(exposures, np.float32),
    }
    store.write_arrays(path, catalog.SHARD, arrays, Provenance("benchmark"), {"number_names": list("abcd")})


def write_calibration(path: Path, views: ViewsConfig, ccds: int) -> None:
    """Patterns of nothing, for each CCD."""
    arrays: dict[str, np.ndarray] = {
        "ccdnum": np.arange(1, ccds + 1, dtype=np.int32),
        "band": np.array(["r"] * ccds, dtype=object),
        "num_exposures": np.ones(ccds, np.int32),
        "pooled": np.zeros(ccds, bool),
        "background": np.zeros((ccds, *views.background), np.float32),
        "number_median": np.zeros((ccds, 4), np.float32),
        "number_scatter": np.ones((ccds, 4), np.float32),
    }
    store.write_arrays(path, catalog.CALIBRATION, arrays, Provenance("benchmark"))


def network(config: Config, device: torch.device) -> VisionTransformer:
    heads = {view: ("step", "glow") for view in VIEWS}
    return build(config.model, config.views, heads, seed=1).eval().to(device)


def seconds_bare(model: VisionTransformer, config: Config, counts: dict[str, int], device: torch.device) -> float:
    """Time of the network alone on as many images of each view."""
    size = config.embed.batch
    images = {view: as_images(np.zeros((size, *getattr(config.views, view)), np.float16), device) for view in counts}
    _wait(device)
    started = time.perf_counter()
    for view, count in counts.items():
        for start in range(0, count, size):
            encode_with_answers(model, images[view][: count - start], view, config.embed.precision)
    _wait(device)
    return time.perf_counter() - started


def seconds_embed(
    config: Config, folder: RunFolder, work: Sequence[sources.Source], networks: Sequence[embed.Network]
) -> float:
    """Time of embedding some shards, from opening them to the files written."""
    device = next(networks[0].model.parameters()).device
    started = time.perf_counter()
    with sources.Opener(config, folder, folder.output("calibration")) as opener:
        jobs = embed.opened_ahead((embed.Job(source, tuple(networks), {}) for source in work), opener)
        embed.embed_jobs(config, folder, jobs, opener, device, "benchmark")
    return time.perf_counter() - started


def figure(values: Sequence[float]) -> dict[str, float]:
    """The median of some rounds, and the quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_shards(options: argparse.Namespace, config: Config, folder: RunFolder) -> Found:
    """embed against the bare network."""
    device = torch.device(options.device)
    work = sources.of_run(config, folder)
    ccds = len(work) * options.exposures * options.ccds
    counts = dict.fromkeys(embed.CCD_VIEWS, ccds) | {"focal_plane": len(work) * options.exposures}
    trained = embed.Network(embed.TRAINED, network(config, device), "benchmark")
    seconds_bare(trained.model, config, dict.fromkeys(counts, config.embed.batch), device)
    seconds_embed(config, folder, work[:1], [trained])
    bare, whole = [], []
    for _ in range(options.rounds):
        bare.append(seconds_bare(trained.model, config, counts, device))
        whole.append(seconds_embed(config, folder, work, [trained]))
    architecture = trained.model.architecture
    work_flops = sum(
        count * flops.forward(architecture, view, tuple(getattr(config.views, view))) for view, count in counts.items()
    )
    peak = flops.measured_peak(device, device.type == "cuda" or config.embed.precision == "bf16")
    return {
        "ccds": ccds,
        "seconds_a_round": figure(whole),
        "ccds_a_second": figure([ccds / seconds for seconds in whole]),
        "bare_ccds_a_second": figure([ccds / seconds for seconds in bare]),
        "share_of_bare": figure([b / w for b, w in zip(bare, whole, strict=True)]),
        "gflop_a_ccd": work_flops / ccds / 1e9,
        "share_of_measured_peak": figure([work_flops / seconds / peak for seconds in whole]),
        "device_hours_for_dr11": DR11_EXPOSURES * DR11_CCDS * float(np.median(whole)) / ccds / 3600,
    }


# Ranks --------------------------------------------------------------------------------------------------------------


def as_rank(config: Config, folder: RunFolder) -> None:
    """One of the ranks that `on_ranks` starts: embeds what is handed out, and rank 0 says how long all took."""
    torch.set_num_threads(1)
    ranks: Ranks = mpi.world()
    device = torch.device("cpu")
    trained = embed.Network(embed.TRAINED, network(config, device), "benchmark")
    seconds_bare(trained.model, config, dict.fromkeys(VIEWS, 8), device)
    mpi.barrier(ranks)
    started = time.perf_counter()
    done: list[str] = []

    def taken(source: sources.Source) -> embed.Job:
        done.append(source.name)
        return embed.Job(source, (trained,), {})

    with sources.Opener(config, folder, folder.output("calibration")) as opener:
        handed = mpi.hand_out(sources.of_run(config, folder), ranks)
        embed.embed_jobs(config, folder, embed.opened_ahead(map(taken, handed), opener), opener, device, "benchmark")
    counts = mpi.gather(len(done), ranks)
    if counts is not None:
        print(json.dumps({"seconds": time.perf_counter() - started, "shards": counts}))


def on_ranks(options: argparse.Namespace, folder: RunFolder) -> Found:
    """The same shards by one rank and by several, one thread each, in turn."""
    launcher = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seconds: dict[int, list[float]] = {count: [] for count in options.ranks}
    shards: dict[int, list[int]] = {}
    for _ in range(options.rounds):
        for count in options.ranks:
            command = [launcher, "-n", str(count), sys.executable, __file__, "--as-rank", str(folder.path)]
            command += ["--arch", options.arch[0], "--batch", str(options.batch), "--size", options.size]
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            answer = json.loads(output.strip().splitlines()[-1])
            seconds[count].append(answer["seconds"])
            shards[count] = answer["shards"]
    found: Found = {}
    first = seconds[options.ranks[0]]
    for count in options.ranks:
        found[f"{count} ranks"] = {
            "seconds": figure(seconds[count]),
            "least_and_most_shards": [min(shards[count]), max(shards[count])],
        }
        if count != options.ranks[0]:
            ratios = [a / b for a, b in zip(first, seconds[count], strict=True)]
            found[f"{count} ranks"]["times_one"] = figure(ratios)
    return found


# FITS ---------------------------------------------------------------------------------------------------------------


def on_fits(options: argparse.Namespace) -> Found:
    """Reading alone, the network alone, and the stage's loop, on the first shards of a run; see the module."""
    run = Path(options.fits)
    config = load(run / "run.yaml")[0]
    config = dataclasses.replace(config, embed=dataclasses.replace(config.embed, source="fits"))
    folder = RunFolder(run, base_runs(config))
    device = torch.device(options.device)
    networks = embed.load_networks(folder.need("backbone", "pretrain"), device, control=False)
    whole = sources.of_run(config, folder)
    work = [dataclasses.replace(source, stored=None) for source in whole[: options.shards]]
    calibration = folder.need("calibration", "calibrate")
    processes = options.readers or readers.worth(config, len(whole))

    def ahead(opener: sources.Opener) -> Iterator[embed.Job]:
        return embed.opened_ahead((embed.Job(source, tuple(networks), {}) for source in work), opener)

    with tempfile.TemporaryDirectory() as room, sources.Opener(config, folder, calibration, processes) as opener:
        for job in ahead(opener):  # every process started, all loops compiled
            opener.close(job.opened)
        timed = Stopwatch()
        opened = [job.opened for job in ahead(opener) if job.opened is not None]
        reading = timed.lap()
        for one in opened:
            embed.embed_job(config, embed.Job(work[0], tuple(networks), {}, one), device)
        computing = timed.lap()
        for one in opened:
            opener.close(one)
        timed.lap()
        embed.embed_jobs(config, RunFolder(Path(room)), ahead(opener), opener, device, "benchmark")
        both = timed.lap()
    num, cores = len(work), len(os.sched_getaffinity(0))
    slowest = max(reading["wall"], computing["wall"], (reading["processor"] + computing["processor"]) / cores)
    at_best = (reading["wall"] + computing["wall"] + (num - 1) * slowest) / num
    return {
        "shards": num,
        "reading_processes": processes,
        "ccds": sum(len(one.cutouts.expnum) for one in opened),
        "reading_s": reading["wall"],
        "network_s": computing["wall"],
        "both_s": both["wall"],
        "reading_processor_s": reading["processor"],
        "network_processor_s": computing["processor"],
        "both_processor_s": both["processor"],
        "at_best_s": at_best,
        "share_of_the_best": at_best / both["wall"],
    }


class Stopwatch:
    """Seconds by the clock and of the processor, that of the processes that read with it, since the last look."""

    def __init__(self) -> None:
        self._at = self._now()

    def lap(self) -> dict[str, float]:
        before, self._at = self._at, self._now()
        return {"wall": self._at[0] - before[0], "processor": self._at[1] - before[1]}

    @staticmethod
    def _now() -> tuple[float, float]:
        ticks = 0
        for child in multiprocessing.active_children():
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])  # user, system
        return time.perf_counter(), time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def print_table(found: Mapping[str, Found]) -> None:
    """Every figure, the quartiles behind it, and whether it is what is aimed at."""
    for title, row in found.items():
        print(f"\n{title:36s} {'median':>9} {'quartiles':>19}")
        for name, value in row.items():
            spread = f"{value['low']:9.4g} {value['high']:9.4g}" if isinstance(value, Mapping) else ""
            middle = value["median"] if isinstance(value, Mapping) else value
            said = f"{middle:9.4g}" if isinstance(middle, int | float) else f"{middle!s:>9}"
            aim = AIMS.get(name)
            judged = "" if aim is None else f"   (aim at least {aim:g}: {'met' if middle >= aim else 'missed'})"
            print(f"  {name:34s} {said} {spread:19s}{judged}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", nargs="+", default=["demo"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--size", default="demo", choices=("demo", "release"), help="views of the demo or of DECam")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--exposures", type=int, default=8, help="in a shard")
    parser.add_argument("--ccds", type=int, default=14, help="of an exposure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="these numbers of ranks instead, e.g. 1 2")
    parser.add_argument("--fits", default="", help="a run folder: measure from its images instead")
    parser.add_argument("--readers", type=int, default=0, help="processes that read FITS (default: what embed takes)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--as-rank", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    views = RELEASE if options.size == "release" else ViewsConfig()
    settings: Found = {"batch": options.batch, "precision": options.precision}
    configs = [
        Config(model=ModelConfig(arch=arch), views=views, embed=EmbedConfig(**settings)) for arch in options.arch
    ]
    if options.as_rank:
        as_rank(configs[0], RunFolder(Path(options.as_rank)))
        return
    found: dict[str, Found] = {}
    if options.fits:
        found["from FITS"] = on_fits(options)
    else:
        with tempfile.TemporaryDirectory() as room:
            folder = RunFolder(Path(room))
            write_calibration(folder.output("calibration"), views, options.ccds)
            for number in range(options.shards):
                path = folder.output("shards") / shard_name(number)
                write_shard(path, views, options.exposures, options.ccds, number)
            if options.ranks:
                found = on_ranks(options, folder)
            else:
                found = {f"{config.model.arch}, from shards": on_shards(options, config, folder) for config in configs}
    print_table(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
