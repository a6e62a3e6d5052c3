"""Labels from every format of list there is, each told by its content; one row a statement, nothing merged away."""

from __future__ import annotations

import glob
import gzip
import logging
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcqa.errors import ConfigError, DataError, EnvironmentProblem
from hpcqa.survey import lists, sheets
from hpcqa.survey.images import is_stream
from hpcqa.survey.statements import FEWEST_DIGITS, MOST_DIGITS, NO_NUMBER, CcdNamer, Reading, Statement

logger = logging.getLogger(__name__)

GZIP = b"\x1f\x8b"
LOOK_AT = 40  # lines that tell a format
FORMATS = (
    "bad_expid.txt, DES/DELVE exclude or problem lists, Rubin bad.ecsv, reviewers' CSV, failed-WCS lists, hpcqa's CSV, "
    "or a text or FITS table with the columns expnum and reason"
)


# Comments, in lower case, and rows that tell a format; the first that fits.
TITLES = (
    ("exclude", re.compile(r"#\s*date\s+expnum\s+ccd\b")),
    ("problem", re.compile(r"#\s*nite\s+exposure\s+problem")),
    ("bad_expid", re.compile(r"#\s*expid\b")),
)
DATE = r"(?:\d{8}|\d{4}-\d\d-\d\d)"
ROWS = (
    ("exclude", re.compile(DATE + r"\s+\d{5,}(?:\s+(?:nan|[A-Za-z]{0,3}\d{1,3}(?:\.0)?)){2,3}$")),
    ("problem", re.compile(DATE + r"\s+\d{4,}\s+[A-Za-z\"]")),
    ("wcs", re.compile(r"(?:path\s*,\s*expnum|\S*/.+,\s*\d+)$")),
    ("visits", re.compile(r"(?:\d{4,18}(?:\.0)?(?:-[A-Za-z]+\d+)?\s*,|exposure\s*,\s*comment\b)")),
    ("bad_expid", re.compile(r"(?:D00)?\d{4,18}(?:\.0+)?(?:-[A-Za-z]*\d+\b|[\s;:/#]|\s*[–—.]{1,3}\s*\d{4}|$)")),
)


def detect(lines: list[str]) -> str:
    """The format of a list by its content, or '' if unknown.

    One of own, review, table, visits, exclude, problem, wcs, bad_expid.
    """
    told = [line.strip() for line in lines if line.strip()]
    head = told[:LOOK_AT]
    rows = [line for line in told if not line.startswith("#")][:LOOK_AT]
    header = sheets.find_header(_without_ecsv(lines))
    if header is not None and sheets.kind_of(header.names):
        is_rubins = set(header.names) == {"expnum", "comment"} and header.delimiter == ","
        return "visits" if is_rubins else sheets.kind_of(header.names)
    return "" if _is_ecsv(head) else _detect_rows(head, rows)


def _is_ecsv(lines: Sequence[str]) -> bool:
    return any(line.startswith("# %ECSV") for line in lines)


def _without_ecsv(lines: list[str]) -> list[str]:
    # The header of an ECSV file may be long, and the columns' names stand in it too.
    return ["" if line.startswith("#") else line for line in lines] if _is_ecsv(lines[:LOOK_AT]) else lines


def _detect_rows(head: Sequence[str], rows: Sequence[str]) -> str:
    comments = " ".join(line.lower() for line in head if line.startswith("#"))
    for kind, title in TITLES:
        if title.search(comments):
            return kind
    # Any line may be odd: most of them tell.
    kind = next((kind for kind, row in ROWS if sum(bool(row.match(line)) for line in rows) * 2 > len(rows)), "")
    # Numbers below a line of names that we do not know may be anything.
    return "" if kind == "visits" and not dict(ROWS)[kind].match(rows[0]) else kind


def read_list(path: Path, namer: CcdNamer) -> Reading | None:
    """The statements of one list, or None where its format is unknown.

    Raises:
        DataError: the file is not there or is not text.
    """
    if is_fits(path):
        names, rows = sheets.read_fits(path)
        return _read_rows(sheets.kind_of(names), rows, path, namer)
    reading = _read_text(read_lines(path), path, namer)
    # Not one line says of what it speaks: it is no list, whatever it looks like.
    says_nothing = (
        reading is not None and not reading.statements and {NO_NUMBER, lists.NOT_UNDERSTOOD} & set(reading.left_out)
    )
    return None if says_nothing else reading


def _read_text(lines: list[str], path: Path, namer: CcdNamer) -> Reading | None:
    kind = detect(lines)
    if kind in ("own", "review", "table"):
        header = sheets.find_header(_without_ecsv(lines))
        assert header is not None
        return _read_rows(kind, sheets.records(lines, header), path, namer)
    if kind == "visits":
        return lists.parse_plain_csv(lines, path, namer)
    if kind == "exclude":
        return lists.parse_exclude(lines, path, namer)
    if kind == "problem":
        return lists.parse_problems(lines, path)
    if kind == "wcs":
        return lists.parse_failed_wcs(lines, path)
    is_empty = all(line.lstrip().startswith("#") for line in lines if line.strip())
    return lists.parse_bad_expid(lines, path, namer) if kind == "bad_expid" or is_empty else None


def _read_rows(kind: str, rows: Sequence[sheets.Row], path: Path, namer: CcdNamer) -> Reading | None:
    if not kind:
        return None
    return sheets.parse_review(rows, path, namer) if kind == "review" else sheets.parse_own(rows, path, namer)


def is_fits(path: Path) -> bool:
    """Whether a file starts as FITS does, unpacked if it is gzip's; no if it cannot be looked into."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(GZIP):
            with gzip.open(path) as unpacked:
                start = unpacked.read(9)
    except (OSError, EOFError, zlib.error):
        return False
    return start == b"SIMPLE  ="


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, gzipped or not, in UTF-8, UTF-16 (as Excel saves "Unicode text") or Latin-1.

    Raises:
        DataError: not there, or not text.
        EnvironmentProblem: not readable.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(GZIP):
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: does not decompress ({error}); fetch the list again.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct survey.labels.") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace").splitlines()
    if b"\0" in raw[:4096]:
        raise DataError(
            f"{path}: not a text file; expected a label list ({FORMATS}). Save spreadsheets as CSV; of "
            "packed files only gzip's are read."
        )
    try:
        return raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return raw.decode("latin-1").splitlines()


def find_lists(patterns: Sequence[str]) -> list[tuple[Path, bool]]:
    """Files of paths, folders and glob patterns; True where the path itself was named, so that it must be a list.

    Raises:
        ConfigError: a pattern that matches no file.
    """
    found: dict[Path, bool] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser().absolute()
        if path.is_file():
            found[path] = True
            continue
        names = [str(path / "**")] if path.is_dir() else [str(path)]
        matches = [Path(name) for name in sorted(glob.glob(names[0], recursive=True))]  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            what = "is not a plain file" if is_stream(path) else "matches no file"
            raise ConfigError(f"survey.labels: {pattern} {what}; correct the path or the pattern.")
        for file in files:
            found.setdefault(file, False)
    return list(found.items())


def read_lists(patterns: Sequence[str], namer: CcdNamer) -> list[Reading]:
    """Every list; files that a pattern caught but that are no lists (a README) are named in the log.

    Raises:
        ConfigError: a pattern that matches nothing.
        DataError: a named file that is no label list.
    """
    readings = []
    for path, named in find_lists(patterns):
        reading = _read_or_warn(path, named, namer)
        if reading is not None:
            report(reading)
            readings.append(reading)
    return readings


def _read_or_warn(path: Path, named: bool, namer: CcdNamer) -> Reading | None:
    try:
        reading = read_list(path, namer)
    except DataError:
        if named:
            raise
        reading = None
    if reading is None:
        if named:
            raise DataError(f"{path}: no label list that hpcqa knows{_start(path)}; expected one of {FORMATS}.")
        logger.warning("%s: no label list; left out.", path)
    return reading


def _start(path: Path) -> str:
    """What a file that is no list has instead, in words."""
    if is_fits(path):
        return f" (columns found: {', '.join(sheets.read_fits(path)[0])})"
    lines = read_lines(path)
    first = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")
    none = (
        f"; no line has an exposure number, which is {FEWEST_DIGITS} to {MOST_DIGITS} digits" if detect(lines) else ""
    )
    return f" (found {first[:60]!r}{none})"


def report(reading: Reading) -> None:
    """Log what a list gave and what it did not."""
    bad = sum(statement.bad for statement in reading.statements)
    num = len({statement.expnum for statement in reading.statements})
    logger.info(
        "%s (%s): %d statements, %d of them bad, on %d exposures",
        reading.path.name,
        reading.kind,
        len(reading.statements),
        bad,
        num,
    )
    for cause, numbers in reading.left_out.items():
        shown = ", ".join(str(number) for number in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
        logger.log(
            logging.INFO if cause in ("commented out", "abstention") else logging.WARNING,
            "%s: %s: %d lines (%s)",
            reading.path,
            cause,
            len(numbers),
            shown,
        )


def report_conflicts(statements: Sequence[Statement]) -> None:
    """Log how many exposures and CCDs some call good and others bad, and who says so of the first."""
    said: dict[tuple[int, int], dict[bool, Statement]] = {}
    for item in statements:
        said.setdefault((item.expnum, item.ccdnum), {}).setdefault(item.bad, item)
    both = [key for key, by_verdict in said.items() if len(by_verdict) == 2]
    if both:
        good, bad = said[both[0]][False], said[both[0]][True]
        ccd = f"-{bad.ccdnum}" if bad.ccdnum >= 0 else ""
        logger.warning(
            "%d exposures or CCDs are good in one statement and bad in another, and count as bad; first %d%s: "
            "good in line %d of %s, bad in line %d of %s.",
            len(both), bad.expnum, ccd, good.line, good.source, bad.line, bad.source,
        )  # fmt: skip


def to_columns(statements: Sequence[Statement]) -> dict[str, np.ndarray]:
    """Columns of the LABELS artifact, in the order of the lists."""
    return {
        "expnum": np.array([item.expnum for item in statements], np.int64),
        "ccdnum": np.array([item.ccdnum for item in statements], np.int32),
        "bad": np.array([item.bad for item in statements], bool),
        "reasons": np.array([item.reasons for item in statements], np.int64),
        "severity": np.array([item.severity for item in statements], np.float32),
        "source": np.array([item.source for item in statements], object),
        "line": np.array([item.line for item in statements], np.int32),
        "text": np.array([item.text for item in statements], object),
    }


def near_misses(labelled: np.ndarray, surveyed: np.ndarray, most: int = 1000) -> list[tuple[int, int]]:
    """Labelled numbers that the survey lacks but nearly has: (labelled, surveyed), swapped digits first.

    Two digits that changed places, however far apart, or one wrong digit. Surveyed numbers that the lists name
    themselves are no candidates, and a number with several candidates of a kind is left out: among crowded numbers
    everything is near something, by chance. At most `most` pairs.
    """
    surveyed, labelled = np.unique(surveyed), np.unique(labelled)
    missing = np.setdiff1d(labelled, surveyed, assume_unique=True)
    free = np.setdiff1d(surveyed, labelled, assume_unique=True)
    swapped: list[tuple[int, int]] = []
    changed: list[tuple[int, int]] = []
    if not len(missing) or not len(free):
        return []
    tens = 10 ** np.arange(18, dtype=np.int64)
    digits = missing[:, None] // tens % 10
    for place in range(18):
        for other in range(place + 1, 18):
            difference = digits[:, other] - digits[:, place]
            swapped += _hits(missing, missing + difference * (tens[place] - tens[other]), difference != 0, free)
        for digit in range(10):
            value = missing + (digit - digits[:, place]) * tens[place]
            changed += _hits(missing, value, digits[:, place] != digit, free)
    sure = _single(swapped)
    return (sure + [pair for pair in _single(changed) if pair[0] not in {left for left, _ in sure}])[:most]


def _single(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of numbers with one candidate only, in order."""
    distinct = sorted(set(pairs))
    count = Counter(left for left, _ in distinct)
    return [pair for pair in distinct if count[pair[0]] == 1]


def _hits(missing: np.ndarray, other: np.ndarray, where: np.ndarray, free: np.ndarray) -> list[tuple[int, int]]:
    # A number does not change its length by a typo of one digit.
    where = where & (other >= 10 ** np.floor(np.log10(missing)).astype(np.int64)) & (other < 10**18)
    where &= np.floor(np.log10(np.maximum(other, 1))) == np.floor(np.log10(missing))
    where &= np.isin(other, free)
    return [(int(left), int(right)) for left, right in zip(missing[where], other[where], strict=True)]
