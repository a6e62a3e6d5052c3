"""Decisions in the forms that other programs read.

* `decisions.fits`, `ccd_decisions.fits`: the tables, with units and comments.
* `bad_expid.txt`: a section to append to legacypipe's list, `EXPNUM[-CCDNAME] flag text`.
* `exclude.txt`: DES's exclude table, one row a CCD.
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
from typing import Any

import numpy as np
from astropy.io import fits

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.schema import Schema

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
    """One thing that is bad: an exposure (ccdname empty, ccdnum -1) or a CCD of it."""

    expnum: int
    ccdnum: int
    ccdname: str
    night: int
    reasons: tuple[str, ...]
    p_bad: float


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
        name = f"{entry.expnum}-{entry.ccdname}" if entry.ccdname else str(entry.expnum)
        flag = next((FLAGS[reason] for reason in entry.reasons if reason in FLAGS), OTHER_FLAG)
        lines.append(f"{name}\t{flag}\t{_comment(entry)}")
    return "\n".join(lines) + "\n"


def _comment(entry: Entry) -> str:
    return f"{', '.join(entry.reasons) or 'other'} p={entry.p_bad:.2f}"


def exclude_text(listed: Sequence[Entry], ccds: Mapping[str, np.ndarray], source: Source) -> str:
    """DES's exclude table `#date expnum ccd id ccdnum`; an exposure that is bad as a whole has a row for each CCD."""
    whole = {entry.expnum: entry for entry in listed if not entry.ccdname}
    single = {(entry.expnum, entry.ccdnum): entry for entry in listed if entry.ccdname}
    rows = []
    for expnum, ccdnum, ccdname in zip(*(ccds[name].tolist() for name in ("expnum", "ccdnum", "ccdname")), strict=True):
        entry = whole.get(expnum) or single.get((expnum, ccdnum))
        if entry is not None:
            rows.append((expnum, ccdnum, f"{entry.night} {expnum} {ccdname or 'nan'} nan {ccdnum}"))
    lines = [f"# {source.line()}", "#date expnum ccd id ccdnum", *(text for _, _, text in sorted(set(rows)))]
    return "\n".join(lines) + "\n"


def ecsv_text(listed: Sequence[Entry], source: Source) -> str:
    """Rubin's bad.ecsv: whole exposures alone, sorted, numbers as int64."""
    lines = [
        "# %ECSV 1.0",
        "# ---",
        "# datatype:",
        "# - {name: exposure, datatype: int64, description: Exposure number}",
        "# - {name: comment, datatype: string, description: Why it is excluded}",
        f"# meta: !!omap [{{source: '{source.line()}'}}]",
        "# schema: astropy-2.0",
        "# delimiter: ','",
        "exposure,comment",
    ]
    lines += [f'{entry.expnum},"{_comment(entry)}"' for entry in listed if not entry.ccdname]
    return "\n".join(lines) + "\n"


def updated_cuts(
    ccd_cuts: np.ndarray, expnum: np.ndarray, ccdnum: np.ndarray, listed: Sequence[Entry], good: np.ndarray
) -> np.ndarray:
    """ccd_cuts with the bit of bad exposures set for what is listed and lifted for what is good: int64, same shape.

    Args:
        expnum, ccdnum: of each row.
        good: int64, exposures with the verdict good; those in review or undecided keep what they have.
    """
    whole = np.array([entry.expnum for entry in listed if not entry.ccdname], np.int64)
    single = {(entry.expnum, entry.ccdnum) for entry in listed if entry.ccdname}
    bad = np.isin(expnum, whole)
    bad |= np.array([key in single for key in zip(expnum.tolist(), ccdnum.tolist(), strict=True)], bool)
    lifted = ccd_cuts.astype(np.int64) & ~np.int64(BAD_EXPOSURE_CUT)
    kept = np.where(np.isin(expnum, good), lifted, ccd_cuts.astype(np.int64))
    return np.asarray(kept | np.where(bad, BAD_EXPOSURE_CUT, 0))


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
    store.write_text(folder / "bad_expid.txt", bad_expid_text(listed, source))
    store.write_text(folder / "exclude.txt", exclude_text(listed, ccds, source))
    store.write_text(folder / "bad.ecsv", ecsv_text(listed, source))
    write_fits(folder / "decisions.fits", catalog.DECISIONS, decisions, source)
    write_fits(folder / "ccd_decisions.fits", catalog.CCD_DECISIONS, ccds, source)
    good = decisions["expnum"][decisions["verdict"] == "good"]
    cuts = updated_cuts(ccd_cuts, ccds["expnum"], ccds["ccdnum"], listed, good)
    if with_tables:
        write_survey_tables(folder / "survey-ccds", ccds["table"], ccds["table_row"], cuts)


def write_fits(path: Path, schema: Schema, columns: Mapping[str, np.ndarray], source: Source) -> None:
    """A table of decisions as a FITS binary table; every column with its unit and comment."""
    made = []
    for column in schema.columns:
        values = columns[column.name]
        if column.dtype == "str":
            values = np.array([str(value).encode("ascii", "replace") for value in values.tolist()] or [b""], "S")
            values = values[: len(columns[column.name])]
        made.append(fits.Column(column.name, _format(values, column.dtype), unit=column.unit or None, array=values))
    table = fits.BinTableHDU.from_columns(made, name=schema.name.upper())
    table.header["ORIGIN"] = source.line()
    for number, column in enumerate(schema.columns, start=1):
        # astropy cuts what does not fit on a card; the whole sentence stands in the Parquet file.
        table.header.comments[f"TTYPE{number}"] = column.doc[:47]
    with store.atomic_path(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(temporary, overwrite=True, output_verify="silentfix")


_FORMATS = {"int64": "K", "int32": "J", "float32": "E", "float64": "D", "bool": "L"}


def _format(values: np.ndarray, dtype: str) -> str:
    return f"{max(1, values.dtype.itemsize)}A" if dtype == "str" else _FORMATS[dtype]


def write_survey_tables(folder: Path, table: np.ndarray, table_row: np.ndarray, cuts: np.ndarray) -> None:
    """Copies of the survey's FITS tables with new `ccd_cuts`; tables of other kinds are left out, and said so."""
    paths = [Path(name) for name in sorted(set(table.tolist()))]
    names = Counter(path.name for path in paths)
    for path in paths:
        if not path.name.endswith((".fits", ".fits.gz")) or not path.is_file():
            logger.info("exports: %s is no FITS table; its decisions are in ccd_decisions only", path)
            continue
        rows = np.flatnonzero(table == str(path))
        own = path.name if names[path.name] == 1 else f"{path.parent.name}-{path.name}"
        with (
            fits.open(path, memmap=False) as content,
            store.atomic_path(folder / own.removesuffix(".gz")) as temporary,
        ):
            number = next(place for place, hdu in enumerate(content) if isinstance(hdu, fits.BinTableHDU))
            content[number] = _with_cuts(content[number], table_row[rows], cuts[rows])
            content.writeto(temporary, overwrite=True, output_verify="silentfix")


def _with_cuts(table: Any, rows: np.ndarray, cuts: np.ndarray) -> Any:
    """The table with the cuts of some rows replaced; a table without the column gets it."""
    name = next((column for column in table.columns.names if column.lower() == "ccd_cuts"), None)
    if name is not None:
        values = np.array(table.data[name])
        values[rows] = cuts
        table.data[name] = values
        return table
    values = np.zeros(len(table.data), np.int64)
    values[rows] = cuts
    added = fits.ColDefs([*table.columns, fits.Column("ccd_cuts", "K", array=values)])
    return fits.BinTableHDU.from_columns(added, header=table.header)
