"""How long a manifest takes, and how much memory: a survey-ccds table like a data release's, from rows to manifest.

    python benchmarks/manifest.py --rows 10000000 --folder /somewhere/with/8/GB

The table has the 46 columns of a real one, uncompressed (or --gzip), 60 CCDs an exposure, a tenth of the exposures
processed twice, image files spread over nights. Peak memory is the process's largest resident set.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

from hpcqa import instruments
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config.frozen import from_plain
from hpcqa.parallel.ranks import Ranks

CCDS = 60
CAMERA = instruments.KNOWN[0]
PADDING = [("procdate", "S19"), ("propid", "S10")] + [(f"number{index}", ">f4") for index in range(24)]
DTYPE = np.dtype(
    [
        *(("image_filename", "S64"), ("image_hdu", ">i2"), ("camera", "S5"), ("expnum", ">i8"), ("plver", "S8")),
        *(("plprocid", "S7"), ("ccdname", "S4"), ("object", "S35"), ("filter", "S1"), ("exptime", ">f4")),
        *(("mjd_obs", ">f8"), ("fwhm", ">f4"), ("width", ">i2"), ("height", ">i2"), ("ra", ">f8"), ("dec", ">f8")),
        *(("ccdzpt", ">f4"), ("zpt", ">f4"), ("ccd_cuts", ">i4"), *PADDING),
    ]
)
FORMS = {"S": "{}A", ">i2": "I", ">i4": "J", ">i8": "K", ">f4": "E", ">f8": "D"}


def header_of(rows: int) -> fits.Header:
    """The header of a binary table with DTYPE's columns."""
    header = fits.Header()
    header["XTENSION"], header["BITPIX"], header["NAXIS"] = "BINTABLE", 8, 2
    header["NAXIS1"], header["NAXIS2"] = DTYPE.itemsize, rows
    header["PCOUNT"], header["GCOUNT"], header["TFIELDS"] = 0, 1, len(DTYPE.names)
    for number, name in enumerate(DTYPE.names, start=1):
        kind = DTYPE[name]
        header[f"TTYPE{number}"] = name
        header[f"TFORM{number}"] = f"{kind.itemsize}A" if kind.kind == "S" else FORMS[kind.str]
    return header


def make_rows(first: int, exposures: int, rng: np.random.Generator) -> np.ndarray:
    """All CCD rows of some exposures."""
    rows = np.zeros(exposures * CCDS, DTYPE)
    number = np.repeat(np.arange(first, first + exposures), CCDS)
    # Every tenth exposure is the one before, processed again.
    again = number % 10 == 9
    expnum = 200000 + number - again
    names = [ccd.ccdname for ccd in instruments.get(CAMERA).ccds][:CCDS]
    mjd = 56600.0 + expnum / 150.0
    stamps = [
        f"{CAMERA}/V{4 + int(a)}.8.2a/CP{n // 300:08d}/c4d_140101_{n % 1000000:06d}_ooi_r_v{1 + int(a)}.fits.fz"
        for n, a in zip(expnum[::CCDS], again[::CCDS], strict=True)
    ]
    rows["image_filename"] = np.repeat(np.array(stamps, "S64"), CCDS)
    rows["image_hdu"] = np.tile(np.arange(1, CCDS + 1), exposures)
    rows["camera"], rows["filter"] = CAMERA.encode(), b"r"
    rows["expnum"], rows["mjd_obs"] = expnum, mjd
    rows["plver"] = np.where(again, b"V5.8.2a", b"V4.8.2a")
    rows["plprocid"] = np.char.mod("%07x", 0x9500000 + expnum // 300)
    rows["ccdname"] = np.tile(np.array(names, "S4"), exposures)
    rows["object"] = np.char.mod("FIELD_%d_r", expnum)
    rows["exptime"], rows["fwhm"], rows["width"], rows["height"] = 90.0, 4.0, 2046, 4094
    rows["ra"], rows["dec"] = rng.uniform(0, 360, len(rows)), rng.uniform(-60, 30, len(rows))
    rows["ccdzpt"], rows["zpt"] = 25.1, 25.1
    rows["ccd_cuts"] = np.where(rng.random(len(rows)) < 0.05, 0x10, 0)
    return rows


def make_survey(folder: Path, num_rows: int, *, zipped: bool) -> Path:
    """A table and empty image files; returns the table's path."""
    path = folder / ("survey-ccds-benchmark.fits.gz" if zipped else "survey-ccds-benchmark.fits")
    rng = np.random.default_rng(1)
    exposures = num_rows // CCDS
    with gzip.open(path, "wb", compresslevel=1) if zipped else path.open("wb") as out:
        out.write(fits.PrimaryHDU().header.tostring().encode())
        out.write(header_of(exposures * CCDS).tostring().encode())
        for first in range(0, exposures, 5000):
            rows = make_rows(first, min(5000, exposures - first), rng)
            out.write(rows.tobytes())
            for name in np.unique(rows["image_filename"]):
                image = folder / "images" / name.decode()
                image.parent.mkdir(parents=True, exist_ok=True)
                image.touch()
        out.write(bytes(-(exposures * CCDS * DTYPE.itemsize) % 2880))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--gzip", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8d ms  %(message)s")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        table = make_survey(folder, arguments.rows, zipped=arguments.gzip)
        print(f"{arguments.rows} rows, {table.stat().st_size / 1e9:.2f} GB")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settings = {"ccd_cuts": 16, "min_exptime": 30.0, "min_abs_glat": 10.0, "bands": ["g", "r"]}
        run = folder / "run"
        config = from_plain({"run": str(run), "survey": {"tables": [str(table)]}, "manifest": settings})
        start, started = time.perf_counter(), time.process_time()
        from hpcqa.survey import manifest

        manifest.run(config, RunFolder(run), Ranks())
        seconds, computed = time.perf_counter() - start, time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = f"{peak / 1e6:.2f} GB (before it {before / 1e6:.2f} GB)"
        print(f"manifest: {seconds:.1f} s ({computed:.1f} s of processor), peak {used}")


if __name__ == "__main__":
    main()
