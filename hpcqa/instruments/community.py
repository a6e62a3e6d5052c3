"""What cameras share whose images the NOIRLab Community Pipeline (CP) reduces: names, masks, headers, nights.

Sources: the CP's file names as in the NOIRLab archive; the data-quality codes and bits as the DECam data handbook and
legacypipe (py/legacypipe/decam.py, bits.py, read 2025) use them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hpcqa.errors import DataError
from hpcqa.instruments.base import HEADER_NUMBERS, Ccd, CcdContext, FileName, Region, halves, number

# c4d_170916_045042_ooi_r_ls9.fits.fz, and with the CCD in the name: ..._ls9.N26.fits, ..._v1-N10.fits
_NAME = re.compile(
    r"^(?P<prefix>[a-z0-9]{3})_(?P<date>\d{6})_(?P<time>\d{6})_o(?P<process>[a-z])(?P<product>[a-z])"
    r"(?:_(?P<filter>[A-Za-z0-9]+))?(?:_(?P<version>[A-Za-z0-9]+))?(?:[.-](?P<ccd>[A-Za-z]+\d+))?\.fits(?:\.fz|\.gz)?$"
)
_ZEROS = re.compile(r"(?<=[A-Z])0+(?=\d)")
_PRODUCTS = {"i": "image", "d": "dqmask", "w": "wtmap"}
_LETTERS = {"dqmask": "ood", "wtmap": "oow", "image": "ooi"}
_PROCESSED = "ok"  # ooi: calibrated; oki: the same with the sky subtracted. ori is raw, opi resampled, osi stacked.

# Before V3.5.0 the mask held bits; from then on one code a pixel.
FIRST_WITH_CODES = (3, 5, 0)
# Before V4.8.0 the cosmic-ray and satellite maskers were confused in some runs, so code 5 is not to be believed.
FIRST_WITH_GOOD_COSMICS = (4, 8, 0)
CODE_COSMIC, CODE_STREAK = 5, 8
LARGEST_CODE = 8
# Pixels that were repaired, or that a bright star or a satellite trail crosses, still show what we look for.
DESDM_USABLE_BITS = 4 | 32 | 256 | 1024 | 2048  # INTERP, STAR, SSXTALK, STREAK, FIX


def parse_version(plver: str) -> tuple[int, int, int] | None:
    """The numbers of a PLVER such as V4.8.2a, V5.5.2LS, V5.0beta or 'DES V3.8+1'; None where there are none."""
    found = re.match(r"^(?:DES\s+)?V?\s*(\d+)\.(\d+)(?:\.(\d+))?", plver.strip(), re.IGNORECASE)
    if not found:
        return None
    return int(found[1]), int(found[2]), int(found[3] or 0)


def mask_kind(plver: str) -> str:
    """How a mask of this pipeline version is written: codes, bits, desdm (DESDM's bits, 'DES Y6A1+1') or unknown."""
    version = parse_version(plver)
    if version is not None:
        return "codes" if version >= FIRST_WITH_CODES else "bits"
    return "desdm" if plver.strip().upper().startswith("DES") else "unknown"


def masked_pixels(dq: np.ndarray, plver: str) -> np.ndarray:
    """Which pixels to leave out: bool, same shape as `dq` (integers).

    An unknown version is read as codes if no value exceeds the largest code, else as bits.
    """
    kind = mask_kind(plver)
    if kind == "unknown":
        kind = "codes" if dq.size == 0 or int(dq.max()) <= LARGEST_CODE else "bits"
    if kind == "desdm":
        return np.asarray((dq & ~DESDM_USABLE_BITS) != 0)
    masked = dq != 0
    if kind == "codes":
        masked &= dq != CODE_STREAK
        if (parse_version(plver) or FIRST_WITH_GOOD_COSMICS) < FIRST_WITH_GOOD_COSMICS:
            masked &= dq != CODE_COSMIC
    return np.asarray(masked)


class CommunityCamera:
    """The part of `Instrument` that follows from the CP; a camera's class gives the rest."""

    name: str
    prefix: str
    cameras: tuple[str, ...]
    ccds: tuple[Ccd, ...]
    shape: tuple[int, int]
    pixel_scale: float
    bands: tuple[str, ...]
    saturation: float
    gain: float
    read_noise: float
    rows_along: tuple[int, int] = (1, 0)
    cols_along: tuple[int, int] = (0, -1)
    sky_rates: ClassVar[dict[str, float]] = {}
    # Hours from 0 h UTC to local noon, where one night ends and the next begins (Cerro Tololo: 70.8 degrees west).
    noon_utc: float = 16.72

    def __init__(self) -> None:
        self._numbers = {ccd.ccdname.upper(): ccd.ccdnum for ccd in self.ccds}
        self._bands = {band.lower(): band for band in self.bands}

    def ccdnum_of(self, ccdname: str) -> int | None:
        return self._numbers.get(_ZEROS.sub("", ccdname.strip().upper()))

    def parse_file_name(self, path: Path) -> FileName | None:
        found = _NAME.match(path.name)
        if not found or found["prefix"] != self.prefix:
            return None
        day, time = found["date"], found["time"]
        prodtype = _PRODUCTS.get(found["product"], "other") if found["process"] in _PROCESSED else "other"
        text = found["filter"] or ""
        return FileName(
            prodtype=prodtype,
            band=self.band_of(text) or text,
            version=found["version"] or "",
            date=f"20{day[:2]}-{day[2:4]}-{day[4:]}T{time[:2]}:{time[2:4]}:{time[4:]}",
            ccdname=found["ccd"] or "",
        )

    def image_name(self, prodtype: str, started: datetime, band: str, version: str) -> str:
        return f"{self.prefix}_{started:%y%m%d_%H%M%S}_{_LETTERS[prodtype]}_{band}_{version}.fits.fz"

    def companion(self, path: Path, prodtype: str) -> Path:
        found = _NAME.match(path.name)
        if not found or found["prefix"] != self.prefix or prodtype not in _LETTERS:
            raise DataError(f"{path}: not a {self.name} file name, so it has no {prodtype} file beside it.")
        head, tail = path.name[: found.start("process") - 1], path.name[found.end("product") :]
        return path.with_name(head + _LETTERS[prodtype] + tail)

    def band_of(self, text: str) -> str | None:
        words = text.split()
        if not words:
            return None
        # Case tells Y from y and VR from vr in no list: the camera has no two bands that differ by case only.
        return self._bands.get(words[0].lower())

    def masked(self, dq: np.ndarray, context: CcdContext) -> np.ndarray:
        return masked_pixels(dq, context.plver)

    def bad_regions(self, context: CcdContext, shape: tuple[int, int]) -> list[Region]:
        return []

    def is_dead(self, context: CcdContext) -> str:
        return ""

    def saturation_of(self, context: CcdContext) -> float:
        return math.inf

    def amplifiers(self, shape: tuple[int, int], ccdnum: int) -> list[Region]:
        return halves(shape)

    def sky_rate(self, band: str) -> float:
        return self.sky_rates.get(band, math.nan)

    def header_numbers(self, primary: Mapping[str, Any], extension: Mapping[str, Any]) -> dict[str, float]:
        numbers = {
            "header_wcs_failed": _wcs_failed(primary),
            "header_guider_lost": _guider_lost(primary),
            "header_vsub_off": _switched_off(primary.get("VSUB")),
            "header_seeing": number(primary, "G-SEEING", "DIMM2SEE", "DIMMSEE"),
            "header_transparency": number(primary, "G-TRANSP"),
            "header_guide_error": _largest(number(primary, "G-MEANX"), number(primary, "G-MEANY")),
            "header_focus_error": number(primary, "DODZ"),
            "header_fwhm": number(extension, "FWHM"),
            "header_ellipticity": number(extension, "ELLIPTIC"),
            "header_num_saturated": number(extension, "NSATPIX") / (self.shape[0] * self.shape[1]),
            "header_num_bleeds": number(extension, "NBLEED"),
            "header_zero_point": _zero_point(primary),
        }
        return {name: numbers[name] for name, _, _ in HEADER_NUMBERS}

    def night(self, mjd_obs: float) -> int:
        if not math.isfinite(mjd_obs) or not 0 < mjd_obs < 1e5:
            return 0
        day = date(1858, 11, 17) + timedelta(days=math.floor(mjd_obs - self.noon_utc / 24))
        return day.year * 10000 + day.month * 100 + day.day


def _wcs_failed(primary: Mapping[str, Any]) -> float:
    """Legacypipe's rule: fine if WCSCAL starts with 'success' or SCAMPFLG is 0 (V4.8.2a wrote Failed for good ones)."""
    text = str(primary.get("WCSCAL", "")).strip().lower()
    flag = number(primary, "SCAMPFLG")
    if not text and math.isnan(flag):
        return math.nan
    return 0.0 if text.startswith("success") or flag == 0 else 1.0


def _guider_lost(primary: Mapping[str, Any]) -> float:
    """GUIDER is 0 absent, 1 right, 2 lost star, 3 lost all."""
    value = number(primary, "GUIDER")
    return {1.0: 0.0, 2.0: 1.0, 3.0: 1.0}.get(value, math.nan)


def _switched_off(value: Any) -> float:
    if isinstance(value, str):
        value = {"T": True, "TRUE": True, "F": False, "FALSE": False}.get(value.strip().upper())
    return 1.0 - float(value) if isinstance(value, (bool, np.bool_)) else math.nan


def _largest(*values: float) -> float:
    finite = [abs(value) for value in values if math.isfinite(value)]
    return max(finite, default=math.nan)


def _zero_point(primary: Mapping[str, Any]) -> float:
    """MAGZPT is for one second; MAGZERO for the whole exposure."""
    exptime = number(primary, "EXPTIME")
    whole = number(primary, "MAGZERO")
    per_second = number(primary, "MAGZPT")
    if math.isnan(per_second) and exptime > 0:
        return whole - 2.5 * math.log10(exptime)
    return per_second
