"""What changed between the decisions of two runs, exposure by exposure, and why.

Two releases of a survey, or two ways of deciding on one. An exposure is listed if its verdict, what is bad of it, or
its processing differs, and if only one of the runs has it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpcqa.artifacts.catalog import CCD_DECISIONS, DECISIONS, LABELS
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.labelled import merge
from hpcqa.artifacts.parts import part_files
from hpcqa.artifacts.store import atomic_path, read_provenance, read_table, write_text
from hpcqa.config import Config
from hpcqa.config.frozen import STAGE_SECTIONS, load, settings_of
from hpcqa.errors import ConfigError, DataError

Columns = Mapping[str, np.ndarray]

USED = (
    *("expnum", "band", "night", "verdict", "p_bad", "extent", "reasons", "why"),
    *("num_decided", "plver", "plprocid"),
)
MOVED = 0.005  # of p_bad, from which on a score is said to have moved
SHOWN = 40


@dataclass(frozen=True)
class Release:
    """What is compared of one run.

    Attributes:
        decisions: the columns USED, by increasing expnum.
        bad_ccds: names of the CCDs that are bad by themselves, by expnum, of exposures that are bad in some CCDs.
        labels: (ccdnum, bad, reasons) that the lists say, by expnum.
        made_with: what every decision depends on ("network", "calibration", "classifier", "settings of classify"), as
            a digest.
    """

    name: str
    decisions: Columns
    bad_ccds: Mapping[int, frozenset[str]]
    labels: Mapping[int, frozenset[tuple[int, bool, int]]]
    made_with: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """One exposure that differs.

    Attributes:
        flag: added, lifted, changed (other CCDs, or other extent), open (was bad, now in review or undecided), gone
            (was bad, is in no table any more), or empty.
        ccds: CCDs that are bad now and were not ("+N4") and the reverse ("-S7").
        why: reasons, most telling first, joined by semicolons.
    """

    expnum: int
    band: str
    night: int
    flag: str
    before: str
    after: str
    p_before: float
    p_after: float
    reasons_before: str
    reasons_after: str
    ccds: str
    plver_before: str
    plver_after: str
    plprocid_before: str
    plprocid_after: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """All changes, flags first; and counts for the summary."""

    before: str
    after: str
    counts: Mapping[str, int]
    made_otherwise: tuple[str, ...]
    changes: tuple[Change, ...]

    def sentence(self) -> str:
        """One sentence of summary."""
        count = self.counts
        other = ", ".join(f"other {name}" for name in self.made_otherwise) or "same network and classifier"
        return (
            f"{self.after} against {self.before}: {count['exposures_before']:,} exposures became "
            f"{count['exposures_after']:,} ({count['new']:,} new, {count['gone']:,} gone, {count['reprocessed']:,} "
            f"reprocessed); flags: {count['added']:,} added, {count['lifted']:,} lifted, {count['changed']:,} changed, "
            f"{count['kept']:,} kept, {count['open']:,} back in review or undecided, {count['flag_gone']:,} gone with "
            f"their exposures; {count['other_verdicts']:,} other verdicts changed; {other}."
        )


def compare_runs(before: tuple[Config, RunFolder], after: tuple[Config, RunFolder]) -> Comparison:
    """Compare the decisions of two runs.

    Raises:
        DataError: one of them has no decisions, or a table is damaged.
    """
    return compare(read_release(*before), read_release(*after))


def read_release(config: Config, folder: RunFolder) -> Release:
    """Read what is compared of a run."""
    decisions = read_table(folder.need("decisions", "classify"), DECISIONS, USED)
    labels = folder.find("labels")
    said: dict[int, set[tuple[int, bool, int]]] = {}
    if labels is not None:
        merged = merge(read_table(labels, LABELS, ("expnum", "ccdnum", "bad", "reasons")))
        for expnum, ccdnum, bad, reasons in zip(*(values.tolist() for values in merged[:4]), strict=True):
            said.setdefault(expnum, set()).add((ccdnum, bad, reasons))
    return Release(
        str(folder.path),
        decisions,
        _bad_ccds(folder, decisions),
        {expnum: frozenset(rows) for expnum, rows in said.items()},
        _made_with(config, folder),
    )


def _bad_ccds(folder: RunFolder, decisions: Columns) -> dict[int, frozenset[str]]:
    partly = decisions["expnum"][decisions["extent"] == "ccds"]
    ccds = read_table(
        folder.need("ccd_decisions", "classify"), CCD_DECISIONS, ("expnum", "ccdnum", "ccdname", "verdict")
    )
    found: dict[int, set[str]] = {}
    for row in np.flatnonzero((ccds["verdict"] == "bad") & np.isin(ccds["expnum"], partly)).tolist():
        name = str(ccds["ccdname"][row]) or f"ccd{ccds['ccdnum'][row]}"
        found.setdefault(int(ccds["expnum"][row]), set()).add(name)
    return {expnum: frozenset(names) for expnum, names in found.items()}


def _made_with(config: Config, folder: RunFolder) -> dict[str, str]:
    made = {"settings of classify": repr(settings_of(config, STAGE_SECTIONS["classify"]))}
    embeddings = part_files(folder, "embeddings")
    if embeddings:
        made["network"] = str(read_provenance(embeddings[0]).parents.get("network", ""))
    for name in ("calibration", "classifier"):
        path = folder.find(name)
        if path is not None:
            made[name] = read_provenance(path).content
    return made


# The core -------------------------------------------------------------------------------------------------------------


def compare(before: Release, after: Release) -> Comparison:
    """Compare two releases. Pure."""
    old, new = before.decisions, after.decisions
    expnum = np.union1d(old["expnum"], new["expnum"])
    rows_old, rows_new = (_rows(side["expnum"], expnum) for side in (old, new))
    both = (rows_old >= 0) & (rows_new >= 0)
    differs = ~both
    for name in ("verdict", "extent", "plver", "plprocid"):
        differs[both] |= old[name][rows_old[both]] != new[name][rows_new[both]]
    partly = both & (_of(new["extent"], rows_new) == "ccds")
    for row in np.flatnonzero(partly & ~differs).tolist():
        number = int(expnum[row])
        differs[row] = before.bad_ccds.get(number) != after.bad_ccds.get(number)
    otherwise = tuple(name for name in after.made_with if before.made_with.get(name, "") != after.made_with[name])
    changes = [
        _change(before, after, int(expnum[row]), int(rows_old[row]), int(rows_new[row]), otherwise)
        for row in np.flatnonzero(differs).tolist()
    ]
    changes.sort(key=lambda change: (_ORDER.index(change.flag), change.before == change.after, change.expnum))
    kept = both & ~differs & (_of(new["verdict"], rows_new) == "bad")
    counts = _counts(changes, old, new, int(kept.sum()))
    return Comparison(before.name, after.name, counts, otherwise, tuple(changes))


_ORDER = ("added", "lifted", "changed", "open", "gone", "")


def _rows(where: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of some exposures in a sorted column, -1 where it has none."""
    if not len(where):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(where, wanted), len(where) - 1)
    return np.where(where[place] == wanted, place, -1)


def _of(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = np.full(len(rows), "", dtype=object)
    found[rows >= 0] = values[rows[rows >= 0]]
    return found


def _counts(changes: Sequence[Change], old: Columns, new: Columns, kept: int) -> dict[str, int]:
    flags = Counter(change.flag for change in changes)
    still = sum(change.flag == "" and change.before == change.after and _is_bad(change.after) for change in changes)
    return {
        "exposures_before": len(old["expnum"]),
        "exposures_after": len(new["expnum"]),
        "new": sum(not change.before for change in changes),
        "gone": sum(not change.after for change in changes),
        "reprocessed": sum("reprocessed" in change.why for change in changes),
        "added": flags["added"],
        "lifted": flags["lifted"],
        "changed": flags["changed"],
        "kept": kept + still,
        "open": flags["open"],
        "flag_gone": flags["gone"],
        "other_verdicts": sum(
            change.flag == "" and bool(change.before and change.after) and change.before != change.after
            for change in changes
        ),
    }


def _is_bad(verdict: str) -> bool:
    return verdict.startswith("bad")


def _change(
    before: Release, after: Release, expnum: int, row_old: int, row_new: int, otherwise: Sequence[str]
) -> Change:
    old, new = (_row(release.decisions, row) for release, row in ((before, row_old), (after, row_new)))
    lost, found = (release.bad_ccds.get(expnum, frozenset()) for release in (before, after))
    moved = [f"+{name}" for name in sorted(found - lost)] + [f"-{name}" for name in sorted(lost - found)]
    some = new if row_new >= 0 else old
    verdicts = _words(old), _words(new)
    return Change(
        expnum=expnum,
        band=str(some["band"]),
        night=int(some["night"]),
        flag=_flag(*verdicts, bool(moved)),
        before=verdicts[0],
        after=verdicts[1],
        p_before=float(old.get("p_bad", np.nan)),
        p_after=float(new.get("p_bad", np.nan)),
        reasons_before=str(old.get("reasons", "")),
        reasons_after=str(new.get("reasons", "")),
        ccds=" ".join(moved) if old and new else "",
        plver_before=str(old.get("plver", "")),
        plver_after=str(new.get("plver", "")),
        plprocid_before=str(old.get("plprocid", "")),
        plprocid_after=str(new.get("plprocid", "")),
        why="; ".join(_why(old, new, before.labels.get(expnum) != after.labels.get(expnum), otherwise)),
    )


def _row(columns: Columns, row: int) -> dict[str, Any]:
    return {name: columns[name][row] for name in USED} if row >= 0 else {}


def _words(row: Mapping[str, Any]) -> str:
    """The verdict with its extent, e.g. "bad (ccds)"; empty for an exposure that is not there."""
    if not row:
        return ""
    return f"bad ({row['extent']})" if row["verdict"] == "bad" and row["extent"] == "ccds" else str(row["verdict"])


def _flag(before: str, after: str, ccds_moved: bool) -> str:
    if _is_bad(after):
        if not _is_bad(before):
            return "added"
        return "changed" if before != after or ccds_moved else ""
    if not _is_bad(before):
        return ""
    return {"": "gone", "good": "lifted"}.get(after, "open")


def _why(old: Mapping[str, Any], new: Mapping[str, Any], relabelled: bool, otherwise: Sequence[str]) -> Iterator[str]:
    """Why an exposure is decided otherwise, most telling first."""
    if not old or not new:
        yield "new" if new else "gone"
        return
    for name in ("plver", "plprocid"):
        if old[name] != new[name]:
            yield f"reprocessed: {name.upper()} {old[name] or 'none'} became {new[name] or 'none'}"
    if old["num_decided"] != new["num_decided"]:
        yield f"{new['num_decided']} of its CCDs were seen instead of {old['num_decided']}"
    if relabelled:
        yield "other labels"
    yield from (f"other {name}" for name in otherwise)
    shift = float(new["p_bad"]) - float(old["p_bad"])
    if abs(shift) >= MOVED:
        yield f"p_bad {float(old['p_bad']):.3f} became {float(new['p_bad']):.3f}"
    if str(new["why"]) and new["why"] != old["why"]:
        yield str(new["why"])


# Forms ----------------------------------------------------------------------------------------------------------------

NAMES = tuple(field.name for field in dataclasses.fields(Change))


def as_text(found: Comparison, most: int = SHOWN) -> str:
    """A table for a terminal, flags first, and the summary."""
    lines = []
    shown = [change for change in found.changes if change.flag or change.before != change.after][:most]
    for change in shown:
        what = f"{change.before or '-'} -> {change.after or '-'}"
        ccds = f" [{change.ccds}]" if change.ccds else ""
        lines.append(f"{change.expnum:>14}  {change.band:<5} {change.flag or '-':<8} {what:<24} {change.why}{ccds}")
    if lines:
        lines.insert(0, f"{'exposure':>14}  {'band':<5} {'flag':<8} {'verdict':<24} why")
    if len(found.changes) > len(shown):
        lines.append(f"... {len(found.changes) - len(shown)} more; out=FILE.csv writes all.")
    return "\n".join([*lines, found.sentence()])


def as_plain(found: Comparison) -> dict[str, Any]:
    """What `--json` prints; NaN as None."""
    rows = [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in map(dataclasses.asdict, found.changes)
    ]
    return {
        "before": found.before,
        "after": found.after,
        "summary": found.sentence(),
        "counts": dict(found.counts),
        "made_otherwise": list(found.made_otherwise),
        "changes": rows,
    }


def as_csv(found: Comparison) -> str:
    """All changes as CSV; unknown numbers are empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(NAMES)
    for change in found.changes:
        row = dataclasses.astuple(change)
        writer.writerow(["" if isinstance(value, float) and np.isnan(value) else value for value in row])
    return stream.getvalue()


def write(found: Comparison, path: Path) -> None:
    """Write all changes as CSV or Parquet, by the name's ending.

    Raises:
        ConfigError: another ending.
        EnvironmentProblem: the disk refuses.
    """
    if path.suffix == ".csv":
        write_text(path, as_csv(found))
    elif path.suffix == ".parquet":
        kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
        fields = [pa.field(field.name, kinds[str(field.type)]) for field in dataclasses.fields(Change)]
        table = pa.Table.from_pylist([dataclasses.asdict(change) for change in found.changes], pa.schema(fields))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)
    else:
        raise ConfigError(f"out={path}: expected a name that ends in .csv or .parquet.")


def changes_since_base(config: Config, folder: RunFolder) -> Comparison | None:
    """What an update changed against the run that it goes on from; None for other runs, or if that has no decisions."""
    if not config.survey.update or not folder.bases:
        return None
    earlier = RunFolder(folder.bases[0], folder.bases[1:])
    try:
        return compare_runs((load(earlier.output("run"))[0], earlier), (config, folder))
    except DataError:
        return None
