"""Which processing of an exposure counts: the latest by PLVER, then by PLPROCID; and which of two equal rows."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from hpcqa.survey.coded import Coded, distinct, pairs
from hpcqa.survey.cuts import Ledger

_VERSION = re.compile(r"(\d+(?:\.\d+)*)\s*([A-Za-z+].*)?$")
_EARLY = re.compile(r"^(alpha|beta|rc|dev)", re.IGNORECASE)


def version_key(plver: str) -> tuple[tuple[int, ...], int, str]:
    """A key that sorts PLVER: V3.9 < V4.8.2 < V4.8.2a < V5.0beta < V5.0 < V5.5.2 < V5.5.2LS; no version comes first."""
    found = _VERSION.search(plver.strip())
    if not found:
        return (), 0, plver.strip()
    numbers = tuple(int(number) for number in found[1].split("."))
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    suffix = (found[2] or "").strip()
    return numbers, -1 if _EARLY.match(suffix) else int(bool(suffix)), suffix.lower()


def ranked(plver: Coded, plprocid: Coded) -> tuple[np.ndarray, list[str]]:
    """The rank of each row's processing, later ones higher: int64 (N,); and each rank's name."""
    combinations, index = pairs(plver.codes, plprocid.codes, len(plprocid.words))
    processings = [(plver.words[first], plprocid.words[second]) for first, second in combinations]
    order = sorted(
        range(len(processings)), key=lambda place: (version_key(processings[place][0]), processings[place][1].lower())
    )
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    names = [" ".join(word for word in processings[place] if word) or "no version" for place in order]
    return ranks[index] if len(index) else np.empty(0, np.int64), names


def resolve(
    ledger: Ledger,
    *,
    expnum: np.ndarray,
    ccdnum: np.ndarray,
    camera: Coded,
    plver: Coded,
    plprocid: Coded,
    preference: Callable[[np.ndarray], np.ndarray],
    table: Coded,
) -> None:
    """Leave one processing of each exposure and one row of each CCD; say in the ledger what took a row's place.

    Only rows that nothing else cuts take the place of others: a later version whose files are missing does not.

    Args:
        preference: of some rows, by their indices: int (M,); of two rows of one processing the smaller is taken, then
            the earlier in the tables.
    """
    exposures, exposure = distinct(expnum)
    rank, processings = ranked(plver, plprocid)
    usable = ledger.open_rows
    best = np.full(len(exposures), -1, np.int64)
    np.maximum.at(best, exposure[usable], rank[usable])
    later = usable & (rank < best[exposure])
    words = tuple(f"superseded by {name}" for name in processings)
    ledger.add("superseded", later, Coded(best[exposure].astype(np.int32), words))
    _cut_other_cameras(ledger, exposure, len(exposures), camera)
    _cut_repeats(ledger, exposure, ccdnum, preference, table)


def _cut_other_cameras(ledger: Ledger, exposure: np.ndarray, num_exposures: int, camera: Coded) -> None:
    rows = np.flatnonzero(ledger.open_rows)[::-1]
    first = np.zeros(num_exposures, np.int32)
    first[exposure[rows]] = camera.codes[rows]
    other = ledger.open_rows & (camera.codes != first[exposure])
    words = tuple(f"an exposure of {word} has this number" for word in camera.words)
    ledger.add("other_camera", other, Coded(first[exposure], words))


def _cut_repeats(
    ledger: Ledger,
    exposure: np.ndarray,
    ccdnum: np.ndarray,
    preference: Callable[[np.ndarray], np.ndarray],
    table: Coded,
) -> None:
    rows = np.flatnonzero(ledger.open_rows)
    if not len(rows):
        return
    ccd = ccdnum[rows].astype(np.int64)
    key = exposure[rows] * (int(ccd.max()) + 2) + ccd + 1
    sorted_keys = np.sort(key)
    repeated_keys = np.unique(sorted_keys[1:][sorted_keys[1:] == sorted_keys[:-1]])
    if not len(repeated_keys):
        return
    contested = np.isin(key, repeated_keys)
    rows, key = rows[contested], key[contested]
    # Stable: rows of equal preference stay in the order of the tables.
    order = np.lexsort((preference(rows), key))
    first = np.ones(len(order), bool)
    first[1:] = key[order][1:] != key[order][:-1]
    repeated = rows[order[~first]]
    taken = order[first][np.cumsum(first) - 1][~first]
    where = np.zeros(len(ledger.bits), bool)
    where[repeated] = True
    codes = np.zeros(len(ledger.bits), np.int32)
    codes[repeated] = table.codes[rows[taken]]
    words = tuple(f"the row of {word} is taken" for word in table.words)
    ledger.add("duplicate", where, Coded(codes, words))
