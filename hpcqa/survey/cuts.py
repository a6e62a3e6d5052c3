"""Why a row of the survey is not processed: a vocabulary of bits, and a ledger that keeps what was found in words.

The order is the order of the funnel: first what makes a row unusable, then which processing of an exposure counts, then
what the configuration asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcqa.survey.coded import Coded, constant, distinct, pairs


@dataclass(frozen=True)
class Cut:
    """One reason: its bit and a sentence for people."""

    name: str
    bit: int
    sentence: str


_SENTENCES: tuple[tuple[str, str], ...] = (
    ("no_expnum", "The exposure number is missing or 0 and the file name has none."),
    ("no_module", "The camera has no module in hpcqa yet."),
    ("unknown_ccd", "The camera has no CCD of that name or number."),
    ("unknown_band", "The camera has no such band."),
    ("no_folder", "The image folder is missing."),
    ("no_file", "The image file is missing."),
    ("unreadable", "The image file's headers cannot be read, or say that it is no image."),
    ("superseded", "A later processing of the same exposure takes its place."),
    ("duplicate", "Another row is the same CCD of the same exposure."),
    ("other_camera", "Another camera of this run has an exposure of the same number."),
    ("dead_ccd", "The CCD is known not to have worked at that time."),
    ("band", "The band is not among manifest.bands."),
    ("exptime", "The exposure is shorter than manifest.min_exptime."),
    ("ebv", "E(B-V) exceeds manifest.max_ebv."),
    ("glat", "The galactic latitude is below manifest.min_abs_glat."),
    ("ccd_cuts", "The table's ccd_cuts has a bit of manifest.ccd_cuts."),
    ("date", "The date is outside manifest.first_mjd and manifest.last_mjd."),
    ("not_listed", "The exposure is not in the list manifest.only."),
    ("excluded", "The exposure is in the list manifest.exclude."),
)
CUTS = tuple(Cut(name, 1 << position, sentence) for position, (name, sentence) in enumerate(_SENTENCES))
BIT = {cut.name: cut.bit for cut in CUTS}


def names_of(bits: int) -> list[str]:
    """The names of the bits that are set, in the funnel's order."""
    return [cut.name for cut in CUTS if bits & cut.bit]


class Ledger:
    """The cuts of N rows: bits (N,) and, for each row, what was found."""

    def __init__(self, rows: int) -> None:
        self.bits = np.zeros(rows, np.int64)
        self._detail = constant("", rows)

    def add(self, name: str, where: np.ndarray, detail: Coded | str) -> None:
        """Cut some rows.

        Args:
            name: a name of CUTS.
            where: bool (N,).
            detail: what was found, for all rows of the survey (N,) or one text for those that are cut.
        """
        rows = np.flatnonzero(where)
        if not len(rows):
            return
        self.bits[rows] |= BIT[name]
        said = constant(detail, len(rows)) if isinstance(detail, str) else Coded(detail.codes[rows], detail.words)
        before = self._detail
        combined, index = pairs(before.codes[rows], said.codes, len(said.words))
        words = list(before.words)
        places = []
        for first, second in combined:
            places.append(len(words))
            words.append("; ".join(text for text in (before.words[first], said.words[second]) if text))
        before.codes[rows] = np.array(places, np.int32)[index]
        self._detail = Coded(before.codes, tuple(words))

    @property
    def open_rows(self) -> np.ndarray:
        """Rows that no cut has touched: bool (N,)."""
        return np.asarray(self.bits == 0)

    @property
    def detail(self) -> Coded:
        """What was found, row by row; empty for rows that are not cut."""
        return self._detail


def funnel(bits: np.ndarray) -> list[tuple[Cut, int, int]]:
    """For each cut that applies: rows that have it, and rows left when it and all before it are applied."""
    lines = []
    kept = np.ones(len(bits), bool)
    for cut in CUTS:
        has = (bits & cut.bit) != 0
        kept &= ~has
        if has.any():
            lines.append((cut, int(has.sum()), int(kept.sum())))
    return lines


def funnel_text(bits: np.ndarray, *, exposures: Sequence[int] | np.ndarray) -> list[str]:
    """The funnel as lines for the log. `exposures` (N,) is each row's exposure number."""
    expnum = np.asarray(exposures)
    lines = [f"{len(bits)} CCD rows, {_num_distinct(expnum)} exposures in the tables"]
    for cut, has, left in funnel(bits):
        lines.append(f"  {cut.name:<13} cuts {has:>9}  leaves {left:>9}  {cut.sentence}")
    kept = bits == 0
    lines.append(f"{int(kept.sum())} CCD rows, {_num_distinct(expnum[kept])} exposures are left")
    return lines


def _num_distinct(values: np.ndarray) -> int:
    return len(distinct(values)[0])
