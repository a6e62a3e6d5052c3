"""What hpcqa must know of a camera. Knowledge only: no pixels are read here, and no torch is imported.

A camera is one module that makes one `Instrument`; `hpcqa.instruments.get(name)` finds it. Nothing outside this package
and conf/ names a camera.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NO_NAME = "COMPRESSED_IMAGE"  # what compressing writes as EXTNAME where there is none


@dataclass(frozen=True)
class Ccd:
    """One chip. `x`, `y` are its centre on the focal plane in degrees on the sky, in the orientation that the camera's
    module states; `backplane` groups chips that share readout electronics (0: unknown).
    """

    ccdnum: int
    ccdname: str
    x: float
    y: float
    backplane: int = 0


@dataclass(frozen=True)
class FileName:
    """What an image's file name says. `prodtype` is image, dqmask, wtmap or other; `date` is YYYY-MM-DDTHH:MM:SS;
    `expnum` is 0 and `ccdname` empty where the name doesn't say.
    """

    prodtype: str
    band: str
    version: str
    date: str
    expnum: int = 0
    ccdname: str = ""


@dataclass(frozen=True)
class Region:
    """A rectangle of a CCD in zero-based pixels, [row0, row1) x [col0, col1)."""

    row0: int
    row1: int
    col0: int
    col1: int


@dataclass(frozen=True)
class CcdContext:
    """What is known of a CCD image before its pixels: enough to apply the camera's folklore."""

    ccdnum: int
    expnum: int
    band: str
    mjd_obs: float
    plver: str
    plprocid: str = ""


class Instrument(Protocol):
    """A camera."""

    name: str
    cameras: tuple[str, ...]  # what survey tables call it, lower case
    ccds: tuple[Ccd, ...]
    shape: tuple[int, int]  # rows, columns of a full CCD
    pixel_scale: float  # arcsec
    bands: tuple[str, ...]
    saturation: float  # ADU, typical
    gain: float  # e/ADU, typical
    read_noise: float  # e, typical
    rows_along: tuple[int, int]  # step on the focal plane (x, y) when the row number grows: (1, 0), (0, 1), (-1, 0)...
    cols_along: tuple[int, int]  # the same for the column number

    def ccdnum_of(self, ccdname: str) -> int | None:
        """The number of a CCD name (any case; N04 is N4), or None."""

    def parse_file_name(self, path: Path) -> FileName | None:
        """What the file name says, or None if it is not this camera's."""

    def image_name(self, prodtype: str, started: datetime, band: str, version: str) -> str:
        """The name of an exposure's compressed file, by its start (UTC): `parse_file_name` backwards."""

    def companion(self, path: Path, prodtype: str) -> Path:
        """The path of the mask (dqmask) or weight (wtmap) file beside an image.

        Raises:
            DataError: the file name is not this camera's (`parse_file_name` gives None).
        """

    def band_of(self, text: str) -> str | None:
        """The band of a FILTER header or table value, or None if the camera has no such band."""

    def masked(self, dq: np.ndarray, context: CcdContext) -> np.ndarray:
        """Which pixels of a data-quality image to leave out: bool, same shape; codes or bits by pipeline version."""

    def bad_regions(self, context: CcdContext, shape: tuple[int, int]) -> list[Region]:
        """Regions of the CCD never to be used, by chip, date and band; none for an image that is not a full CCD."""

    def is_dead(self, context: CcdContext) -> str:
        """Why the CCD is known not to work at that time, or an empty string."""

    def saturation_of(self, context: CcdContext) -> float:
        """The level in ADU above which pixels are saturated whatever the mask says; infinity where masks are right."""

    def amplifiers(self, shape: tuple[int, int], ccdnum: int) -> list[Region]:
        """The areas read by each amplifier."""

    def sky_rate(self, band: str) -> float:
        """Typical dark-sky level in ADU/s/pixel; NaN if unknown."""

    def header_numbers(self, primary: Mapping[str, Any], extension: Mapping[str, Any]) -> dict[str, float]:
        """Facts of the headers as numbers, by the names of HEADER_NUMBERS; NaN unknown. Never raises on odd values."""

    def night(self, mjd_obs: float) -> int:
        """The local night of a time as YYYYMMDD; 0 if the time is not finite."""


# Name, unit and meaning of what `header_numbers` gives; in every camera the same.
HEADER_NUMBERS: tuple[tuple[str, str, str], ...] = (
    ("header_wcs_failed", "", "1 if the astrometric solution failed"),
    ("header_guider_lost", "", "1 if the guider lost its star"),
    ("header_vsub_off", "", "1 if the bias structure was not subtracted"),
    ("header_seeing", "arcsec", "seeing that the guider or the DIMM reports"),
    ("header_transparency", "", "transparency that the guider reports"),
    ("header_guide_error", "arcsec", "largest mean guide offset"),
    ("header_focus_error", "um", "defocus that the telescope reports"),
    ("header_fwhm", "px", "FWHM that the pipeline measured"),
    ("header_ellipticity", "", "ellipticity that the pipeline measured"),
    ("header_num_saturated", "", "share of saturated pixels that the pipeline counted"),
    ("header_num_bleeds", "px", "pixels in bleed trails that the pipeline counted"),
    ("header_zero_point", "mag", "zero point for 1 ADU/s"),
)


def number(header: Mapping[str, Any], *keys: str) -> float:
    """The first finite number among `keys` of a header; NaN if none. Values may be strings ('NaN', ' 1.2 ')."""
    for key in keys:
        value = header.get(key)
        try:
            found = float(value.strip() if isinstance(value, str) else value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if math.isfinite(found):
            return found
    return math.nan


def exposure_number(primary: Mapping[str, Any]) -> int:
    """EXPNUM of a primary header, which may be a string; 0 if absent or not a positive whole number."""
    value = number(primary, "EXPNUM")
    return int(value) if value > 0 and value == int(value) else 0


def halves(shape: tuple[int, int]) -> list[Region]:
    """The two amplifiers of a CCD that is split at its middle column."""
    rows, cols = shape
    return [Region(0, rows, 0, cols // 2), Region(0, rows, cols // 2, cols)]
