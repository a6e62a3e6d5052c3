"""Which exposures of a release are what an earlier run has processed already, so that their embeddings still hold.

An exposure is unchanged if the same CCDs are kept and nothing that its shard is made from differs: the processing
(PLVER, PLPROCID), the file's name and extension, the band, the times and the zero points. Folders may differ: releases
move. A change of the pixels alone, under the same name and processing, is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from hpcqa.survey.coded import distinct

Columns = Mapping[str, np.ndarray]

TEXT = ("plver", "plprocid", "ccdname", "camera", "band", "image_path")
NUMBERS = ("mjd_obs", "exptime", "zpt", "ccdzpt", "image_hdu")
NEEDED = ("expnum", "ccdnum", "cuts", "shard", *TEXT, *NUMBERS)


@dataclass(frozen=True)
class Takeover:
    """What became of the exposures between two manifests.

    Attributes:
        shard: int32 (row,) of the new manifest: the earlier run's shard of unchanged exposures, -1 elsewhere.
        unchanged, new, gone: numbers of exposures; new ones were not kept before, gone ones are not kept now.
        changed: numbers of the others by the first column that differs.
    """

    shard: np.ndarray
    unchanged: int
    new: int
    gone: int
    changed: Mapping[str, int]

    def in_words(self) -> str:
        anew = sum(self.changed.values())
        why = ", ".join(f"{count} by {name}" for name, count in self.changed.items())
        return (
            f"{self.unchanged} exposures as before, {self.new} new, {anew} processed anew"
            f"{f' ({why})' if why else ''}, {self.gone} gone"
        )


def compare(now: Columns, before: Columns) -> Takeover:
    """Find the unchanged exposures.

    Args:
        now, before: the columns NEEDED of two manifests; shard of `now` is not looked at.
    """
    rows, old = np.flatnonzero(now["cuts"] == 0), np.flatnonzero(before["cuts"] == 0)
    exposures, code = distinct(np.concatenate([now["expnum"][rows], before["expnum"][old]]))
    of_now, of_old = code[: len(rows)], code[len(rows) :]
    counts = [np.bincount(codes, minlength=len(exposures)) for codes in (of_now, of_old)]
    match = _match(of_now, now["ccdnum"][rows], of_old, before["ccdnum"][old])
    partner = old[np.maximum(match, 0)] if len(old) else np.zeros(len(rows), np.int64)
    first_difference = np.full(len(exposures), "", dtype=object)
    there = (counts[0] > 0) & (counts[1] > 0)
    for name, differs in _differences(now, rows, before, partner, match >= 0):
        hit = there & (np.bincount(of_now[differs], minlength=len(exposures)) > 0)
        first_difference[hit & (first_difference == "")] = name
    first_difference[there & (counts[0] != counts[1]) & (first_difference == "")] = "ccdnum"
    same = there & (first_difference == "")
    shard = np.full(len(now["expnum"]), -1, np.int32)
    held = np.full(len(exposures), -1, np.int32)
    held[of_old] = before["shard"][old]
    shard[rows] = np.where(same[of_now], held[of_now], -1)
    names, numbers = np.unique(first_difference[first_difference != ""].astype(str), return_counts=True)
    return Takeover(
        shard,
        unchanged=int(same.sum()),
        new=int(((counts[0] > 0) & (counts[1] == 0)).sum()),
        gone=int(((counts[0] == 0) & (counts[1] > 0)).sum()),
        changed=dict(zip(names.tolist(), numbers.tolist(), strict=True)),
    )


def _match(exposure: np.ndarray, ccdnum: np.ndarray, old_exposure: np.ndarray, old_ccdnum: np.ndarray) -> np.ndarray:
    """For each CCD its place among the old ones, -1 if there is none: int64."""
    if not len(old_exposure):
        return np.full(len(exposure), -1, np.int64)
    width = int(max(ccdnum.max(initial=0), old_ccdnum.max(initial=0))) + 2
    keys, old_keys = (a * width + b + 1 for a, b in ((exposure, ccdnum), (old_exposure, old_ccdnum)))
    order = np.argsort(old_keys, kind="stable")
    place = np.minimum(np.searchsorted(old_keys[order], keys), len(order) - 1)
    return np.where(old_keys[order][place] == keys, order[place], -1)


def _differences(
    now: Columns, rows: np.ndarray, before: Columns, partner: np.ndarray, matched: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Each compared column with the mask of the rows that differ; in the order in which they are named."""
    found = []
    for name in TEXT:
        if len(before[name]):
            found.append((name, matched & _text_differs(now[name][rows], before[name], partner, name == "image_path")))
    found.append(("ccdnum", ~matched))
    for name in NUMBERS:
        if len(before[name]):
            mine, theirs = now[name][rows], before[name][partner]
            found.append((name, matched & (mine != theirs) & ~(_unknown(mine) & _unknown(theirs))))
    return found


def _unknown(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _text_differs(mine: np.ndarray, before: np.ndarray, partner: np.ndarray, name_alone: bool) -> np.ndarray:
    words, codes = distinct(np.concatenate([mine, before]))
    if name_alone:
        _, again = distinct(np.array([PurePath(word).name for word in words.tolist()], dtype=object))
        codes = again[codes]
    return np.asarray(codes[: len(mine)] != codes[len(mine) :][partner])
