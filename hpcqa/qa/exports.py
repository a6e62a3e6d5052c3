"""Decisions in the forms that other programs read.

* `decisions.fits`, `ccd_decisions.fits`: the tables, with units and comments.
* `bad_expid.txt`: a section to append to legacypipe's list, `EXPNUM[-CCDNAME] flag text`.
* `exclude.txt`, `exclude.fits`: DES's exclude table, one row a CCD, as text and as make_exclude_list writes it.
* `bad.ecsv`: Rubin's list of whole exposures, 64-bit numbers.
* `survey-ccds/`: the survey's tables with the bit of bad exposures brought up to date in `ccd_cuts`.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.coded import distinct
from hpcqa.artifacts.schema import Column, Schema
from hpcqa.errors import DataError
from hpcqa.qa.fitstable import copy_with_integers, write_table

logger = logging.getLogger(__name__)

# legacypipe's ccd_cuts bit for exposures in the bad_expid list (legacypipe.bits CCD_CUTS "badexp_file").
BAD_EXPOSURE_CUT = 0x200
# Flags of bad_expid.txt: 1 possibly saturated, 2 clouds, 3 other.
FLAGS = {"saturated": 1, "clouds": 2}
OTHER_FLAG = 3


@dataclass(frozen=True)
class Source:
    """What made the decisions, for headers."""

    version: str
    model: str
    date: dt.date

    def line(self) -> str:
        return f"hpcqa {self.version}, model {self.model[:12]}, {self.date.isoformat()}"


@dataclass(frozen=True)
class Entry:
    """One thing that is bad: an exposure (ccdnum -1) or a CCD of it."""

    expnum: int
    ccdnum: int
    ccdname: str
    night: int
    reasons: tuple[str, ...]
    p_bad: float

    @property
    def is_whole(self) -> bool:
        return self.ccdnum < 0

    def key(self) -> str:
        """As bad_expid.txt has it: EXPNUM, or EXPNUM-CCDNAME; CCD4 for a CCD without a name."""
        return str(self.expnum) if self.is_whole else f"{self.expnum}-{self.ccdname or f'CCD{self.ccdnum}'}"


def entries(decisions: Mapping[str, np.ndarray], ccds: Mapping[str, np.ndarray]) -> list[Entry]:
    """What the decisions call bad: exposures that are bad as a whole, and single CCDs of the others, by key."""
    whole = (decisions["verdict"] == "bad") & (decisions["extent"] == "exposure")
    nights = dict(zip(decisions["expnum"].tolist(), decisions["night"].tolist(), strict=True))
    found = [_entry(decisions, row, -1, "", int(decisions["night"][row])) for row in np.flatnonzero(whole).tolist()]
    partly = decisions["expnum"][(decisions["verdict"] == "bad") & (decisions["extent"] == "ccds")]
    single = np.flatnonzero((ccds["verdict"] == "bad") & np.isin(ccds["expnum"], partly))
    for row in single.tolist():
        expnum = int(ccds["expnum"][row])
        found.append(_entry(ccds, row, int(ccds["ccdnum"][row]), str(ccds["ccdname"][row]), nights[expnum]))
    return sorted(set(found), key=lambda entry: (entry.expnum, entry.ccdnum))


def _entry(columns: Mapping[str, np.ndarray], row: int, ccdnum: int, ccdname: str, night: int) -> Entry:
    reasons = tuple(name for name in str(columns["reasons"][row]).split(",") if name)
    return Entry(int(columns["expnum"][row]), ccdnum, ccdname, night, reasons, float(columns["p_bad"][row]))


def bad_expid_text(listed: Sequence[Entry], source: Source) -> str:
    """A section of legacypipe's bad_expid.txt; tabs between columns as in its header."""
    lines = [f"# {source.date.isoformat()} -- {source.line()}", "# flags: 1=possibly saturated; 2=clouds; 3=other"]
    for entry in listed:
        flag = next((FLAGS[reason] for reason in entry.reasons if reason in FLAGS), OTHER_FLAG)
        lines.append(f"{entry.key()}\t{flag}\t{_comment(entry)}")
    return "\n".join(lines) + "\n"


def _comment(entry: Entry) -> str:
    return f"{', '.join(entry.reasons) or 'other'} p={entry.p_bad:.2f}"


@dataclass(frozen=True)
class Excluded:
    """Every CCD that is excluded, by key; an exposure that is bad as a whole stands with all its CCDs.

    Attributes:
        expnum: int64; ccdnum: int32; ccdname: str.
        entry: int64, which of the listed entries says so.
    """

    expnum: np.ndarray
    ccdnum: np.ndarray
    ccdname: np.ndarray
    entry: np.ndarray


def excluded_ccds(listed: Sequence[Entry], ccds: Mapping[str, np.ndarray]) -> Excluded:
    """The CCDs of what is listed, each once."""
    rows = np.flatnonzero(np.isin(ccds["expnum"], np.array([entry.expnum for entry in listed], np.int64)))
    place = {(entry.expnum, entry.ccdnum): number for number, entry in enumerate(listed)}
    found: dict[tuple[int, int], tuple[int, str]] = {}
    keys = zip(rows.tolist(), ccds["expnum"][rows].tolist(), ccds["ccdnum"][rows].tolist(), strict=True)
    for row, expnum, ccdnum in keys:
        number = place.get((expnum, -1), place.get((expnum, ccdnum)))
        if number is not None:
            found.setdefault((expnum, ccdnum), (number, str(ccds["ccdname"][row])))
    ordered = sorted(found)
    return Excluded(
        np.array([key[0] for key in ordered], np.int64),
        np.array([key[1] for key in ordered], np.int32),
        np.array([found[key][1] for key in ordered], dtype=object),
        np.array([found[key][0] for key in ordered], np.int64),
    )


def exclude_text(listed: Sequence[Entry], excluded: Excluded, source: Source) -> str:
    """DES's exclude table `#date expnum ccd id ccdnum`."""
    lines = [f"# {source.line()}", "#date expnum ccd id ccdnum"]
    columns = (excluded.expnum, excluded.ccdnum, excluded.ccdname, excluded.entry)
    for expnum, ccdnum, ccdname, number in zip(*(values.tolist() for values in columns), strict=True):
        lines.append(f"{listed[number].night} {expnum} {ccdname or 'nan'} nan {ccdnum}")
    return "\n".join(lines) + "\n"


def exclude_columns(listed: Sequence[Entry], excluded: Excluded, source: Source) -> dict[str, np.ndarray]:
    """The same as the table that DES's make_exclude_list writes."""
    reasons = ["|".join(listed[number].reasons) or "other" for number in excluded.entry.tolist()]
    return {
        "EXPNUM": excluded.expnum,
        "CCDNUM": excluded.ccdnum.astype(np.int16),
        "REASON": np.array([reason[:30] for reason in reasons], dtype=object),
        "ANALYST": np.full(len(reasons), f"hpcqa {source.version}"[:30], dtype=object),
    }


def ecsv_text(listed: Sequence[Entry], source: Source) -> str:
    """Rubin's bad.ecsv: whole exposures alone, sorted; columns and types as in lsst-dm/excluded_visits."""
    lines = [
        "# %ECSV 1.0",
        "# ---",
        "# datatype:",
        "# - {name: exposure, datatype: uint64, description: Exposure number}",
        "# - {name: comment, datatype: string, description: Why it is excluded}",
        f"# meta: !!omap [{{source: '{source.line()}'}}]",
        "# schema: astropy-2.0",
        "# delimiter: ','",
        "exposure,comment",
    ]
    lines += [f'{entry.expnum},"{_comment(entry)}"' for entry in listed if entry.is_whole]
    return "\n".join(lines) + "\n"


def updated_cuts(
    ccd_cuts: np.ndarray, expnum: np.ndarray, ccdnum: np.ndarray, listed: Sequence[Entry], good: np.ndarray
) -> np.ndarray:
    """ccd_cuts with the bit of bad exposures set for what is listed and lifted for what is good: int64, same shape.

    Args:
        expnum, ccdnum: of each row.
        good: int64, exposures with the verdict good; those in review or undecided keep what they have.
    """
    single = {(entry.expnum, entry.ccdnum) for entry in listed if not entry.is_whole}
    bad = np.isin(expnum, np.array([entry.expnum for entry in listed if entry.is_whole], np.int64))
    partly = np.flatnonzero(np.isin(expnum, np.array([key[0] for key in single], np.int64)))
    keys = zip(expnum[partly].tolist(), ccdnum[partly].tolist(), strict=True)
    bad[partly] |= np.fromiter((key in single for key in keys), bool, len(partly))
    cuts = ccd_cuts.astype(np.int64)
    cuts[np.isin(expnum, good)] &= ~np.int64(BAD_EXPOSURE_CUT)
    cuts[bad] |= BAD_EXPOSURE_CUT
    return cuts


# Files --------------------------------------------------------------------------------------------------------------


def write_exports(
    folder: Path,
    decisions: Mapping[str, np.ndarray],
    ccds: Mapping[str, np.ndarray],
    ccd_cuts: np.ndarray,
    source: Source,
    *,
    with_tables: bool,
) -> None:
    """Write every export.

    Args:
        folder: where to.
        with_tables: whether the survey came with tables, which are copied with their new ccd_cuts.
        decisions, ccds: the columns of the two tables of decisions.
        ccd_cuts: int64 (ccd row,), as the survey's tables have it.
    """
    listed = entries(decisions, ccds)
    excluded = excluded_ccds(listed, ccds)
    store.write_text(folder / "bad_expid.txt", bad_expid_text(listed, source))
    store.write_text(folder / "exclude.txt", exclude_text(listed, excluded, source))
    store.write_text(folder / "bad.ecsv", ecsv_text(listed, source))
    origin = source.line()
    columns = exclude_columns(listed, excluded, source)
    write_table(folder / "exclude.fits", exclude_schema(columns["EXPNUM"]), columns, origin)
    write_table(folder / "decisions.fits", catalog.DECISIONS, decisions, origin)
    write_table(folder / "ccd_decisions.fits", catalog.CCD_DECISIONS, ccds, origin)
    good = decisions["expnum"][decisions["verdict"] == "good"]
    cuts = updated_cuts(ccd_cuts, ccds["expnum"], ccds["ccdnum"], listed, good)
    if with_tables:
        write_survey_tables(folder / "survey-ccds", ccds["table"], ccds["table_row"], cuts)


def exclude_schema(expnum: np.ndarray) -> Schema:
    """DES's columns: EXPNUM of 32 bits, unless a number needs more."""
    kind = "int64" if expnum.max(initial=0) > np.iinfo(np.int32).max else "int32"
    columns = (("EXPNUM", kind, "Exposure."), ("CCDNUM", "int16", "CCD."), ("REASON", "str", "Reasons, joined by |."))
    made = tuple(Column(name, dtype, doc) for name, dtype, doc in columns)
    return Schema("exclude", 1, (*made, Column("ANALYST", "str", "Who says so.")))


def write_survey_tables(folder: Path, table: np.ndarray, table_row: np.ndarray, cuts: np.ndarray) -> None:
    """Copies of the survey's FITS tables with new `ccd_cuts`; tables of other kinds are left out, and said so."""
    words, codes = distinct(table)
    paths = [Path(str(word)) for word in words.tolist()]
    names = Counter(path.name for path in paths)
    for code, path in enumerate(paths):
        if not path.name.endswith((".fits", ".fits.gz")) or not path.is_file():
            logger.info("exports: %s is no FITS table; its decisions are in ccd_decisions only", path)
            continue
        rows = np.flatnonzero(codes == code)
        own = path.name if names[path.name] == 1 else f"{path.parent.name}-{path.name}"
        try:
            copy_with_integers(path, folder / own, "ccd_cuts", table_row[rows], cuts[rows])
        except DataError as error:
            logger.warning("exports: no copy with new ccd_cuts: %s", error)
