"""The table of decisions as JavaScript data: compact columns for all rows, details in chunks that load when needed.

The files are scripts, not JSON, because a page opened from disk may load scripts beside it but may not fetch them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]

CHUNK_ROWS = 5000
DETAILS = ("why", "worst_ccds", "nearest", "evidence", "plver", "plprocid", "extent")
_ORDER = {"bad": 0, "review": 1, "good": 2}


def interest_order(decisions: Columns) -> np.ndarray:
    """Rows as the table first shows them: bad, review, good, undecided; then by falling p_bad; then by expnum."""
    verdict = np.array([_ORDER.get(str(name), 3) for name in decisions["verdict"]], np.int64)
    p_bad = np.nan_to_num(decisions["p_bad"].astype(np.float64), nan=-1.0)
    return np.lexsort((decisions["expnum"], -p_bad, verdict))


def coded(values: np.ndarray) -> dict[str, Any]:
    """Text as a list of different values and a position for each row."""
    names = sorted({str(value) for value in values})
    position = {name: number for number, name in enumerate(names)}
    return {"names": names, "rows": [position[str(value)] for value in values]}


def rounded(values: np.ndarray, digits: int) -> list[float | None]:
    """Numbers with few digits; null where unknown."""
    return [round(float(value), digits) if math.isfinite(value) else None for value in values]


def columns_script(decisions: Columns, known: Mapping[int, str], pictured: set[int]) -> str:
    """The script with every row's short columns, in the order of `decisions`.

    Args:
        decisions: the columns of the decisions, already in the order of `interest_order`.
        known: what truth or labels say of an exposure, in words.
        pictured: exposures that have a card on the page.
    """
    expnum = decisions["expnum"].tolist()
    content = {
        "expnum": expnum,
        "band": coded(decisions["band"]),
        "night": decisions["night"].tolist(),
        "verdict": coded(decisions["verdict"]),
        "p_bad": rounded(decisions["p_bad"], 4),
        "reasons": coded(decisions["reasons"]),
        "novelty": rounded(decisions["novelty"], 2),
        "num_ccds": decisions["num_ccds"].tolist(),
        "num_decided": decisions["num_decided"].tolist(),
        "num_bad_ccds": decisions["num_bad_ccds"].tolist(),
        "known": coded(np.array([known.get(number, "") for number in expnum], object)),
        "pictured": [number for number in expnum if number in pictured],
        "chunk": CHUNK_ROWS,
    }
    return "window.HPCQA_TABLE = " + json.dumps(content, separators=(",", ":"), allow_nan=False) + ";\n"


def detail_scripts(decisions: Columns) -> Iterator[tuple[str, str]]:
    """File name and script of each chunk of details, in the order of `decisions`."""
    for number, start in enumerate(range(0, len(decisions["expnum"]), CHUNK_ROWS)):
        chunk = {name: decisions[name][start : start + CHUNK_ROWS] for name in DETAILS}
        rows = [[str(value) for value in row] for row in zip(*chunk.values(), strict=True)]
        text = json.dumps(rows, separators=(",", ":"))
        yield f"details-{number:05d}.js", f"window.hpcqaDetails({number}, {text});\n"
