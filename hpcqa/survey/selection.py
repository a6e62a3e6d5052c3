"""The cuts that the configuration asks for, each from plain columns into the ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from hpcqa.config import ManifestConfig
from hpcqa.errors import ConfigError, DataError
from hpcqa.instruments.base import CcdContext, Instrument
from hpcqa.survey.coded import Coded, distinct
from hpcqa.survey.cuts import Ledger

logger = logging.getLogger(__name__)

# The north galactic pole in ICRS (J2000) degrees, as IAU 1958 in the Hipparcos catalogue's realisation.
POLE_RA, POLE_DEC = 192.85948, 27.12825


def galactic_latitude(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Galactic latitude in degrees of ICRS positions in degrees."""
    rise, declination = np.radians(POLE_DEC), np.radians(dec)
    sine = np.sin(declination) * np.sin(rise) + np.cos(declination) * np.cos(rise) * np.cos(np.radians(ra - POLE_RA))
    return np.asarray(np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))))


def told(values: np.ndarray, where: np.ndarray, say: Callable[[float], str], decimals: int) -> Coded:
    """Values in words, rounded so that few distinct texts remain; rows outside `where` get an empty word."""
    rounded = np.where(where, np.round(values.astype(np.float64), decimals), np.nan)
    unique, index = distinct(rounded)
    return Coded(index.astype(np.int32), tuple("" if math.isnan(value) else say(value) for value in unique))


def apply(
    ledger: Ledger,
    config: ManifestConfig,
    *,
    expnum: np.ndarray,
    band: Coded,
    numbers: Mapping[str, np.ndarray],
) -> None:
    """Apply every cut of the configuration. `numbers` has exptime, ebv, ra, dec, ccd_cuts and mjd_obs, each (N,).

    Raises:
        ConfigError: a list file is not there.
        DataError: a list file holds something else than exposure numbers.
    """
    if config.bands:
        ledger.add("band", band.ask(lambda word: word not in config.bands, bool), band.rename(lambda w: f"band {w}"))
    exptime = numbers["exptime"]
    short = exptime < config.min_exptime
    ledger.add("exptime", short, told(exptime, short, lambda value: f"exptime {value:g} s", 1))
    if config.max_ebv > 0:
        _cut_reddened(ledger, config.max_ebv, numbers["ebv"])
    if config.min_abs_glat > 0:
        latitude = np.abs(galactic_latitude(numbers["ra"], numbers["dec"]))
        low = latitude < config.min_abs_glat
        ledger.add("glat", low, told(latitude, low, lambda value: f"|b| {value:g} deg", 0))
    flagged = (numbers["ccd_cuts"] & config.ccd_cuts) != 0
    hit = np.where(flagged, numbers["ccd_cuts"] & config.ccd_cuts, 0)
    ledger.add("ccd_cuts", flagged, told(hit, flagged, lambda value: f"ccd_cuts {int(value):#x}", 0))
    _cut_dates(ledger, config, numbers["mjd_obs"])
    _cut_listed(ledger, config, expnum)


def _cut_reddened(ledger: Ledger, limit: float, ebv: np.ndarray) -> None:
    if len(ebv) and np.isnan(ebv).all():
        logger.warning("manifest.max_ebv=%g cuts nothing: no table has a column ebv.", limit)
    red = ebv > limit
    ledger.add("ebv", red, told(ebv, red, lambda value: f"E(B-V) {value:g}", 2))


def _cut_dates(ledger: Ledger, config: ManifestConfig, mjd_obs: np.ndarray) -> None:
    outside = np.zeros(len(mjd_obs), bool)
    if config.first_mjd > 0:
        outside |= mjd_obs < config.first_mjd
    if config.last_mjd > 0:
        outside |= mjd_obs > config.last_mjd
    ledger.add("date", outside, told(mjd_obs, outside, lambda value: f"MJD {value:.0f}", 0))


def _cut_listed(ledger: Ledger, config: ManifestConfig, expnum: np.ndarray) -> None:
    if config.only:
        wanted = read_expnums(Path(config.only), "manifest.only")
        ledger.add("not_listed", ~np.isin(expnum, wanted), "")
    if config.exclude:
        unwanted = read_expnums(Path(config.exclude), "manifest.exclude")
        ledger.add("excluded", np.isin(expnum, unwanted), "")


def read_expnums(path: Path, key: str) -> np.ndarray:
    """Exposure numbers, one a line; what follows a # or a blank is a comment: int64 (N,).

    Raises:
        ConfigError: no such file.
        DataError: a line that does not start with a number.
    """
    path = path.expanduser()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{key}={path}: not a plain file; correct the path.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{key}={path}: not found; correct the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}={path}: cannot be read ({error}); expected one exposure number a line.") from None
    numbers = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        if not words[0].isascii() or not words[0].isdigit() or len(words[0]) > 18:
            raise DataError(f"{path}:{number}: found {words[0]!r}; expected one exposure number a line.")
        numbers.append(int(words[0]))
    return np.array(numbers, np.int64)


class _Recorder:
    """A context that notes which facts are looked at."""

    def __init__(self, context: CcdContext) -> None:
        self._context = context
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.seen.add(name)
        return getattr(self._context, name)


def cut_dead(
    ledger: Ledger,
    instrument: Instrument,
    mine: np.ndarray,
    *,
    expnum: np.ndarray,
    ccdnum: np.ndarray,
    band: Coded,
    mjd_obs: np.ndarray,
    plver: Coded,
) -> None:
    """Cut the CCDs that the camera knows not to have worked, among the rows `mine` (bool, N).

    A camera that answers after a look at the CCD's number alone has answered for all its rows: ten million rows cost
    about as many questions as there are rows of the few CCDs with a history.
    """
    rows = np.flatnonzero(mine & ledger.open_rows)
    numbers, index = distinct(ccdnum[rows])
    order = np.argsort(index, kind="stable")
    edges = np.searchsorted(index[order], np.arange(len(numbers) + 1))
    words: dict[str, int] = {"": 0}
    codes = np.zeros(len(ledger.bits), np.int32)

    for place, number in enumerate(numbers.tolist()):
        members = rows[order[edges[place] : edges[place + 1]]]
        # Plain Python values: numpy's scalars cost more than the question.
        facts = zip(
            expnum[members].tolist(),
            [band.words[code] for code in band.codes[members].tolist()],
            mjd_obs[members].tolist(),
            [plver.words[code] for code in plver.codes[members].tolist()],
            strict=True,
        )
        contexts = (CcdContext(number, *fact) for fact in facts)
        recorder = _Recorder(next(contexts))
        answer = instrument.is_dead(cast(CcdContext, recorder))
        if recorder.seen <= {"ccdnum"}:
            codes[members] = words.setdefault(answer, len(words))
            continue
        answers = [answer, *(instrument.is_dead(context) for context in contexts)]
        codes[members] = [words.setdefault(text, len(words)) for text in answers]
    ledger.add("dead_ccd", codes > 0, Coded(codes, tuple(words)))
