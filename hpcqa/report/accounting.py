"""Where every row of the tables went: cut, failed or decided. Pure functions over the columns of the artifacts."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from hpcqa.artifacts.coded import distinct

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cause:
    """One reason why rows were left out, with how many CCD rows and exposures it concerns."""

    name: str
    rows: int
    exposures: int


@dataclass(frozen=True)
class Funnel:
    """Counts of CCD rows, which add up: rows = cut + failed + decided; and of exposures by verdict."""

    rows: int
    exposures: int
    cut: int
    failed: int
    decided: int
    cut_causes: tuple[Cause, ...]
    failed_causes: tuple[Cause, ...]
    verdicts: Mapping[str, int]


@dataclass(frozen=True)
class Unprocessed:
    """One row of a table that got no decision, and why."""

    expnum: int
    ccdnum: int
    ccdname: str
    stage: str
    cause: str
    detail: str
    table: str
    table_row: int


VERDICTS = ("bad", "review", "good", "undecided")


def causes_by_bit(bits: np.ndarray, expnum: np.ndarray, names: Mapping[int, str]) -> tuple[Cause, ...]:
    """How many rows have each bit set, most frequent first; a row with several bits counts under each.

    Args:
        bits: int64 (row,), zero for rows that are kept.
        expnum: int64 (row,).
        names: words for each bit value; a bit without words shows as its number.
    """
    found = []
    union = int(np.bitwise_or.reduce(bits)) if len(bits) else 0
    for position in range(63):
        bit = 1 << position
        if union & bit:
            there = (bits & bit) != 0
            name = names.get(bit, f"bit {position}")
            found.append(Cause(name, int(there.sum()), len(np.unique(expnum[there]))))
    return tuple(sorted(found, key=lambda cause: (-cause.rows, cause.name)))


def cause_in_words(why: str) -> str:
    """What a sentence about one row has in common with the same sentence about others: no paths, no numbers."""
    words = re.sub(r"\S*/\S*", "…", why.split(";")[0])
    words = re.sub(r"\d+(\.\d+)?", "#", words).strip(" :.")
    return words[:90] or "no reason stated"


def causes_by_words(why: np.ndarray, expnum: np.ndarray) -> tuple[Cause, ...]:
    """The same for reasons in words, grouped by what they have in common."""
    names, codes = _coded_causes(why)
    rows = np.bincount(codes, minlength=len(names))
    found = [Cause(name, int(rows[code]), len(np.unique(expnum[codes == code]))) for code, name in enumerate(names)]
    return tuple(sorted(found, key=lambda cause: -cause.rows))


def _coded_causes(why: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct causes in words, and each row's place among them; asked once for each distinct sentence."""
    sentences, codes = distinct(why)
    names: dict[str, int] = {}
    place = [names.setdefault(cause_in_words(str(text)), len(names)) for text in sentences.tolist()]
    return list(names), np.array(place, np.int64)[codes] if len(place) else np.zeros(0, np.int64)


def funnel(manifest: Columns, ccds: Columns, decisions: Columns, cut_names: Mapping[int, str]) -> Funnel:
    """Count the rows of the manifest by what became of them.

    Args:
        manifest: expnum, cuts of each CCD row.
        ccds: expnum, verdict, why, of each CCD row; rows that are cut may be absent or undecided.
        decisions: verdict of each exposure.
        cut_names: words for the bits of `cuts`.
    """
    kept = manifest["cuts"] == 0
    decided = ccds["verdict"] != "undecided"
    number_decided = int(decided.sum())
    failed = ~decided & ~_cut_rows(manifest, ccds)
    verdicts = Counter(str(verdict) for verdict in decisions["verdict"])
    return Funnel(
        rows=len(kept),
        exposures=len(np.unique(manifest["expnum"])),
        cut=int((~kept).sum()),
        failed=int(kept.sum()) - number_decided,
        decided=number_decided,
        cut_causes=causes_by_bit(manifest["cuts"][~kept], manifest["expnum"][~kept], cut_names),
        failed_causes=causes_by_words(ccds["why"][failed], ccds["expnum"][failed]),
        verdicts={verdict: verdicts.get(verdict, 0) for verdict in VERDICTS},
    )


def _cut_rows(manifest: Columns, ccds: Columns) -> np.ndarray:
    """Which rows of the CCD decisions were cut in the manifest; joined by table and row."""
    cut = np.flatnonzero(manifest["cuts"] != 0)
    _, tables = distinct(np.concatenate([manifest["table"][cut], ccds["table"]]))
    rows = np.concatenate([manifest["table_row"][cut], ccds["table_row"]])
    keys = tables * (int(rows.max(initial=0)) + 1) + rows
    return np.isin(keys[len(cut) :], keys[: len(cut)])


def unprocessed(manifest: Columns, ccds: Columns, cut_names: Mapping[int, str]) -> Iterator[Unprocessed]:
    """Every row without a decision, in the tables' order: first those that were cut, then those that failed."""
    cut = np.flatnonzero(manifest["cuts"] != 0)
    causes = {bits: _cause_of(bits, cut_names) for bits in np.unique(manifest["cuts"][cut]).tolist()}
    for row in cut.tolist():
        cause = causes[int(manifest["cuts"][row])]
        yield _left_out(manifest, row, "manifest", cause, str(manifest["cut_detail"][row]))
    lost = np.flatnonzero((ccds["verdict"] == "undecided") & ~_cut_rows(manifest, ccds))
    names, codes = _coded_causes(ccds["why"][lost])
    for row, code in zip(lost.tolist(), codes.tolist(), strict=True):
        yield _left_out(ccds, row, "shard", names[code], str(ccds["why"][row]))


def _cause_of(bits: int, cut_names: Mapping[int, str]) -> str:
    return ", ".join(cut_names.get(1 << place, f"bit {place}") for place in range(63) if bits >> place & 1)


def _left_out(columns: Columns, row: int, stage: str, cause: str, detail: str) -> Unprocessed:
    return Unprocessed(
        expnum=int(columns["expnum"][row]),
        ccdnum=int(columns["ccdnum"][row]),
        ccdname=str(columns["ccdname"][row]),
        stage=stage,
        cause=cause,
        detail=detail,
        table=str(columns["table"][row]),
        table_row=int(columns["table_row"][row]),
    )


def write_csv(rows: Iterable[Unprocessed], stream: TextIO, most: int) -> tuple[list[Unprocessed], int]:
    """Write the rows as CSV with a header; returns the first `most` of them and how many there were."""
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Unprocessed)]
    writer.writerow(names)
    first: list[Unprocessed] = []
    count = 0
    for row in rows:
        writer.writerow([getattr(row, name) for name in names])
        count += 1
        if count <= most:
            first.append(row)
    return first, count
