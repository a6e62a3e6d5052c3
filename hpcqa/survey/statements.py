"""What a label list says, one statement at a time, whatever its format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpcqa import instruments
from hpcqa.reasons import BIT

WHOLE = -1
# Largest plausible exposure number: Rubin's have 13 digits; int64 holds 18 safely.
MOST_DIGITS = 18
FEWEST_DIGITS = 4

CcdNamer = Callable[[str], int | None]


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
    """An exposure number, or None. Sheets write whole numbers as 123.0 at times."""
    text = text.strip()
    if text.endswith(".0"):
        text = text[:-2]
    if not (text.isascii() and text.isdigit() and FEWEST_DIGITS <= len(text) <= MOST_DIGITS):
        return None
    return int(text) or None


def ccd_namer(instrument: str) -> CcdNamer:
    """Numbers of CCD names: the run's camera is asked first, then the others; 'CCD4' and '4' say it themselves."""
    order = [instrument, *(name for name in instruments.KNOWN if name != instrument)]

    def number_of(ccdname: str) -> int | None:
        for name in order:
            number = instruments.get(name).ccdnum_of(ccdname)
            if number is not None:
                return number
        found = re.fullmatch(r"(?:ccd|im)?\s*(\d{1,3})", ccdname.strip(), re.IGNORECASE)
        return int(found[1]) if found else None

    return number_of
