"""A survey without a table: folders are searched for images, and what a table would say is read from their headers."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa import instruments
from hpcqa.errors import DataError
from hpcqa.instruments.base import NO_NAME, FileName, Instrument
from hpcqa.observe import track
from hpcqa.survey.coded import Coded, CodedBuilder
from hpcqa.survey.images import Located, not_text, shown
from hpcqa.survey.tables import CcdRows, wanted_columns

logger = logging.getLogger(__name__)

SUFFIXES = (".fits", ".fits.fz", ".fits.gz")
WORKERS = 4
UNKNOWN = "unknown"  # camera
# Header keywords of each column, tried in turn in the extension and then in the primary header.
KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "expnum": ("EXPNUM",),
    "band": ("FILTER", "BAND"),
    "mjd_obs": ("MJD-OBS",),
    "ccdname": ("EXTNAME", "DETPOS"),
    "ccdnum": ("CCDNUM",),
    "exptime": ("EXPTIME",),
    "width": ("ZNAXIS1", "NAXIS1"),
    "height": ("ZNAXIS2", "NAXIS2"),
    "fwhm": ("FWHM",),
    "plver": ("PLVER",),
    "plprocid": ("PLPROCID",),
    "object": ("OBJECT",),
    "camera": ("INSTRUME",),
    "prodtype": ("PRODTYPE",),
}


@dataclass(frozen=True)
class Found:
    """One image file and the camera whose file name it has; None where it is no camera's: then its headers may tell."""

    path: Path
    root: Path
    instrument: Instrument | None
    name: FileName | None


def find_images(folders: Sequence[Path], prefer: str) -> list[Found]:
    """Image files under folders, sorted by path; masks, weights and tables are left out. Links to folders are followed.

    Raises:
        DataError: there is not one.
    """
    order = [instruments.get(prefer), *(instruments.get(name) for name in instruments.KNOWN if name != prefer)]
    found = []
    seen: set[tuple[int, int]] = set()
    for root in (root for root in folders if _is_new(root, seen)):
        for folder, folders_below, names in os.walk(root, onerror=_warn, followlinks=True):
            folders_below[:] = sorted(name for name in folders_below if _is_new(Path(folder) / name, seen))
            for name in sorted(names):
                entry = _identify(Path(folder) / name, root, order) if name.lower().endswith(SUFFIXES) else None
                if entry is not None:
                    found.append(entry)
    if not found:
        raise DataError(f"{', '.join(map(str, folders))}: no image files; expected names that end in {_in_words()}.")
    return found


def _in_words() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _warn(error: OSError) -> None:
    logger.warning("%s: the folder cannot be read (%s); what is in it is not surveyed.", error.filename, error.strerror)


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is met for the first time: links may lead back up, or to one place twice."""
    try:
        about = folder.stat()
    except OSError:
        return True  # the walk will say what is wrong with it
    key = about.st_dev, about.st_ino
    is_new = key not in seen
    seen.add(key)
    return is_new


def _identify(path: Path, root: Path, order: Sequence[Instrument]) -> Found | None:
    for instrument in order:
        name = instrument.parse_file_name(path)
        if name is not None:
            return Found(path, root, instrument, name) if name.prodtype == "image" else None
    return None if path.name.startswith(("survey-ccds", "ccds-annotated")) else Found(path, root, None, None)


def listing_digest(found: Sequence[Found]) -> str:
    """SHA-256 of the files' paths, sizes and times of change."""
    digest = hashlib.sha256()
    for entry in found:
        try:
            about = entry.path.stat()
            digest.update(os.fsencode(entry.path) + f"\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(os.fsencode(entry.path) + b"\0gone\n")
    return digest.hexdigest()


def read_headers(found: Sequence[Found]) -> CcdRows:
    """One row for each image extension of each file; one row with its problem for a file that cannot be read."""
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        # astropy warns of every odd card; what matters becomes a row's reason.
        warnings.simplefilter("ignore")
        results = list(track(pool.map(_read_one, found), "headers", total=len(found), unit="files"))
    records = [record for rows in results for record in rows]
    text = {entry.name: CodedBuilder() for entry in wanted_columns() if entry.kind == "text"}
    numbers = {}
    for entry in wanted_columns():
        if entry.kind == "text":
            words = [str(record.get(entry.name, "") or "") for record in records]
            text[entry.name].add(np.arange(len(words), dtype=np.int32), words)
        else:
            values = [_number(record.get(entry.name), entry.filler) for record in records]
            numbers[entry.name] = np.array(values).astype(entry.kind)
    return CcdRows(
        text={name: builder.finish() for name, builder in text.items()},
        numbers=numbers,
        table=_coded([str(record["root"]) for record in records]),
        table_row=np.arange(len(records), dtype=np.int64),
        located=_located(records),
    )


def _located(records: Sequence[Mapping[str, Any]]) -> Located:
    none = np.zeros(len(records), bool)
    problems = [str(record.get("problem", "")) for record in records]
    return Located(
        path=_coded([shown(record["path"]) for record in records]),
        problem=_coded(problems),
        no_folder=none,
        no_file=none,
        unreadable=np.array([bool(problem) for problem in problems]),
    )


def _coded(words: Sequence[str]) -> Coded:
    builder = CodedBuilder()
    builder.add(np.arange(len(words), dtype=np.int32), words)
    return builder.finish()


def _number(value: Any, filler: Any) -> Any:
    try:
        number = float(str(value).strip())
    except ValueError:
        return filler
    if not math.isfinite(number):
        return filler
    return int(number) if isinstance(filler, int) and abs(number) < 2**31 else number


def _read_one(entry: Found) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "path": entry.path,
        "root": entry.root,
        "image_filename": shown(entry.path.name),
        "camera": entry.instrument.cameras[0] if entry.instrument is not None else UNKNOWN,
        "band": entry.name.band if entry.name is not None else "",
        "expnum": entry.name.expnum if entry.name is not None else 0,
        "ccdname": entry.name.ccdname if entry.name is not None else "",
    }
    if not_text(entry.path):
        return [{**base, "problem": f"the file's {not_text(entry.path)}"}]
    try:
        # A pipe would never answer.
        if not entry.path.is_file():
            return [{**base, "problem": "not a plain file, or gone"}]
        rows = _read_extensions(entry.path)
    except Exception as error:  # noqa: BLE001 - a damaged file fails anywhere in astropy; it becomes a row
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [{**base, "problem": f"headers do not read ({said})"}]
    if not rows:
        return [{**base, "problem": "no image in the file"}]
    told = [{key: value for key, value in row.items() if not _is_blank(value)} for row in rows]
    if entry.instrument is not None:
        return [{**base, **row, "camera": base["camera"]} for row in told]
    return [{**base, **row, **_by_headers(row)} for row in told]


def _by_headers(row: Mapping[str, Any]) -> dict[str, str]:
    """The camera, and why it is no image if so, of a file whose name tells neither."""
    prodtype = str(row.get("prodtype", "image")).strip().lower()
    problem = "" if prodtype == "image" else f"not an image (PRODTYPE {prodtype})"
    return {"camera": str(row.get("camera", UNKNOWN)).strip().lower(), "problem": problem}


def _is_blank(value: Any) -> bool:
    return value is None or str(value).strip() in ("", "0", NO_NAME)


def _read_extensions(path: Path) -> list[dict[str, Any]]:
    from astropy.io import fits

    rows = []
    with fits.open(path, disable_image_compression=True, memmap=False, lazy_load_hdus=True) as hdus:
        primary = hdus[0].header
        for index, hdu in enumerate(hdus):
            header = hdu.header
            if not _is_image(header):
                continue
            row = {column: _look_up(keywords, header, primary) for column, keywords in KEYWORDS.items()}
            row["ra"], row["dec"] = centre(header)
            rows.append({**row, "image_hdu": index})
    return rows


def centre(header: Mapping[str, Any]) -> tuple[float, float]:
    """Middle of an image in degrees by the linear part of its WCS; NaN where the header has none.

    Good to a fraction of a CCD, which is what cuts by position need.
    """
    names = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    ra, dec, x0, y0, *matrix = (_number(_value(header, name), math.nan) for name in names)
    columns, rows = (_number(_look_up(KEYWORDS[name], header, header), math.nan) for name in ("width", "height"))
    right, up = (columns + 1) / 2 - x0, (rows + 1) / 2 - y0
    dec_here = dec + matrix[2] * right + matrix[3] * up
    shift = matrix[0] * right + matrix[1] * up
    return (ra + shift / max(math.cos(math.radians(dec_here)), 1e-3)) % 360.0, dec_here


def _is_image(header: Mapping[str, Any]) -> bool:
    """Whether an HDU holds an image: two axes, and none beyond them that is longer than one pixel."""
    is_packed = bool(header.get("ZIMAGE"))
    if not is_packed and str(header.get("XTENSION", "")).strip() in ("BINTABLE", "TABLE"):
        return False
    prefix = "ZNAXIS" if is_packed else "NAXIS"
    naxis = header.get(prefix)
    return isinstance(naxis, int) and naxis >= 2 and all(header.get(f"{prefix}{i}") == 1 for i in range(3, naxis + 1))


def _look_up(keywords: Sequence[str], header: Any, primary: Any) -> Any:
    for source in (header, primary):
        for keyword in keywords:
            value = _value(source, keyword)
            if not _is_blank(value):
                return value
    return None


def _value(header: Any, keyword: str) -> Any:
    """A header's value; None where there is none, or its card does not parse."""
    from astropy.io.fits import VerifyError

    try:
        return header.get(keyword)
    except VerifyError:
        return None
