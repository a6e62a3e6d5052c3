"""Reviewers' votes: the CSV that the report's page hands out, and how far several reviewers agree. Pure.

The file is hpcqa's own label list, `expnum,ccdnum,verdict,reasons,severity,comment`, with one verdict more: `unsure`,
an abstention, which says nothing about the exposure and is no label.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcqa.errors import DataError

COLUMNS = ("expnum", "ccdnum", "verdict", "reasons", "severity", "comment")
VERDICTS = ("good", "bad", "unsure")
WHOLE = -1


@dataclass(frozen=True)
class Vote:
    """What one reviewer says of an exposure (ccdnum -1) or of one of its CCDs."""

    expnum: int
    ccdnum: int
    verdict: str
    reasons: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True)
class Reviewer:
    """One reviewer's share: votes cast, of which bad and unsure."""

    name: str
    votes: int
    bad: int
    unsure: int


@dataclass(frozen=True)
class Agreement:
    """Two reviewers: on how many exposures or CCDs both took a side, on how many of them it was the same one, and
    Cohen's kappa (1 perfect, 0 as good as chance; NaN where chance alone would agree fully).
    """

    one: str
    other: str
    both: int
    same: int
    kappa: float


@dataclass(frozen=True)
class Tally:
    """All reviewers together."""

    reviewers: tuple[Reviewer, ...]
    pairs: tuple[Agreement, ...]
    disputed: tuple[tuple[int, int], ...]  # (expnum, ccdnum) with both good and bad votes
    consensus: tuple[Vote, ...]  # where nobody who took a side disagrees


def read_votes(text: str, *, where: str) -> list[Vote]:
    """The votes in a CSV of the page; a later line about the same exposure and CCD replaces an earlier one.

    Args:
        text: content of the file.
        where: its name, for messages.

    Raises:
        DataError: another header, a number or a verdict that does not parse; names the line.
    """
    rows = csv.reader(io.StringIO(text.lstrip("\ufeff")))
    header = [cell.strip().lower() for cell in next(rows, [])]
    if not {"expnum", "verdict"} <= set(header):
        raise DataError(f"{where}: expected the header {','.join(COLUMNS)}, found {','.join(header) or 'nothing'}.")
    found: dict[tuple[int, int], Vote] = {}
    for cells in rows:
        if any(cell.strip() for cell in cells):
            vote = _vote(dict(zip(header, cells, strict=False)), f"{where}:{rows.line_num}")
            found[vote.expnum, vote.ccdnum] = vote
    return list(found.values())


def _vote(row: Mapping[str, str], where: str) -> Vote:
    verdict = row.get("verdict", "").strip().lower()
    if verdict not in VERDICTS:
        raise DataError(f"{where}: verdict {verdict!r} is none of {', '.join(VERDICTS)}.")
    try:
        expnum = int(row["expnum"])
        ccdnum = int(row.get("ccdnum", "").strip() or WHOLE)
    except ValueError:
        raise DataError(f"{where}: expnum and ccdnum must be whole numbers.") from None
    reasons = tuple(name.strip() for name in row.get("reasons", "").split("|") if name.strip())
    return Vote(expnum, ccdnum, verdict, reasons, row.get("comment", "").strip())


def tally(votes: Mapping[str, Sequence[Vote]]) -> Tally:
    """Abstention of each reviewer, agreement of each pair, what is disputed, and what is agreed.

    Args:
        votes: each reviewer's votes by name.
    """
    sides = {
        name: {(vote.expnum, vote.ccdnum): vote.verdict for vote in cast if vote.verdict != "unsure"}
        for name, cast in sorted(votes.items())
    }
    reviewers = tuple(
        Reviewer(
            name,
            len(votes[name]),
            sum(vote.verdict == "bad" for vote in votes[name]),
            sum(vote.verdict == "unsure" for vote in votes[name]),
        )
        for name in sides
    )
    pairs = tuple(_agreement(one, other, sides) for one, other in itertools.combinations(sides, 2))
    taken: dict[tuple[int, int], list[Vote]] = {}
    for name in sides:
        for vote in votes[name]:
            if vote.verdict != "unsure":
                taken.setdefault((vote.expnum, vote.ccdnum), []).append(vote)
    one_side = {key: len({vote.verdict for vote in cast}) == 1 for key, cast in sorted(taken.items())}
    disputed = tuple(key for key, agreed in one_side.items() if not agreed)
    consensus = tuple(_consensus(taken[key]) for key, agreed in one_side.items() if agreed)
    return Tally(reviewers, pairs, disputed, consensus)


def _agreement(one: str, other: str, sides: Mapping[str, Mapping[tuple[int, int], str]]) -> Agreement:
    shared = sorted(sides[one].keys() & sides[other].keys())
    same = sum(sides[one][key] == sides[other][key] for key in shared)
    if not shared:
        return Agreement(one, other, 0, 0, float("nan"))
    counts = [Counter(sides[name][key] for key in shared) for name in (one, other)]
    chance = sum(counts[0][verdict] * counts[1][verdict] for verdict in ("good", "bad")) / len(shared) ** 2
    observed = same / len(shared)
    kappa = (observed - chance) / (1 - chance) if chance < 1 else float("nan")
    return Agreement(one, other, len(shared), same, kappa)


def _consensus(cast: Sequence[Vote]) -> Vote:
    reasons = tuple(dict.fromkeys(reason for vote in cast for reason in vote.reasons))
    comment = "; ".join(dict.fromkeys(vote.comment for vote in cast if vote.comment))
    return Vote(cast[0].expnum, cast[0].ccdnum, cast[0].verdict, reasons, comment)


def tally_text(tally: Tally) -> str:
    """The tally in plain lines for a terminal."""
    lines = [f"{'reviewer':<16} {'votes':>6} {'bad':>5} {'unsure':>7}"]
    lines += [f"{who.name:<16} {who.votes:>6} {who.bad:>5} {who.unsure:>7}" for who in tally.reviewers]
    for pair in tally.pairs:
        kappa = "undefined" if math.isnan(pair.kappa) else f"{pair.kappa:.2f}"
        lines.append(f"{pair.one} and {pair.other}: {pair.same} of {pair.both} the same, kappa {kappa}")
    shown = ", ".join(str(expnum) if ccdnum == WHOLE else f"{expnum}-{ccdnum}" for expnum, ccdnum in tally.disputed)
    lines.append(f"disputed: {shown or 'none'}; agreed: {len(tally.consensus)}")
    return "\n".join(lines)
