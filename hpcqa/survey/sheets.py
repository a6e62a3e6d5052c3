"""Label tables with named columns: hpcqa's own CSV (also the truth of a simulation), reviewers' sheets, exclude tables.

Cells may be cut at commas, semicolons, tabs, bars or blanks; the header may follow a title; the key may be called
exposure or visit, or be split into day_obs and seq_num, as Rubin does.
"""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa.errors import DataError
from hpcqa.reasons import BIT
from hpcqa.survey import rules
from hpcqa.survey.statements import NO_NUMBER, WHOLE, CcdNamer, Reading, Statement, parse_expnum, split_key

OWN_COLUMNS = ("expnum", "ccdnum", "verdict", "reasons", "severity", "comment")
KEY_ALIASES = frozenset(
    {
        "exposure",
        "visit",
        "expid",
        "exposure_id",
        "exp_id",
        "exposure_number",
        "exp_num",
        "expname",
        "expno",
        "visit_id",
        "visitid",
    }
)
DAY_AND_NUMBER = ("day_obs", "seq_num")
ALIASES = dict.fromkeys(KEY_ALIASES, "expnum") | {
    "ccdname": "ccdnum", "ccd": "ccdnum", "detector": "ccdnum", "extname": "ccdnum", "detpos": "ccdnum",
    "bad": "verdict", "badexp": "verdict", "is_bad": "verdict", "status": "verdict", "label": "verdict",
    "quality": "verdict", "decision": "verdict", "judgement": "verdict", "judgment": "verdict", "vote": "verdict",
    "is_good": "good", "goodexp": "good",
    "reason": "reasons", "class": "reasons", "category": "reasons", "defect": "reasons", "artefact": "reasons",
    "artifact": "reasons", "problem": "reasons", "problems": "reasons", "why": "reasons", "cause": "reasons",
    "comments": "comment", "note": "comment", "notes": "comment", "remark": "comment", "remarks": "comment",
    "dayobs": "day_obs", "seqnum": "seq_num", "analyst": "reviewer",
}  # fmt: skip
# Columns that may stand beside ours in a table cut at blanks.
KNOWN_BESIDE = frozenset(
    {
        "good",
        "date",
        "night",
        "nite",
        "band",
        "filter",
        "reviewer",
        "image_hdu",
        "vi_source",
        "mjd_obs",
        *DAY_AND_NUMBER,
    }
)
MOST_TITLE_LINES = 20
# A share or a count of what is bad is nobody's vote.
_VOTE = re.compile(r"^(?!(?:p|n|num|prob|share|fraction|percent)_)(?P<who>.+?)_(?:badexp|bad|verdict|vote)$")
YES = frozenset({"yes", "y", "true", "t", "1", "bad", "x", "reject", "rejected", "exclude", "excluded"})
NO = frozenset({"no", "n", "false", "f", "0", "good", "ok", "okay", "fine", "keep", "kept", "accept", "accepted"})
UNSURE = frozenset(
    {"", "maybe", "nan", "none", "null", "na", "n/a", "unsure", "unknown", "undecided", "review", "-", "--"}
)
WHOLE_WORDS = frozenset({"", "-1", "nan", "none", "null", "na", "n/a", "--", "all", "whole", "*"})
WORDS = ("reason", "reasons", "comment", "comments", "note", "notes")  # a reviewer's, behind the name
Row = tuple[int, Mapping[str, str]]  # line number, cells by name


# What a cell may say in a column that asks whether the exposure is good; and a whole reason that is none.
_IS_GOOD = {word: word in YES for word in ("1", "true", "t", "yes", "y", "0", "false", "f", "no", "n")}
_NOTHING_BAD = frozenset({"good", "ok", "okay", "fine"})


def vote(text: str) -> bool | None:
    """True bad, False good, None an abstention. 'yes ', 'y?', '1.0' and 'True' are bad; 'maybe', '' and NaN abstain."""
    word = _bare(text)
    if word in YES:
        return True
    return False if word in NO else None


def _bare(verdict: str) -> str:
    return verdict.strip().lower().rstrip("?! ").removesuffix(".0")


@dataclass(frozen=True)
class Header:
    """Where a table's header is, how its cells are cut, and their names: lower case, the columns that count by ours."""

    place: int
    delimiter: str
    names: tuple[str, ...]


def kind_of(names: Sequence[str]) -> str:
    """review, own or table; empty where nothing says what is bad. A list of exposures and CCDs alone is a table."""
    if any(_VOTE.match(name) for name in names):
        return "review"
    if {"verdict", "good"} & set(names):
        return "own"
    is_bare = set(names) <= {"expnum", "ccdnum", "reviewer", *DAY_AND_NUMBER}
    return "table" if is_bare or "reasons" in names or "comment" in names else ""


def has_key(names: Sequence[str]) -> bool:
    """Whether columns of these names say of which exposure a row speaks."""
    return "expnum" in names or set(DAY_AND_NUMBER) <= set(names)


def find_header(lines: Sequence[str]) -> Header | None:
    """The header among the first lines; only `expnum` may stand behind a #, where other lists have their comments."""
    told = [place for place, line in enumerate(lines) if line.strip()]
    for place in told[:MOST_TITLE_LINES]:
        line = lines[place]
        for delimiter in ",;\t| ":
            cells = next(_cut([line], delimiter), (0, []))[1]
            is_comment = bool(cells) and cells[0].startswith("#")
            names = _our_names([cell.lstrip("# ") for cell in cells if cell != "#"], aliases=not is_comment)
            # A sentence has blanks too: there every word must be a column's name.
            if has_key(names) and (delimiter != " " or set(names) <= {*OWN_COLUMNS, *KNOWN_BESIDE}):
                return Header(place, delimiter, tuple(names))
    return None


def _our_names(cells: Sequence[str], *, aliases: bool) -> list[str]:
    """The columns by our names; one that goes by another name keeps it where ours is there already."""
    plain = [re.sub(r"\W+", "_", cell.strip().lower()).strip("_") for cell in cells]
    taken = set(plain) & set(ALIASES.values())
    names = []
    for name in plain:
        ours = ALIASES.get(name, name) if aliases or name not in KEY_ALIASES else name
        names.append(name if ours in taken else ours)
        taken.add(ours)
    return names


def _cut(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells, each with the number of its last line; quoted cells may hold line ends.

    A quote that nobody closes is a character like any other: else it would swallow all the rows below it.
    """
    clean = [line.strip(" ").replace("\0", "") + "\n" for line in lines]
    start = 0
    while start < len(clean):
        reader = csv.reader(clean[start:], delimiter=delimiter, skipinitialspace=True)
        before = start
        try:
            for cells in reader:
                after = start + reader.line_num
                if after - before > 1 and after == len(clean) and sum(line.count('"') for line in clean[before:]) % 2:
                    break
                yield after, [cell.strip() for cell in cells]
                before = after
        except csv.Error:  # a cell beyond csv's limit
            pass
        if before < len(clean):
            cells = clean[before].split(None if delimiter == " " else delimiter)
            yield before + 1, [cell.strip() for cell in cells]
        start = before + 1


def records(lines: Sequence[str], header: Header) -> list[Row]:
    """The rows below the header; at blanks, the last column takes the rest of the line."""
    rows: list[Row] = []
    last = len(header.names) - 1
    for number, cells in _cut(lines[header.place + 1 :], header.delimiter):
        if any(cells) and not cells[0].startswith("#"):
            if header.delimiter == " ":
                cells[last:] = [" ".join(cells[last:])]
            rows.append((header.place + 1 + number, dict(zip(header.names, cells, strict=False))))
    return rows


def read_fits(path: Path) -> tuple[list[str], list[Row]]:
    """Names and rows of the first table in a FITS file that has exposures, as DES and DELVE keep their exclude lists.

    Raises:
        DataError: it does not read, or holds no such table.
    """
    from astropy.io import fits

    try:
        with warnings.catch_warnings(), fits.open(path) as file:
            warnings.simplefilter("ignore")
            for hdu in file:
                if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                    names = _our_names(hdu.columns.names, aliases=True)
                    if has_key(names):
                        cells = [[str(value).strip() for value in np.asarray(hdu.data[name]).tolist()]
                                 for name in hdu.columns.names]  # fmt: skip
                        rows = zip(*cells, strict=True)
                        return names, [(n, dict(zip(names, row, strict=True))) for n, row in enumerate(rows, start=1)]
    except Exception as error:  # noqa: BLE001 - astropy fails in many ways on damaged files
        raise DataError(f"{path}: its table cannot be read ({error}); fetch the list again.") from None
    raise DataError(f"{path}: no table with a column expnum in it; expected a list of bad exposures.")


def parse_own(rows: Sequence[Row], path: Path, namer: CcdNamer) -> Reading:
    """`expnum,ccdnum,verdict,reasons,severity,comment`; ccdnum empty or -1 is the whole exposure; reasons join by |.

    Without a verdict column it is a list of what is bad, as DES and DELVE exchange their exclude lists; a row whose
    whole reason is "good" is not.
    """
    reading = Reading(path, "hpcqa" if any({"verdict", "good"} & set(row) for _, row in rows) else "table")
    for line, row in rows:
        expnum = _expnum(row)
        bad, verdict = _verdict(row)
        if expnum is None or bad is None:
            reading.skip(NO_NUMBER if expnum is None else _no_vote(verdict), line)
            continue
        text = row.get("comment", "") or row.get("reasons", "")
        reasons = _named(row.get("reasons", "")) | (rules.parse(verdict) if vote(verdict) is None else 0)
        reviewer = row.get("reviewer", "")
        for ccdnum in _ccds(row, expnum, line, reading, namer):
            reading.statements.append(
                Statement(
                    expnum=expnum,
                    ccdnum=ccdnum,
                    bad=bad,
                    reasons=(reasons or rules.parse(text) or BIT["other"]) if bad else 0,
                    source=f"{path.name}: {reviewer}" if reviewer else path.name,
                    line=line,
                    text=text,
                    severity=_number(row.get("severity", "")),
                )
            )
    return reading


def _verdict(row: Mapping[str, str]) -> tuple[bool | None, str]:
    """What a row says of its exposure, as `vote`, and in which words: a reason for a verdict is one, too."""
    if "verdict" in row:
        bad = vote(row["verdict"])
        return True if bad is None and rules.parse(row["verdict"]) else bad, row["verdict"]
    if "good" in row:
        good = _IS_GOOD.get(_bare(row["good"]))
        return None if good is None else not good, row["good"]
    text = row.get("reasons", "") or row.get("comment", "")
    return _bare(text) not in _NOTHING_BAD, "good" if _bare(text) in _NOTHING_BAD else "bad"


def _expnum(row: Mapping[str, str]) -> int | None:
    """The exposure's number; Rubin's is made of the day and the number within it: 20250501 and 7 are 2025050100007."""
    if "expnum" in row or not has_key(list(row)):
        return split_key(row.get("expnum", ""))[0]
    day, number = (row[name].removesuffix(".0") for name in DAY_AND_NUMBER)
    day = day.replace("-", "")
    is_number = len(day) == 8 and len(number) < 6 and (day + number).isascii() and (day + number).isdigit()
    return parse_expnum(day + number.zfill(5)) if is_number and number else None


def _ccds(row: Mapping[str, str], expnum: int, line: int, reading: Reading, namer: CcdNamer) -> list[int]:
    """The CCDs of a row, or WHOLE: several may stand in their cell, or one behind the exposure's number.

    Unknown ones are noted.
    """
    text = row.get("ccdnum", "").strip() or split_key(row.get("expnum", ""))[1]
    if text.lower().removesuffix(".0") in WHOLE_WORDS:
        return [WHOLE]
    numbers = [namer.number(word, expnum) for word in re.split(r"[\s,;|/+&]+", text) if word]
    if None in numbers:
        reading.skip("unknown CCD", line)
    return list(dict.fromkeys(number for number in numbers if number is not None))


def _no_vote(text: str) -> str:
    """Why a verdict is none: it abstains, or says something that nobody foresaw."""
    return "abstention" if _bare(text) in UNSURE else "a verdict that is neither good nor bad"


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


def parse_review(rows: Sequence[Row], path: Path, namer: CcdNamer) -> Reading:
    """Reviewers' sheets: columns NAME_badexp and NAME_reason for each reviewer; one statement a reviewer and exposure.

    A yes without own words is `other`: the classifier's guess in the sheet is rarely what a person would say, so it is
    kept in the text only.
    """
    reading = Reading(path, "review")
    for line, row in rows:
        expnum = _expnum(row)
        if expnum is None:
            reading.skip(NO_NUMBER, line)
            continue
        ccds = _ccds(row, expnum, line, reading, namer)
        guess = row.get("ml_reason", "") or row.get("ml_reasons", "")
        for who, verdict in reviewers(row).items():
            bad = vote(verdict)
            if bad is None:
                reading.skip(_no_vote(verdict), line)
                continue
            said = next((row[name] for word in WORDS if row.get(name := f"{who}_{word}", "")), "")
            text = said or (f"(classifier: {guess})" if guess else "")
            reasons = (rules.parse(said) or BIT["other"]) if bad else 0
            source = f"{path.name}: {who}"
            reading.statements += [Statement(expnum, ccd, bad, reasons, source, line, text) for ccd in ccds]
    return reading


def reviewers(row: Mapping[str, str]) -> dict[str, str]:
    """Each reviewer's verdict, by name."""
    votes = {}
    for name, value in row.items():
        found = _VOTE.match(name)
        if found:
            votes[found["who"]] = value
    return votes
