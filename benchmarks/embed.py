"""How fast embed is: against the bare network on the same batches, on two ranks, and straight from FITS.

    python benchmarks/embed.py                                   the demo's network and views, from synthetic shards
    python benchmarks/embed.py --device cuda --arch small base --batch 256 --size release
    python benchmarks/embed.py --ranks 1 2                       one thread a rank, through mpiexec
    python benchmarks/embed.py --fits RUN                        a run with a manifest, calibration.h5 and a backbone

`bare` pushes one batch of each view, which is on the device already, through the network again and again; `embed` reads
shards and returns the arrays that are written. Both do the same number of images, in turn; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ModelConfig, ViewsConfig
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels.dataset import ShardSet
from hpcqa.ssl import embed, flops
from hpcqa.ssl.encode import as_images, encode_with_answers
from hpcqa.ssl.vit import VisionTransformer, build

DR11_EXPOSURES, DR11_CCDS = 223_749, 60
RELEASE = ViewsConfig(context=[512, 256], background=[128, 64], detail=[256, 256], focal_plane=[256, 256])
VIEWS = (*embed.CCD_VIEWS, "focal_plane")


def write_shard(path: Path, views: ViewsConfig, exposures: int, ccds: int, seed: int) -> None:
    """A shard of noise, laid out like a real one."""
    rng = np.random.default_rng(seed)
    count = exposures * ccds
    expnum = np.arange(seed * exposures, (seed + 1) * exposures, dtype=np.int64)

    def noise(size: list[int]) -> np.ndarray:
        return rng.standard_normal((count, *size), np.float32).astype(np.float16)

    arrays = {
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


def seconds_embed(model: VisionTransformer, config: Config, paths: list[Path], device: torch.device) -> float:
    """Time of embedding shards, from opening them to the arrays that would be written."""
    started = time.perf_counter()
    for path in paths:
        embed.embed(ShardSet([path], None, config), model, device, config.embed.batch, config.embed.precision)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_shards(options: argparse.Namespace, config: Config, folder: Path) -> dict[str, Any]:
    """embed against the bare network."""
    device = torch.device(options.device)
    paths = sorted(folder.glob("shard-*.h5"))
    ccds = len(paths) * options.exposures * options.ccds
    counts = dict.fromkeys(embed.CCD_VIEWS, ccds) | {"focal_plane": len(paths) * options.exposures}
    model = network(config, device)
    seconds_bare(model, config, dict.fromkeys(counts, config.embed.batch), device)
    bare, whole = [], []
    for _ in range(options.rounds):
        bare.append(seconds_bare(model, config, counts, device))
        whole.append(seconds_embed(model, config, paths, device))
    work = sum(
        count * flops.forward(model.architecture, view, tuple(getattr(config.views, view)))
        for view, count in counts.items()
    )
    seconds = statistics.median(whole)
    peak = flops.measured_peak(device, device.type == "cuda" or config.embed.precision == "bf16")
    return {
        "arch": config.model.arch,
        "ccds": ccds,
        "ccds_a_second": ccds / seconds,
        "bare_ccds_a_second": ccds / statistics.median(bare),
        "share_of_bare": statistics.median([b / w for b, w in zip(bare, whole, strict=True)]),
        "gflop_a_ccd": work / ccds / 1e9,
        "share_of_measured_peak": work / seconds / peak,
        "device_hours_for_dr11": DR11_EXPOSURES * DR11_CCDS * seconds / ccds / 3600,
    }


# Ranks --------------------------------------------------------------------------------------------------------------


def as_rank(options: argparse.Namespace, config: Config) -> None:
    """One of the ranks that `on_ranks` starts: embeds what is handed out, and rank 0 says how long all took."""
    torch.set_num_threads(1)
    ranks: Ranks = mpi.world()
    device = torch.device("cpu")
    model = network(config, device)
    paths = sorted(Path(options.as_rank).glob("shard-*.h5"))
    seconds_bare(model, config, dict.fromkeys(VIEWS, 8), device)
    mpi.barrier(ranks)
    started = time.perf_counter()
    done = 0
    for path in mpi.hand_out(paths, ranks):
        seconds_embed(model, config, [path], device)
        done += 1
    counts = mpi.gather(done, ranks)
    if counts is not None:
        print(json.dumps({"seconds": time.perf_counter() - started, "shards": counts}))


def on_ranks(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The same shards by one rank and by several, one thread each."""
    launcher = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
    found = []
    for count in options.ranks:
        command = [launcher, "-n", str(count), sys.executable, __file__, "--as-rank", str(folder)]
        command += ["--arch", options.arch[0], "--batch", str(options.batch), "--size", options.size]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found.append({"ranks": count, **json.loads(output.strip().splitlines()[-1])})
    for row in found:
        row["times_one"] = found[0]["seconds"] / row["seconds"]
    return found


# FITS ---------------------------------------------------------------------------------------------------------------


def on_fits(options: argparse.Namespace) -> dict[str, Any]:
    """Reading alone, the network alone, and both at once, on the first shards of a run.

    At best both at once take as long as the first reading, the last network pass, and between them whatever is slower.
    Where other work shares the cores, processor times still tell what overlapping costs.
    """
    import dataclasses

    from hpcqa.artifacts.folder import RunFolder
    from hpcqa.config.frozen import base_runs, load
    from hpcqa.ssl import sources

    run = Path(options.fits)
    config = load(run / "run.yaml")[0]
    config = dataclasses.replace(config, embed=dataclasses.replace(config.embed, source="fits"))
    folder = RunFolder(run, base_runs(config))
    device = torch.device(options.device)
    trained = embed.load_networks(folder.need("backbone", "pretrain"), device, control=False)
    work = [dataclasses.replace(source, stored=None) for source in sources.of_run(config, folder)[: options.shards]]
    with sources.Opener(config, folder, folder.need("calibration", "calibrate")) as opener:
        opener.close(opener.open(work[0]))  # compiled
        started, used = time.perf_counter(), time.process_time()
        opened = [opener.open(source) for source in work]
        reading, reading_used = time.perf_counter() - started, time.process_time() - used
        started, used = time.perf_counter(), time.process_time()
        for one in opened:
            embed.embed(one.cutouts, trained[0].model, device, config.embed.batch, config.embed.precision)
        computing, computing_used = time.perf_counter() - started, time.process_time() - used
        started, used = time.perf_counter(), time.process_time()
        for job in embed.opened_ahead((embed.Job(source, tuple(trained), {}) for source in work), opener):
            assert job.opened is not None
            embed.embed(job.opened.cutouts, trained[0].model, device, config.embed.batch, config.embed.precision)
        both, used = time.perf_counter() - started, time.process_time() - used
    ccds = sum(len(one.cutouts.expnum) for one in opened)
    at_best = (reading + computing + (len(work) - 1) * max(reading, computing)) / len(work)
    return {
        "shards": len(work),
        "ccds": ccds,
        "reading_s": reading,
        "network_s": computing,
        "both_s": both,
        "processor_s": {"reading": reading_used, "network": computing_used, "both": used},
        "at_best_s": at_best,
        "share_of_the_best": at_best / both,
    }


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
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="also these numbers of ranks, e.g. 1 2")
    parser.add_argument("--fits", default="", help="a run folder: measure from its images instead")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--as-rank", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    views = RELEASE if options.size == "release" else ViewsConfig()
    configs = []
    for arch in options.arch:
        plain = Config()
        settings: dict[str, Any] = {"batch": options.batch, "precision": options.precision}
        embedding = type(plain.embed)(**settings)
        configs.append(Config(model=ModelConfig(arch=arch), views=views, embed=embedding))
    if options.as_rank:
        as_rank(options, configs[0])
        return
    found: dict[str, Any] = {}
    if options.fits:
        found["fits"] = on_fits(options)
    else:
        with tempfile.TemporaryDirectory() as room:
            for number in range(options.shards):
                path = Path(room) / f"shard-{number:05d}.h5"
                write_shard(path, views, options.exposures, options.ccds, number)
            found["shards"] = [on_shards(options, config, Path(room)) for config in configs] if options.rounds else []
            found["ranks"] = on_ranks(options, Path(room)) if options.ranks else []
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
