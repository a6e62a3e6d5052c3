"""The survey-ccds table of the simulated survey, with the columns and types of DR9's."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from hpcqa.artifacts.store import atomic_path
from hpcqa.instruments.base import Ccd
from hpcqa.simulate import headers
from hpcqa.simulate.exposure import image_path
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.plan import ExposurePlan
from hpcqa.streams import stream

# Name and dtype of DR9's 46 columns, in their order.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("image_filename", "U"),
    ("image_hdu", "i2"),
    ("camera", "U"),
    ("expnum", "i8"),
    ("plver", "U"),
    ("procdate", "U"),
    ("plprocid", "U"),
    ("ccdname", "U"),
    ("object", "U"),
    ("propid", "U"),
    ("filter", "U"),
    ("exptime", "f4"),
    ("mjd_obs", "f8"),
    ("airmass", "f4"),
    ("fwhm", "f4"),
    ("width", "i2"),
    ("height", "i2"),
    ("ra_bore", "f8"),
    ("dec_bore", "f8"),
    ("crpix1", "f4"),
    ("crpix2", "f4"),
    ("crval1", "f8"),
    ("crval2", "f8"),
    ("cd1_1", "f4"),
    ("cd1_2", "f4"),
    ("cd2_1", "f4"),
    ("cd2_2", "f4"),
    ("yshift", "?"),
    ("ra", "f8"),
    ("dec", "f8"),
    ("skyrms", "f4"),
    ("sig1", "f4"),
    ("ccdzpt", "f4"),
    ("zpt", "f4"),
    ("ccdraoff", "f4"),
    ("ccddecoff", "f4"),
    ("ccdskycounts", "f4"),
    ("ccdskysb", "f4"),
    ("ccdrarms", "f4"),
    ("ccddecrms", "f4"),
    ("ccdphrms", "f4"),
    ("ccdnastrom", "i2"),
    ("ccdnphotom", "i2"),
    ("ccd_cuts", "i4"),
    ("psfnorm", "f4"),
    ("galnorm", "f4"),
)
# Bits of ccd_cuts (legacypipe/bits.py) that a table of single exposures can know.
ERR_LEGACYZPTS, EXPTIME_SHORT, SEEING_BAD = 0x1, 0x8, 0x1000
SHORTEST_S, WORST_SEEING = 30.0, 3.0


def survey_rows(
    seed: int, plane: FocalPlane, plan: ExposurePlan, facts: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The table's rows of one exposure, one for each CCD of its image file."""
    by_number = {ccd.ccdnum: ccd for ccd in plane.instrument.ccds}
    return [_row(seed, plane, plan, by_number[row["ccdnum"]], row) for row in facts]


def _row(seed: int, plane: FocalPlane, plan: ExposurePlan, ccd: Ccd, facts: dict[str, Any]) -> dict[str, Any]:
    camera, conditions = plane.instrument, plan.conditions
    rng = stream(seed, "simulate", plan.expnum, "table", ccd.ccdnum)
    zero_point = headers.measured_zero_point(seed, plan)
    ccd_zero_point = zero_point + float(rng.normal(0, 0.008))
    sky_rate = facts["sky"] / conditions.exptime
    area = camera.pixel_scale**2
    flux_unit = 10 ** (0.4 * (22.5 - ccd_zero_point))  # nanomaggies of 1 ADU/s
    norm = 0.282 / max(facts["fwhm"] / 2.35, 0.5)
    offsets, scatter = rng.normal(0, 0.03, 2), rng.gamma(9, 0.003, 3)
    failed = conditions.scampflg != 0
    seeing = facts["fwhm"] * camera.pixel_scale
    wcs = {name.lower(): value for name, value, _ in headers.wcs(plan, plane, ccd) if not isinstance(value, str)}
    return {
        **wcs,
        "image_filename": image_path(plan, camera.name).as_posix(),
        "image_hdu": facts["image_hdu"],
        "camera": camera.name,
        "expnum": plan.expnum,
        "plver": headers.PLVER,
        "procdate": headers.PROCDATE,
        "plprocid": headers.plprocid(plan),
        "ccdname": ccd.ccdname,
        "object": headers.object_name(plan),
        "propid": "2025A-0001",
        "filter": plan.band,
        "exptime": conditions.exptime,
        "mjd_obs": plan.mjd_obs,
        "airmass": plan.airmass,
        "fwhm": facts["fwhm"],
        "width": camera.shape[1],
        "height": camera.shape[0],
        "ra_bore": plan.ra,
        "dec_bore": plan.dec,
        "yshift": False,
        "ra": (plan.ra + ccd.x / math.cos(math.radians(plan.dec))) % 360,
        "dec": plan.dec + ccd.y,
        "skyrms": facts["sigma"] / conditions.exptime,
        "sig1": facts["sigma"] / conditions.exptime * flux_unit,
        "ccdzpt": ccd_zero_point,
        "zpt": zero_point,
        "ccdraoff": offsets[0],
        "ccddecoff": offsets[1],
        "ccdskycounts": sky_rate,
        "ccdskysb": zero_point - 2.5 * math.log10(max(sky_rate, 1e-3) / area),
        "ccdrarms": scatter[0] * (20 if failed else 1),
        "ccddecrms": scatter[1] * (20 if failed else 1),
        "ccdphrms": scatter[2],
        "ccdnastrom": 0 if failed else min(int(facts["stars"] * 0.8), 32767),
        "ccdnphotom": min(int(facts["stars"] * 0.6), 32767),
        "ccd_cuts": (EXPTIME_SHORT * (conditions.exptime < SHORTEST_S)) | (SEEING_BAD * (seeing > WORST_SEEING)),
        "psfnorm": norm,
        "galnorm": norm * 0.75,
    }


def write_survey_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table as gzipped FITS with one binary table.

    Raises:
        EnvironmentProblem: the disk refuses.
    """
    table = Table()
    for name, kind in COLUMNS:
        values = np.array([row[name] for row in rows])
        table[name] = values.astype("S") if kind == "U" else values.astype(kind)
    content = io.BytesIO()
    table.write(content, format="fits")
    with atomic_path(path) as temporary:
        # No time stamp inside, so that the same survey is the same bytes.
        temporary.write_bytes(gzip.compress(content.getvalue(), mtime=0))
