"""Header cards as the Community Pipeline writes them, odd ones included; they follow the truth, but with noise."""

from __future__ import annotations

import math

import numpy as np

from hpcqa.instruments.base import Ccd
from hpcqa.simulate.fitsfile import Card
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.plan import ExposurePlan
from hpcqa.streams import stream

PLVER = "V5.5"
PROCDATE = "2025-09-01T12:00:00"
FILTERS = {
    "u": "u DECam c0006 3500.0 1000.0",
    "g": "g DECam SDSS c0001 4720.0 1520.0",
    "r": "r DECam SDSS c0002 6415.0 1480.0",
    "i": "i DECam SDSS c0003 7835.0 1470.0",
    "z": "z DECam SDSS c0004 9260.0 1520.0",
    "Y": "Y DECam c0005 10095.0 1130.0",
}


def plprocid(plan: ExposurePlan) -> str:
    """Seven hexadecimal digits that name a processing run: one a night."""
    return f"{stream(int(plan.night), 'plprocid').integers(16**7):07x}"


def object_name(plan: ExposurePlan) -> str:
    return f"SIM_{int(plan.ra * 100):05d}_{plan.band}"


def primary_cards(seed: int, plan: ExposurePlan, camera: str, prodtype: str) -> list[Card]:
    """The primary header after EXTEND; `prodtype` is image or dqmask."""
    rng = stream(seed, "simulate", plan.expnum, "header")
    conditions = plan.conditions
    started = plan.started.isoformat(timespec="milliseconds")
    wanted = max(conditions.exptime, 30.0) if conditions.exptime < 30 else conditions.exptime
    cards: list[Card] = [
        ("OBJECT", object_name(plan), "Name of the object observed"),
        ("PROCTYPE", "InstCal", "Data processing level"),
        ("PRODTYPE", prodtype, "Data product type"),
        ("TELESCOP", "simulated", "Telescope name"),
        ("INSTRUME", camera, "Instrument used to obtain these data"),
        ("EXPREQ", wanted, "[s] Requested exposure duration"),
        ("EXPTIME", conditions.exptime, "[s] Exposure duration"),
        ("DATE-OBS", started, "DateTime of observation start (UTC)"),
        ("MJD-OBS", round(plan.mjd_obs, 8), "MJD of observation start"),
        # Some of the archive's files have the number as text.
        ("EXPNUM", str(plan.expnum) if rng.random() < 0.05 else plan.expnum, "Exposure number"),
        ("OBSTYPE", "object", "Type of observation"),
        ("PROPID", "2025A-0001", "Proposal ID"),
        ("FILTER", FILTERS.get(plan.band, plan.band), "Unique filter identifier"),
        ("AOS", True, "AOS data available if true"),
        ("GUIDER", conditions.guider, "Guider (0-absent,1-ok,2-lost star,3-lost all)"),
        ("SKYSTAT", True, "Cloud camera (RASICAM) available if true"),
        ("ERRORS", "None", "SISPI readout errors"),
        ("MULTIEXP", False, "Frame contains multiple exposures if true"),
        ("TELSTAT", conditions.telstat, "Telescope tracking status"),
        ("RA", _sexagesimal(plan.ra / 15), "[HH:MM:SS] Target RA"),
        ("DEC", _sexagesimal(plan.dec), "[DD:MM:SS] Target DEC"),
        ("AIRMASS", round(plan.airmass, 2), "Airmass"),
        ("VSUB", conditions.vsub, "True if CCD substrate voltage is on"),
    ]
    return [*cards, *_weather_cards(plan, rng), *_pipeline_cards(seed, plan, rng)]


def _weather_cards(plan: ExposurePlan, rng: np.random.Generator) -> list[Card]:
    conditions = plan.conditions
    seeing = conditions.fwhm * float(rng.lognormal(0, 0.12))
    clear = min(conditions.transparency * float(rng.lognormal(0, 0.1)), 1.1)
    error = conditions.guide_error * rng.normal(0, 1, 4)
    guided = conditions.guider > 0
    sign = "" if guided else "NaN"
    focus = conditions.focus_error + float(rng.normal(0, 20))
    cards: list[Card] = [
        (
            "TELFOCUS",
            f"{-1039 + rng.normal(0, 50):.2f},{-2334 + rng.normal(0, 50):.2f},{2762 + focus:.2f},71.0,-137.4,0.0",
            "",
        ),
        ("WINDSPD", round(float(rng.gamma(2, 6)), 3), "[m/s] Wind speed"),
        ("HUMIDITY", float(int(rng.uniform(10, 80))), "[%] Ambient relative humidity (outside)"),
        ("DIMMSEE", "NaN", "[arcsec] DIMM Seeing"),
        (
            "DIMM2SEE",
            "NaN" if rng.random() < 0.2 else round(seeing * float(rng.lognormal(-0.1, 0.15)), 3),
            "DIMM2 Seeing",
        ),
        ("G-SEEING", sign or round(seeing, 3), "[arcsec] Guider average seeing"),
        ("G-TRANSP", sign or round(clear, 3), "Guider average sky transparency"),
        ("G-MEANX", sign or round(float(error[0]), 4), "[arcsec] Guider x-axis mean offset"),
        ("G-MEANY", sign or round(float(error[1]), 4), "[arcsec] Guider y-axis mean offset"),
        ("G-MAXX", sign or round(abs(float(error[2])) * 4, 4), "[arcsec] Guider x-axis maximum offset"),
        ("G-MAXY", sign or round(abs(float(error[3])) * 4, 4), "[arcsec] Guider y-axis maximum offset"),
        ("DODZ", round(focus, 2), "[um] Delta-Z from donut analysis"),
        ("DODX", round(float(rng.normal(0, 200)), 2), "[um] X-decenter from donut analysis"),
        ("DODY", round(float(rng.normal(0, 200)), 2), "[um] Y-decenter from donut analysis"),
    ]
    for number, side in enumerate(("FS1", "FS2", "FS3", "FS4", "FN1", "FN2", "FN3", "FN4")):
        fourth = (8.7 if number % 2 else -8.7) + focus / 172 + float(rng.normal(0, 0.1))
        terms = ",".join(f"{value:.2f}" for value in (*rng.normal(0, 1, 2), fourth, *rng.normal(0, 0.2, 6)))
        cards.append((f"DONUT{side}", f"[{terms},]", ""))
    return cards


def _pipeline_cards(seed: int, plan: ExposurePlan, rng: np.random.Generator) -> list[Card]:
    zero_point = measured_zero_point(seed, plan)
    return [
        ("PUPILSKY", round(plan.conditions.sky, 3), "[adu] Sky for the pupil ghost's fit"),
        ("PUPILAMP", round(abs(float(rng.normal(0.01, 0.008))), 4), "Amplitude of the pupil ghost that was removed"),
        ("SKYORDER", 5, ""),
        ("SKYSUB", True, "Sky pattern subtracted"),
        ("MAGZERO", round(zero_point + 2.5 * math.log10(plan.conditions.exptime), 3), "[mag] Magnitude zero point"),
        ("MAGZPT", round(zero_point, 3), "[mag] Magnitude zero point for 1 s"),
        ("PHOTFLAG", 0, ""),
        ("SCAMPFLG", plan.conditions.scampflg, "WCS status: 0 good"),
        ("WCSCAL", plan.conditions.wcs, "WCS calibration"),
        ("PLVER", PLVER, "Community Pipeline version"),
        ("PLPROCID", plprocid(plan), "Processing id"),
        ("PLDSID", f"{plan.band}-{plan.started:%Y%m%dT%H%M%S}", "Dataset id"),
        ("DTNSANAM", f"sim_{plan.expnum}.fits", ""),
    ]


def measured_zero_point(seed: int, plan: ExposurePlan) -> float:
    """Zero point for 1 ADU/s as measured on the exposure: clouds make it small."""
    conditions = plan.conditions
    error = float(stream(seed, "simulate", plan.expnum, "zeropoint").normal(0, 0.02))
    return conditions.zero_point + 2.5 * math.log10(conditions.transparency) + error


def extension_cards(seed: int, plan: ExposurePlan, plane: FocalPlane, ccd: Ccd, facts: dict[str, float]) -> list[Card]:
    """The header of one CCD; `facts` as Renderer measures them."""
    camera = plane.instrument
    own = stream(seed, "simulate", "chip", ccd.ccdnum)
    gains = camera.gain * own.uniform(0.93, 1.07, 2)
    noises = camera.read_noise * own.uniform(0.9, 1.15, 2)
    wells = camera.saturation * own.uniform(0.9, 1.1, 2)
    cards: list[Card] = [
        ("EXTNAME", ccd.ccdname, "Extension name"),
        ("INHERIT", True, "Inherits global header"),
        ("DETPOS", ccd.ccdname, "detector position ID"),
        ("CCDNUM", ccd.ccdnum, "CCD number"),
        ("GAINA", round(float(gains[0]), 4), "[electrons/adu] Gain for amp A"),
        ("GAINB", round(float(gains[1]), 4), "[electrons/adu] Gain for amp B"),
        ("RDNOISEA", round(float(noises[0]), 4), "[electrons] Read noise for amp A"),
        ("RDNOISEB", round(float(noises[1]), 4), "[electrons] Read noise for amp B"),
        ("SATURATA", round(float(wells[0])), "[adu] Saturation for amp A"),
        ("SATURATB", round(float(wells[1])), "[adu] Saturation for amp B"),
        ("SATURATE", round(float(wells.max())), "[adu] Global saturation"),
        ("NSATPIX", int(facts["saturated"]), "Number of saturated pixels"),
        ("NBLEED", int(facts["bleeds"]), "Number of bleed trail pixels"),
        ("FWHM", round(facts["fwhm"], 5), "Median FWHM in pixels"),
        ("ELLIPTIC", round(facts["ellipticity"], 6), "Median ELLIPTICITY"),
        ("AVSKY", round(facts["sky"], 4), "[adu] Average sky"),
        ("AVSIG", round(facts["sigma"], 5), "[adu] Average sky sigma"),
        ("ARAWGAIN", round(float(gains.mean()), 4), "[e/adu] Average raw gain"),
        ("FLATFIL", f"SIM-{plan.night}-{plan.band}F_{ccd.ccdnum:02d}.fits", "Flat image"),
        ("BPMFIL", f"SIM_bpm_{ccd.ccdnum:02d}.fits", "Bad pixel mask"),
    ]
    cards += [(name.upper(), value, comment) for name, value, comment in wcs(plan, plane, ccd)]
    cards += [
        ("FZALGOR", "RICE_1", ""),
        ("FZQMETHD", "SUBTRACTIVE_DITHER_1", ""),
        ("FZQVALUE", 4, ""),
    ]
    return cards


def wcs(plan: ExposurePlan, plane: FocalPlane, ccd: Ccd) -> list[Card]:
    """The projection about the pointing, without distortion; x of the focal plane is to the east, y to the north."""
    rows, cols = plane.pixels(ccd, 0.0, 0.0)
    up, right = plane.instrument.rows_along, plane.instrument.cols_along
    scale = plane.degrees_per_pixel
    return [
        ("CTYPE1", "RA---TPV", "WCS projection type for this axis"),
        ("CTYPE2", "DEC--TPV", "WCS projection type for this axis"),
        ("CUNIT1", "deg", "Axis unit"),
        ("CUNIT2", "deg", "Axis unit"),
        ("CRVAL1", plan.ra, "[deg] World coordinate on this axis"),
        ("CRVAL2", plan.dec, "[deg] World coordinate on this axis"),
        ("CRPIX1", cols + 1, "Reference pixel on this axis"),
        ("CRPIX2", rows + 1, "Reference pixel on this axis"),
        ("CD1_1", right[0] * scale, "Linear projection matrix"),
        ("CD1_2", up[0] * scale, "Linear projection matrix"),
        ("CD2_1", right[1] * scale, "Linear projection matrix"),
        ("CD2_2", up[1] * scale, "Linear projection matrix"),
        # TPV without coefficients would map everything to one point.
        ("PV1_1", 1.0, "Projection distortion parameter"),
        ("PV2_1", 1.0, "Projection distortion parameter"),
    ]


def _sexagesimal(value: float) -> str:
    sign = "-" if value < 0 else ""
    thousandths = round(abs(value) * 3600_000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
