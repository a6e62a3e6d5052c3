"""What a label list says, one statement at a time, whatever its format."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpcqa import instruments
from hpcqa.reasons import BIT

WHOLE = -1
NO_NUMBER = "no exposure number"  # why a line makes no statement
# Largest plausible exposure number: Rubin's have 13 digits; int64 holds 18 safely.
MOST_DIGITS = 18
FEWEST_DIGITS = 4
_PLAIN = re.compile(r"(?:D00)?(\d+)(?:\.0*)?", re.ASCII)
_POWER = re.compile(r"(\d)(?:\.(\d+))?[eE]\+?(\d{1,2})", re.ASCII)


@dataclass(frozen=True)
class Statement:
    """One line's word on one exposure or CCD. `line` counts from 1; `reasons` are bits and not 0 if `bad`."""

    expnum: int
    ccdnum: int
    bad: bool
    reasons: int
    source: str
    line: int
    text: str
    severity: float = math.nan


@dataclass
class Reading:
    """What came out of one list: statements, and what was left out, counted by cause."""

    path: Path
    kind: str
    statements: list[Statement] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def skip(self, cause: str, line: int) -> None:
        """Note a line that makes no statement, and why."""
        self.left_out.setdefault(cause, []).append(line)

    def bad(self, expnum: int, ccdnum: int, reasons: int, source: str, line: int, text: str) -> None:
        """Note a bad exposure or CCD; a reason that did not parse is `other`."""
        self.statements.append(Statement(expnum, ccdnum, True, reasons or BIT["other"], source, line, text))


def parse_expnum(text: str) -> int | None:
    """An exposure number, or None. Sheets write 346343 as 346343.0 or 3.46343e+05 at times, and DES as D00346343.

    A power of ten that has lost digits (2.02505E+12) is no number of an exposure.
    """
    text = text.strip()
    plain, power = _PLAIN.fullmatch(text), _POWER.fullmatch(text)
    digits = plain[1] if plain else power[1] + (power[2] or "") if power else ""
    if power and len(digits) != int(power[3]) + 1:
        return None
    return (int(digits) or None) if FEWEST_DIGITS <= len(digits) <= MOST_DIGITS else None


def split_key(text: str) -> tuple[int | None, str]:
    """The exposure's number and the CCD's name of EXPNUM or EXPNUM-CCD; no number where there is none."""
    number, _, ccd = text.strip().partition("-")
    return parse_expnum(number), ccd.strip()


class CcdNamer:
    """Numbers of CCD names in lists that do not say which camera they speak of.

    An exposure of the survey is of its own camera; others are tried with the run's camera first. 'CCD4' and '4' say
    their number themselves.

    Args:
        instrument: the run's camera, by its name in the configuration.
        expnum: exposures of the survey, sorted: int64 (E,).
        camera: their cameras as tables call them: object (E,).
    """

    def __init__(self, instrument: str, expnum: np.ndarray | None = None, camera: np.ndarray | None = None) -> None:
        names = [instrument, *(name for name in instruments.KNOWN if name != instrument)]
        self._order = [instruments.get(name) for name in names]
        self._expnum = np.empty(0, np.int64) if expnum is None else expnum
        self._camera = np.empty(0, object) if camera is None else camera

    def number(self, ccdname: str, expnum: int) -> int | None:
        """The CCD's number, or None where no camera has such a CCD."""
        found = self.candidates(ccdname, expnum)
        return found[0] if found else None

    def candidates(self, ccdname: str, expnum: int) -> list[int]:
        """All numbers that the name may stand for, the likeliest first."""
        place = int(np.searchsorted(self._expnum, expnum))
        known = place < len(self._expnum) and self._expnum[place] == expnum
        own = instruments.for_camera(str(self._camera[place])) if known else None
        order = self._order if own is None else [own, *self._order]
        numbers = [instrument.ccdnum_of(ccdname) for instrument in order]
        found = [number for number in numbers if number is not None]
        digits = re.fullmatch(r"(?:ccd|im)?\s*(\d{1,3})(?:\.0)?", ccdname.strip(), re.IGNORECASE)
        if found or not digits:
            return found
        is_there = own is None or int(digits[1]) in {ccd.ccdnum for ccd in own.ccds}
        return [int(digits[1])] if is_there else []
