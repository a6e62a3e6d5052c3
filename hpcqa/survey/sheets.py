"""Label tables with named columns: hpcqa's own CSV (also the truth of a simulation), and reviewers' sheets."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path

from hpcqa.reasons import BIT
from hpcqa.survey import rules
from hpcqa.survey.statements import WHOLE, CcdNamer, Reading, Statement, parse_expnum

OWN_COLUMNS = ("expnum", "ccdnum", "verdict", "reasons", "severity", "comment")
_VOTE = re.compile(r"^(?P<who>.+?)_(?:badexp|bad|verdict|vote)$")
YES = frozenset({"yes", "y", "true", "t", "1", "bad", "x"})
NO = frozenset({"no", "n", "false", "f", "0", "good", "ok"})


def vote(text: str) -> bool | None:
    """True bad, False good, None an abstention. 'yes ', 'y?', '1.0' and 'True' are bad; 'maybe', '' and NaN abstain."""
    word = text.strip().lower().rstrip("?! ")
    if word.endswith(".0"):
        word = word[:-2]
    if word in YES:
        return True
    return False if word in NO else None


def read_cells(lines: list[str]) -> list[tuple[int, list[str]]]:
    """Rows of cells with their line numbers, cut at whichever of comma, semicolon and tab the header has most of."""
    head = next((line for line in lines if "expnum" in line.lower()), "")
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader((line.replace("\0", "") + "\n" for line in lines), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            if cells:
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error:
        # A field beyond csv's limit: what was read so far stands, and the rest is reported by its absence.
        return rows
    return rows


def find_header(rows: list[tuple[int, list[str]]]) -> tuple[int, list[str]] | None:
    """Where the header row is (it may follow a title), and its names in lower case."""
    for place, (_, cells) in enumerate(rows[:20]):
        names = [cell.lower().lstrip("#").strip() for cell in cells]
        if "expnum" in names:
            return place, names
    return None


def parse_own(lines: list[str], path: Path, namer: CcdNamer) -> Reading:
    """`expnum,ccdnum,verdict,reasons,severity,comment`; ccdnum empty or -1 is the whole exposure; reasons join by |."""
    reading = Reading(path, "hpcqa")
    for line, row in _records(lines):
        expnum, bad = parse_expnum(row.get("expnum", "")), vote(row.get("verdict", ""))
        ccdnum = _ccd(row.get("ccdnum", ""), expnum, namer)
        if expnum is None or bad is None or ccdnum is None:
            cause = "no exposure number" if expnum is None else "no verdict" if bad is None else "unknown CCD"
            reading.skip(cause, line)
            continue
        reasons = _named(row.get("reasons", ""))
        text = row.get("comment", "") or row.get("reasons", "")
        reading.statements.append(
            Statement(
                expnum=expnum,
                ccdnum=ccdnum,
                bad=bad,
                reasons=(reasons or rules.parse(text) or BIT["other"]) if bad else 0,
                source=path.name,
                line=line,
                text=text,
                severity=_number(row.get("severity", "")),
            )
        )
    return reading


def _records(lines: list[str]) -> list[tuple[int, Mapping[str, str]]]:
    rows = read_cells(lines)
    header = find_header(rows)
    if header is None:
        return []
    place, names = header
    return [(line, dict(zip(names, cells, strict=False))) for line, cells in rows[place + 1 :]]


def _ccd(text: str, expnum: int | None, namer: CcdNamer) -> int | None:
    text = text.strip()
    if text.endswith(".0"):
        text = text[:-2]
    return WHOLE if text.lower() in ("", "-1", "nan") else namer.number(text, expnum or 0)


def _named(text: str) -> int:
    bits = 0
    for word in re.split(r"[|;]", text):
        name = word.strip().lower()
        bits |= BIT[name] if name in BIT else rules.parse(name)
    return bits


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_review(lines: list[str], path: Path, namer: CcdNamer) -> Reading:
    """Reviewers' sheets: columns NAME_badexp and NAME_reason for each reviewer; one statement a reviewer and exposure.

    A yes without own words is `other`: the classifier's guess in the sheet is rarely what a person would say, so it is
    kept in the text only.
    """
    reading = Reading(path, "review")
    for line, row in _records(lines):
        expnum = parse_expnum(row.get("expnum", ""))
        if expnum is None:
            reading.skip("no exposure number", line)
            continue
        ccdnum = _ccd(row.get("ccdnum", ""), expnum, namer)
        guess = row.get("ml_reason", "") or row.get("ml_reasons", "")
        for who, verdict in reviewers(row).items():
            bad = vote(verdict)
            if bad is None:
                reading.skip("abstention", line)
                continue
            said = row.get(f"{who}_reason", "")
            text = said or (f"(classifier: {guess})" if guess else "")
            reasons = (rules.parse(said) or BIT["other"]) if bad else 0
            source = f"{path.name}: {who}"
            place = WHOLE if ccdnum is None else ccdnum
            reading.statements.append(Statement(expnum, place, bad, reasons, source, line, text))
    return reading


def reviewers(row: Mapping[str, str]) -> dict[str, str]:
    """Each reviewer's verdict, by name."""
    votes = {}
    for name, value in row.items():
        found = _VOTE.match(name)
        if found:
            votes[found["who"]] = value
    return votes
