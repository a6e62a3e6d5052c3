"""A survey of a few small exposures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pixels_images import LEVEL, make_image

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ShardConfig


@dataclass
class TinySurvey:
    """A run folder with a manifest and its exposures; two exposures a shard."""

    folder: RunFolder
    config: Config
    images: dict[int, Path]
    ccdnums: list[int]

    def shards(self):
        return sorted(self.folder.output("shards").glob("shard-*.h5"))


def write_exposure(path, ccds, seed, shape=(96, 64), level=LEVEL):
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["WCSCAL"] = "Successful"
    for place, ccd in enumerate(ccds):
        image = make_image(100 * seed + place, shape, level, stars=6)
        hdus.append(fits.CompImageHDU(image, name=ccd.ccdname, compression_type="RICE_1", quantize_level=4))
        hdus[-1].header["CCDNUM"] = ccd.ccdnum
    fits.HDUList(hdus).writeto(path, overwrite=True)


def write_manifest(path, images, ccds, exposures_per_shard=2, band="r"):
    rows = []
    for place, (expnum, image) in enumerate(sorted(images.items())):
        for hdu, ccd in enumerate(ccds, start=1):
            rows.append((expnum, ccd.ccdnum, ccd.ccdname, str(image), hdu, place // exposures_per_shard))
    columns = {
        column.name: np.array(["" if column.dtype == "str" else 0] * len(rows), dtype=object)
        for column in MANIFEST.columns
    }
    for name, values in zip(
        ("expnum", "ccdnum", "ccdname", "image_path", "image_hdu", "shard"), zip(*rows, strict=True), strict=True
    ):
        columns[name] = np.array(values, dtype=object)
    constant = {"camera": "minicam", "band": band, "exptime": 100.0, "zpt": 25.0, "ccdzpt": 25.1, "plver": "V5.5"}
    for name, value in constant.items():
        columns[name] = np.array([value] * len(rows), dtype=object)
    store.write_table(path, MANIFEST, columns, Provenance("made by a test"))


@pytest.fixture
def survey(tmp_path):
    """Four exposures of three CCDs of 96 x 64 pixels."""
    ccds = instruments.get("minicam").ccds[:3]
    images = {}
    for place in range(4):
        images[1000 + place] = tmp_path / f"mc4_250105_00000{place}_ooi_r_v1.fits.fz"
        write_exposure(images[1000 + place], ccds, place)
    folder = RunFolder(tmp_path / "run")
    write_manifest(folder.output("manifest"), images, ccds)
    # A machine so busy that it stops for minutes is no file system that hangs.
    config = replace(Config(), run=str(folder.path), shard=ShardConfig(workers=2, read_timeout=3600.0))
    return TinySurvey(folder, config, images, [ccd.ccdnum for ccd in ccds])
