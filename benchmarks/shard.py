"""From compressed FITS to a finished shard: hpcqa beside the published style done by astropy and numpy, in one run.

    python benchmarks/shard.py [--ccds 60] [--hdus 60] [--rounds 3] [--masks] [--json FILE]

The exposure is synthetic: `--hdus` CCDs of 4094 x 2046 float32 pixels, RICE_1, one-row tiles, SUBTRACTIVE_DITHER_1,
q = 4, with stars; a few different CCDs are repeated, and `--ccds` of them, spread over the file, are timed. hpcqa makes
all views (DECam's: context 512 x 256, background 256 x 128, detail 256 x 256) and all numbers of each CCD. The
published style opens the file once for each CCD, makes one 512 x 256 stretched image from it and writes it as a dataset
of its own to a file that is opened again each time; it measures nothing but a level and a noise, from one pixel in 64.
`decoding` is hpcqa's reader alone, which does not compare the data with their DATASUM then; beside it stand what
its decoder of single tiles takes, one tile after the other as other decoders do it, and fitsio's reader.
By default all CCDs of the file are timed: hpcqa reads the headers of all of them
once for each exposure, so that fewer would have to pay for those of the others. Fewer are read several times for one
shard file, so that it holds as many as one real exposure (a real shard has 16). With --masks an exposure of masks
(RICE_1, codes on 1 % of the pixels) lies beside the images; only hpcqa reads it. Methods take turns, times are CPU
seconds (wall time too), the best of the rounds; then one thread and two, turn by turn, by wall time.
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
import numba
import numpy as np
from astropy.io import fits

from hpcqa import instruments
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ShardConfig, ViewsConfig
from hpcqa.pixels import decoder
from hpcqa.pixels.exposures import CcdRow
from hpcqa.pixels.fits import open_exposure
from hpcqa.pixels.shards import ShardPlan, write_shards

SHAPE = (4094, 2046)
DIFFERENT = 3


def write_exposure(path: Path, num: int, hdus: int, masks: bool) -> list[CcdRow]:
    """A file of `hdus` CCDs with sky, noise and 1,500 stars each; rows for `num` of them.

    DIFFERENT CCDs are compressed, and their bytes repeated under the names of the others.
    """
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-12:13, -12:13]
    star = np.exp(-(x**2 + y**2) / 8).astype(np.float32)
    images, codes = [], []
    for _ in range(DIFFERENT):
        pixels = 300 + 9 * rng.standard_normal(SHAPE, dtype=np.float32)
        for _ in range(1500):
            row, col = rng.integers(12, SHAPE[0] - 12), rng.integers(12, SHAPE[1] - 12)
            pixels[row - 12 : row + 13, col - 12 : col + 13] += star * np.float32(10 ** rng.uniform(1.3, 4.3))
        images.append(pixels)
        spots = np.zeros(SHAPE, np.int32)
        spots[:, rng.integers(0, SHAPE[1], 10)] = 1
        spots.ravel()[rng.integers(0, spots.size, spots.size // 200)] = 5
        codes.append(spots)
    ccds = instruments.get("decam").ccds[:hdus]
    write_repeated(path, images, [ccd.ccdname for ccd in ccds])
    if masks:
        write_repeated(Path(str(path).replace("_ooi_", "_ood_")), codes, [ccd.ccdname for ccd in ccds])
    chosen = np.unique(np.linspace(0, len(ccds) - 1, num).round().astype(int))
    return [
        CcdRow(1, ccd.ccdnum, ccd.ccdname, "decam", "r", 58000.0, 90.0, 25.3, 25.3, "V5.5", "", str(path), place + 1)
        for place, ccd in ((int(place), ccds[place]) for place in chosen)
    ]


def write_repeated(path: Path, images: list[np.ndarray], names: list[str]) -> None:
    """One HDU for each name; the images, compressed once, take turns."""
    seed_file = path.with_suffix(".seed.fz")
    with fitsio.FITS(str(seed_file), "rw", clobber=True) as file:
        for i, pixels in enumerate(images):
            floats = (
                {"qlevel": 4, "qmethod": "SUBTRACTIVE_DITHER_1", "dither_seed": 9} if pixels.dtype.kind == "f" else {}
            )
            file.write(pixels, extname=f"SEED{i}", compress="RICE", **floats)
            file[-1].write_checksum()  # as the files of the Community Pipeline have them
    with open_exposure(seed_file) as exposure:
        starts = [hdu.header_offset for hdu in exposure.images]
    raw = seed_file.read_bytes()
    pieces = [raw[a:b] for a, b in zip(starts, [*starts[1:], len(raw)], strict=True)]
    with path.open("wb") as out:
        out.write(raw[: starts[0]])
        for k, name in enumerate(names):
            i = k % len(pieces)
            out.write(pieces[i].replace(b"'SEED%d   '" % i, b"'%-8s'" % name.encode(), 1))
    seed_file.unlink()


def settings(workers: int) -> Config:
    views = ViewsConfig(context=[512, 256], background=[256, 128], detail=[256, 256])
    config = Config(views=views, shard=ShardConfig(workers=workers))
    return replace(config, instrument=replace(config.instrument, name="decam"))


def make_shard(rows: list[CcdRow], folder: Path, workers: int, exposures: int) -> None:
    """hpcqa: a shard of some equal exposures."""
    plan = ShardPlan(0, tuple(tuple(replace(row, expnum=number) for row in rows) for number in range(exposures)))
    for path, tally in write_shards([plan], folder, Provenance("x"), settings(workers)):
        if tally.num_failed:
            raise SystemExit(f"{path}: a CCD failed")


def decode(rows: list[CcdRow]) -> None:
    out = np.empty(SHAPE, np.float32)
    with open_exposure(Path(rows[0].image_path)) as file:
        for row in rows:
            file.read(file.find(row.image_hdu, row.ccdname), out)


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _tile_by_tile(
    data: np.ndarray,
    tiles: np.ndarray,
    scaling: tuple[np.ndarray, np.ndarray, np.ndarray, bool],
    code: np.ndarray,
    randoms: np.ndarray,
    extra: np.ndarray,
    out: np.ndarray,
) -> bool:
    scales, zeros, blanks, has_blank = scaling
    room = decoder.rooms(tiles[:1])
    for t in range(tiles.shape[0]):
        one = scales[t : t + 1], zeros[t : t + 1], blanks[t : t + 1], has_blank
        if decoder.read_next(data, tiles[t : t + 1], 0, one, code, randoms, extra, room, out) == 0:
            return False
    return True


def decode_tile_by_tile(rows: list[CcdRow]) -> None:
    """hpcqa's decoder of single tiles, which takes the rare ones otherwise."""
    out = np.empty(SHAPE, np.float32)
    with open_exposure(Path(rows[0].image_path)) as file:
        for row in rows:
            image = file._compressed(file.find(row.image_hdu, row.ccdname))
            if image is None or not _tile_by_tile(*image._coded(), out):
                raise SystemExit(f"{row.image_path}: not decoded tile by tile")


def decode_with_fitsio(rows: list[CcdRow]) -> None:
    with fitsio.FITS(rows[0].image_path) as file:
        for row in rows:
            file[row.image_hdu].read()


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


def threads(rows: list[CcdRow], folder: Path, rounds: int) -> float:
    """How many times as fast two threads finish two exposures as one thread."""
    best = {1: np.inf, 2: np.inf}
    for _ in range(rounds):
        for workers in best:
            start = time.perf_counter()
            make_shard(rows, folder, workers, 2)
            best[workers] = min(best[workers], time.perf_counter() - start)
    return float(best[1] / best[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ccds", type=int, default=60, help="CCDs that are timed")
    parser.add_argument("--hdus", type=int, default=60, help="CCDs in the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--masks", action="store_true", help="hpcqa reads masks too")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "c4d_170101_000000_ooi_r_v1.fits.fz"
        rows = write_exposure(path, options.ccds, options.hdus, options.masks)
        num = len(rows)
        exposures = max(1, round(options.hdus / num))
        methods: dict[str, tuple[Callable[[], None], int]] = {
            "decoding alone": (lambda: decode(rows), num),
            "hpcqa, all views and numbers": (lambda: make_shard(rows, folder, 1, exposures), num * exposures),
            "published style, one image": (lambda: published_style(rows, folder), num),
            "decoding tile by tile": (lambda: decode_tile_by_tile(rows), num),
            "decoding by fitsio": (lambda: decode_with_fitsio(rows), num),
        }
        make_shard(rows[:1], folder, 1, 1)
        decode_tile_by_tile(rows[:1])
        best = dict.fromkeys(methods, (np.inf, np.inf))
        for _ in range(options.rounds):
            for method, (work, ccds) in methods.items():
                cpu, wall = cost(work, ccds)
                best[method] = min(best[method][0], cpu), min(best[method][1], wall)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        both = threads(rows, folder, options.rounds)
    print(f"{'':32s} CPU ms/CCD  wall ms/CCD")
    for method, (cpu, wall) in best.items():
        print(f"{method:32s} {cpu:10.1f} {wall:12.1f}")
    decoding, ours, published, scalar, by_fitsio = (values[0] for values in best.values())
    for what, value, aim, met in (
        ("hpcqa over decoding alone", ours / decoding, "at most 2", ours <= 2 * decoding),
        ("published style over hpcqa", published / ours, "at least 6", published >= 6 * ours),
        ("one thread over two (wall)", both, "at least 1.6", both >= 1.6),
        ("largest memory of this process, MB", memory, "below 1000", memory < 1000),
    ):
        print(f"  {what:36s} {value:7.2f}  (aim {aim}: {'met' if met else 'missed'})")
    for what, value in (
        ("hpcqa beside decoding, ms a CCD", ours - decoding),
        ("hpcqa over decoding tile by tile", ours / scalar),
        ("hpcqa over fitsio's decoding alone", ours / by_fitsio),
    ):
        print(f"  {what:36s} {value:7.2f}")
    if options.json:
        result = {
            "ms_a_ccd": best,
            "beside_decoding": ours - decoding,
            "over_decoding": ours / decoding,
            "over_tile_by_tile": ours / scalar,
            "over_fitsio_decoding": ours / by_fitsio,
            "speed_up": published / ours,
        }
        options.json.write_text(json.dumps(result | {"two_threads": both, "memory_mb": memory}, indent=1))


if __name__ == "__main__":
    main()
