"""From compressed FITS to a finished shard: hpcqa beside the published style done by astropy and numpy, in one run.

    python benchmarks/shard.py [--ccds 12] [--rounds 3] [--workers 1] [--json FILE]

The exposure is synthetic: CCDs of 4094 x 2046 float32 pixels, RICE_1, one-row tiles, SUBTRACTIVE_DITHER_1, q = 4, with
stars. hpcqa makes all views (context 512 x 256, background 64 x 32, detail 256 x 256) and all numbers of each CCD. The
published style opens the file once for each CCD, makes one 512 x 256 stretched image from it and writes it as a dataset
of its own to a file that is opened again each time; it measures nothing but a level and a noise. `decoding` is hpcqa's
reader alone. Methods take turns, times are CPU seconds (wall time too), the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fitsio
import h5py
import numpy as np
from astropy.io import fits

from hpcqa import instruments
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ShardConfig, ViewsConfig
from hpcqa.pixels.exposures import CcdRow
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.shards import ShardPlan, write_shards

SHAPE = (4094, 2046)


def write_exposure(path: Path, num: int) -> list[CcdRow]:
    """A file of `num` CCDs with sky, noise and 1,500 stars each."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-12:13, -12:13]
    star = np.exp(-(x**2 + y**2) / 8).astype(np.float32)
    ccds = instruments.get("decam").ccds[:num]
    rows = []
    with fitsio.FITS(str(path), "rw", clobber=True) as file:
        for place, ccd in enumerate(ccds, start=1):
            pixels = 300 + 9 * rng.standard_normal(SHAPE, dtype=np.float32)
            for _ in range(1500):
                row, col = rng.integers(12, SHAPE[0] - 12), rng.integers(12, SHAPE[1] - 12)
                pixels[row - 12 : row + 13, col - 12 : col + 13] += star * np.float32(10 ** rng.uniform(1.3, 4.3))
            file.write(
                pixels, extname=ccd.ccdname, compress="RICE", qlevel=4, qmethod="SUBTRACTIVE_DITHER_1", dither_seed=9
            )
            row_ = CcdRow(
                1, ccd.ccdnum, ccd.ccdname, "decam", "r", 58000.0, 90.0, 25.3, 25.3, "V5.5", "", str(path), place
            )
            rows.append(row_)
    return rows


def settings(workers: int) -> Config:
    views = ViewsConfig(context=[512, 256], background=[64, 32], detail=[256, 256])
    config = Config(views=views, shard=ShardConfig(workers=workers))
    return replace(config, instrument=replace(config.instrument, name="decam"))


def make_shard(rows: list[CcdRow], folder: Path, workers: int) -> None:
    """hpcqa: one exposure for each worker, so that every thread has work."""
    exposures = tuple(tuple(replace(row, expnum=number) for row in rows) for number in range(workers))
    for path, failed in write_shards([ShardPlan(0, exposures)], folder, Provenance("x"), settings(workers)):
        if failed.any():
            raise SystemExit(f"{path}: a CCD failed")


def decode(rows: list[CcdRow]) -> None:
    out = np.empty(SHAPE, np.float32)
    with open_exposure(Path(rows[0].image_path)) as file:
        for hdu in file.images:
            file.read(hdu, out)


def published_style(rows: list[CcdRow], folder: Path) -> None:
    """Open per CCD, level and noise from a part of the pixels, bin, stretch, one dataset an image."""
    target = folder / "published.h5"
    target.unlink(missing_ok=True)
    for row in rows:
        with fits.open(row.image_path) as hdus:
            pixels = hdus[row.image_hdu].data
        part = pixels[::8, ::8]
        level = np.nanmedian(part)
        noise = 1.4826 * np.nanmedian(np.abs(part - level))
        binned = pixels[: 8 * (SHAPE[0] // 8), : 8 * (SHAPE[1] // 8)].reshape(SHAPE[0] // 8, 8, -1, 8).mean(axis=(1, 3))
        image = np.arcsinh((binned - level) * 8 / noise / 3).astype(np.float16)
        with h5py.File(target, "a") as file:
            file.create_dataset(f"idx_{row.ccdnum}_label_0", data=image)


def cost(work: Callable[[], None], num: int) -> tuple[float, float]:
    """CPU and wall milliseconds a CCD."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return 1e3 * (time.process_time() - cpu) / num, 1e3 * (time.perf_counter() - wall) / num


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ccds", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_exposure(folder / "c4d_170101_000000_ooi_r_v1.fits.fz", options.ccds)
        num = len(rows)
        methods: dict[str, tuple[Callable[[], None], int]] = {
            "decoding alone": (lambda: decode(rows), num),
            "hpcqa, all views and numbers": (
                lambda: make_shard(rows, folder, options.workers),
                num * options.workers,
            ),
            "published style, one image": (lambda: published_style(rows, folder), num),
        }
        make_shard(rows[:1], folder, 1)
        best = dict.fromkeys(methods, (np.inf, np.inf))
        for _ in range(options.rounds):
            for method, (work, ccds) in methods.items():
                best[method] = tuple(map(min, best[method], cost(work, ccds)))
    print(f"{'':32s} CPU ms/CCD  wall ms/CCD")
    for method, (cpu, wall) in best.items():
        print(f"{method:32s} {cpu:10.1f} {wall:12.1f}")
    decoding, ours, published = (values[0] for values in best.values())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"hpcqa over decoding alone {ours / decoding:.2f}; published style over hpcqa {published / ours:.1f}")
    print(f"largest memory of this process {memory:.0f} MB")
    if options.json:
        result = {"ms_a_ccd": best, "over_decoding": ours / decoding, "speed_up": published / ours, "memory_mb": memory}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
