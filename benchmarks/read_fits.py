"""Reading full-size compressed CCDs: hpcqa's reader beside fitsio and astropy, in one run.

    python benchmarks/read_fits.py [--ccds 12] [--hdus 60] [--json FILE]

The exposure is synthetic: `--hdus` CCDs of 4094 x 2046 float32 pixels, RICE_1, one-row tiles, SUBTRACTIVE_DITHER_1 and
q = 4, as the Community Pipeline writes them; a few different CCDs are repeated. The first `--ccds` are read by every
method in turn, CCD by CCD, so that a busy machine slows all of them alike; times are medians, from a warm page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fitsio
import numpy as np
from astropy.io import fits

from hpcqa.pixels.fits import ExposureFile, bin_image, open_exposure

SHAPE = (4094, 2046)
STEP = 4
DIFFERENT = 2


def write_exposure(path: Path, hdus: int) -> None:
    """Write DIFFERENT CCDs with fitsio and repeat their bytes until there are `hdus`."""
    rng = np.random.default_rng(1)
    seed_file = path.with_suffix(".seed.fz")
    with fitsio.FITS(str(seed_file), "rw", clobber=True) as file:
        for i in range(DIFFERENT):
            pixels = rng.normal(300, 9, SHAPE).astype(np.float32)
            for _ in range(3000):
                row, col = rng.integers(8, SHAPE[0] - 8), rng.integers(8, SHAPE[1] - 8)
                pixels[row - 3 : row + 4, col - 3 : col + 4] += np.float32(10 ** rng.uniform(1.5, 4.5) / 49)
            file.write(
                pixels, extname=f"X{i}", compress="RICE", qlevel=4, qmethod="SUBTRACTIVE_DITHER_1", dither_seed=9
            )
    with open_exposure(seed_file) as exposure:
        starts = [hdu.header_offset for hdu in exposure.images]
    raw = seed_file.read_bytes()
    pieces = [raw[a:b] for a, b in zip(starts, [*starts[1:], len(raw)], strict=True)]
    with path.open("wb") as file:
        file.write(raw[: starts[0]])
        for i in range(hdus):
            file.write(pieces[i % DIFFERENT])
    seed_file.unlink()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def per_ccd(path: Path, ccds: int) -> dict[str, list[float]]:
    """Seconds of each method for each CCD, methods in turn."""
    times: dict[str, list[float]] = {}
    out = np.empty(SHAPE, np.float32)
    with open_exposure(path) as ours, fitsio.FITS(str(path)) as theirs, fits.open(path, memmap=True) as opened:
        methods: dict[str, Callable[[int], object]] = {
            "hpcqa, read": lambda i: ours.read(ours.images[i], out),
            "hpcqa, read and bin": lambda i: ours.read_binned(ours.images[i], STEP),
            "fitsio opened once": lambda i: theirs[i + 1].read(),
            "fitsio opened once, and bin": lambda i: bin_image(theirs[i + 1].read(), STEP),
            "astropy opened once": lambda i: opened[i + 1].data,
            "astropy opened per CCD": lambda i: astropy_per_ccd(path, i),
        }
        for work in methods.values():
            work(0)
        for i in range(1, ccds + 1):
            for name, work in methods.items():
                times.setdefault(name, []).append(seconds(lambda work=work, i=i: work(i)))
            del opened[i + 1].data
    return times


def astropy_per_ccd(path: Path, i: int) -> np.ndarray:
    with fits.open(path) as hdus:
        pixels: np.ndarray = hdus[i + 1].data
        return pixels


def threads(path: Path, ccds: int, rounds: int = 5) -> dict[int, float]:
    """Best seconds for all CCDs with one thread and with two, turn by turn."""
    best = {1: float("inf"), 2: float("inf")}

    def binned(exposure: ExposureFile, workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda hdu: exposure.read_binned(hdu, STEP), exposure.images[:ccds]))

    with open_exposure(path) as exposure:
        for _ in range(rounds):
            for workers in best:
                best[workers] = min(best[workers], seconds(lambda workers=workers: binned(exposure, workers)))
    return best


def check_identical(path: Path) -> None:
    with open_exposure(path) as ours, fits.open(path) as hdus:
        for i in range(DIFFERENT):
            if not np.array_equal(ours.read(ours.images[i]), hdus[i + 1].data):
                raise SystemExit("hpcqa and astropy read different pixels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ccds", type=int, default=12, help="CCDs that are timed")
    parser.add_argument("--hdus", type=int, default=60, help="CCDs in the file")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    ccds = min(options.ccds, options.hdus - 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposure.fits.fz"
        write_exposure(path, options.hdus)
        check_identical(path)
        megabytes = path.stat().st_size / 1e6
        opening = seconds(lambda: open_exposure(path).close())
        medians = {name: 1e3 * statistics.median(values) for name, values in per_ccd(path, ccds).items()}
        both = threads(path, min(8, ccds))
    ours = medians["hpcqa, read and bin"]
    ratios = {
        "fitsio opened once / hpcqa (binned)": (medians["fitsio opened once"] / ours, 3.5),
        "astropy per CCD / hpcqa (binned)": (medians["astropy opened per CCD"] / ours, 8.0),
        "one thread / two threads": (both[1] / both[2], 1.6),
    }
    print(f"{options.hdus} CCDs of {SHAPE[0]} x {SHAPE[1]}, {megabytes:.0f} MB; headers read in {1e3 * opening:.0f} ms")
    for name, value in medians.items():
        print(f"  {name:30s} {value:8.1f} ms a CCD  {value / ours:6.2f} x hpcqa's")
    for name, (value, aim) in ratios.items():
        print(f"  {name:40s} {value:6.2f}  (aim {aim}: {'met' if value >= aim else 'missed'})")
    if options.json:
        options.json.write_text(
            json.dumps({"ms_per_ccd": medians, "ratios": {k: v for k, (v, _) in ratios.items()}}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
