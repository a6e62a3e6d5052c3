"""Small survey tables, images and runs for the tests of survey/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from hpcqa.artifacts.catalog import LABELS, MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import read_table
from hpcqa.config.frozen import from_plain
from hpcqa.parallel.ranks import Ranks
from hpcqa.survey import manifest

FORMATS = {"i": "K", "f": "D", "b": "L"}


def table_columns(exposures=(1001, 1002), ccds=("N1", "N2"), **changes: Any) -> dict[str, list]:
    """Columns of a minicam table, exposure by exposure; changes replace or add columns (None takes one away)."""
    rows = [(expnum, ccd) for expnum in exposures for ccd in ccds]
    columns: dict[str, Any] = {
        "image_filename": [f"minicam/mc4_250108_0{expnum % 100000:05d}_ooi_r_v1.fits.fz" for expnum, _ in rows],
        "image_hdu": [1 + index % len(ccds) for index in range(len(rows))],
        "camera": ["minicam"] * len(rows),
        "expnum": [expnum for expnum, _ in rows],
        "ccdname": [ccd for _, ccd in rows],
        "filter": ["r"] * len(rows),
        "mjd_obs": [60683.2 + expnum / 1000 for expnum, _ in rows],
        "exptime": [90.0] * len(rows),
        "ra": [10.0] * len(rows),
        "dec": [-60.0] * len(rows),
        "plver": ["V5.5"] * len(rows),
        "plprocid": ["9a00000"] * len(rows),
    }
    columns.update(changes)
    return {name: values for name, values in columns.items() if values is not None}


def write_fits(path: Path, columns: dict[str, Any], *, before=(), after=()) -> Path:
    """A binary table; `before` and `after` are further HDUs."""
    made = []
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind == "U":
            made.append(fits.Column(name, f"{max(1, array.dtype.itemsize // 4)}A", array=array))
        elif array.dtype.itemsize == 2:
            made.append(fits.Column(name, "I", array=array))
        else:
            made.append(fits.Column(name, FORMATS[array.dtype.kind], array=array))
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus = fits.HDUList([fits.PrimaryHDU(), *before, fits.BinTableHDU.from_columns(made), *after])
    hdus.writeto(path, overwrite=True)
    return path


def touch_images(folder: Path, columns: dict[str, Any]) -> None:
    """Empty image files, as a table names them, in images/."""
    for name in set(columns["image_filename"]):
        image = folder / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()


def small_survey(folder: Path, name: str = "survey-ccds-minicam.fits.gz", **changes: Any) -> Path:
    """A table with its images; returns the table's path."""
    columns = table_columns(**changes)
    touch_images(folder, columns)
    return write_fits(folder / name, columns)


def run_manifest(folder: Path, tables=(), **sections: Any) -> dict[str, np.ndarray]:
    """Run the stage and read the manifest."""
    survey = {"tables": [str(table) for table in tables], **sections.pop("survey", {})}
    config = from_plain({"run": str(folder), "survey": survey, **sections})
    manifest.run(config, RunFolder(folder), Ranks())
    return read_table(folder / "manifest.parquet", MANIFEST)


def read_labels(folder: Path, name: str = "labels") -> dict[str, np.ndarray]:
    return read_table(folder / f"{name}.parquet", LABELS)
