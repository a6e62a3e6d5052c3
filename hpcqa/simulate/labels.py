"""Label lists of the simulated survey, in the formats in which people keep them, and the truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcqa.artifacts.store import write_text
from hpcqa.config import Config
from hpcqa.instruments import get
from hpcqa.simulate.defects import KINDS, Defect
from hpcqa.simulate.plan import ExposurePlan
from hpcqa.streams import stream

HEADER = ("expnum", "ccdnum", "verdict", "reasons", "severity", "comment")
# How often each list has a bad exposure that is labelled; single CCDs' ghosts go to the exclude list first.
LISTS = ("bad_expid", "problem", "review")
LIST_SHARES = (0.45, 0.2, 0.35)
# Words of DES's problem lists for the reasons that they know.
PROBLEMS = {
    "clouds": "Clouds",
    "telescope_moving": "Telescope Moving",
    "nobjects": "NObjects",
    "fringing": "Fringing",
    "ghost": "Ghosting",
    "wonky": "Wonky",
    "out_of_focus": "Out of Focus",
    "bright_star": "Canopus",
    "noise": "Readout",
    "saturated": "Saturated",
    "psf": "Telescope Tracking",
}
FLAGS = {"saturated": "1", "clouds": "2"}


def write_truth(path: Path, plans: Sequence[ExposurePlan]) -> None:
    """Every exposure's verdict, and a row for each CCD that a defect touches where it does not touch all."""
    write_text(path, _csv([row for plan in plans for row in truth_rows(plan)]))


def truth_rows(plan: ExposurePlan) -> list[tuple[str, ...]]:
    """The rows of one exposure in hpcqa's own label format."""
    number = str(plan.expnum)
    if not plan.bad:
        return [(number, "", "good", "", "", "")]
    kinds = "+".join(defect.kind for defect in plan.defects)
    worst = max(defect.severity for defect in plan.defects)
    rows: list[tuple[str, ...]] = [(number, "", "bad", _reasons(plan.defects), f"{worst:.3f}", kinds)]
    by_ccd: dict[int, list[Defect]] = {}
    for defect in plan.defects:
        for ccdnum in defect.ccds:
            by_ccd.setdefault(ccdnum, []).append(defect)
    for ccdnum, defects in sorted(by_ccd.items()):
        severity = max(defect.severity for defect in defects)
        kinds = "+".join(defect.kind for defect in defects)
        rows.append((number, str(ccdnum), "bad", _reasons(defects), f"{severity:.3f}", kinds))
    return rows


def _reasons(defects: Sequence[Defect]) -> str:
    return "|".join(dict.fromkeys(defect.reason for defect in defects))


def labelled_plans(config: Config, plans: Sequence[ExposurePlan]) -> list[ExposurePlan]:
    """The exposures that some list names: a share of those without a novel reason, good and bad alike."""
    novel = set(config.simulate.novel)
    known = [plan for plan in plans if novel.isdisjoint(defect.reason for defect in plan.defects)]
    order = stream(config.seed, "simulate", "labelled").permutation(len(known))
    chosen = order[: round(config.simulate.labelled_fraction * len(known))]
    return [known[place] for place in np.sort(chosen)]


def write_labels(folder: Path, config: Config, plans: Sequence[ExposurePlan]) -> int:
    """Write all lists; returns how many exposures they name."""
    chosen = labelled_plans(config, plans)
    names = {ccd.ccdnum: ccd.ccdname for ccd in get(config.instrument.name).ccds}
    parts: dict[str, list[ExposurePlan]] = {name: [] for name in (*LISTS, "ghost")}
    for plan in chosen:
        parts[_list_of(config.seed, plan)].append(plan)
    write_text(folder / "bad_expid.txt", bad_expid_text(parts["bad_expid"], names, config.seed))
    write_text(folder / "ghost-scatter-y00.txt", ghost_text(parts["ghost"], names, config.seed))
    write_text(folder / "problem-y00.txt", problem_text(parts["problem"]))
    write_text(folder / "review.csv", _csv([row for plan in parts["review"] for row in truth_rows(plan)]))
    return len(chosen)


def _list_of(seed: int, plan: ExposurePlan) -> str:
    if not plan.bad:
        return "review"
    rng = stream(seed, "simulate", plan.expnum, "list")
    if len(plan.defects) == 1 and plan.defects[0].reason == "ghost" and plan.defects[0].ccds:
        return "ghost" if rng.random() < 0.7 else "bad_expid"
    name = str(rng.choice(LISTS, p=LIST_SHARES))
    fits_problem = len(plan.defects) == 1 and not plan.defects[0].ccds and plan.defects[0].reason in PROBLEMS
    return "bad_expid" if name == "problem" and not fits_problem else name


def bad_expid_text(plans: Sequence[ExposurePlan], names: dict[int, str], seed: int) -> str:
    """The list of legacypipe: `EXPNUM[-CCDNAME] [flag] [text]` in sections whose comment lines carry the reason."""
    whole: dict[str, list[str]] = {}
    single: dict[str, list[str]] = {}
    for plan in plans:
        first = plan.defects[0]
        if all(defect.ccds for defect in plan.defects):
            touched = sorted({ccdnum for defect in plan.defects for ccdnum in defect.ccds})
            entries = [f"{plan.expnum}-{names[ccdnum]}" for ccdnum in touched]
            single.setdefault(KINDS[first.kind].comment, []).extend(entries)
        else:
            whole.setdefault(plan.night, []).append(_expid_line(plan, stream(seed, "simulate", plan.expnum, "line")))
    lines = ["#EXPID\tFlag\tcomments", "#Flags: 1=possibly saturated; 2=clouds; 3=other source"]
    for night, entries in sorted(whole.items()):
        lines += ["", f"# {night[:4]}-{night[4:6]}-{night[6:]}", *entries]
    for comment, entries in sorted(single.items()):
        lines += ["", f"# Single CCDs: {comment}", *entries]
    return "\n".join(lines) + "\n"


def _expid_line(plan: ExposurePlan, rng: np.random.Generator) -> str:
    """One of the ways in which people have written such lines."""
    comments = ", ".join(KINDS[defect.kind].comment for defect in plan.defects)
    seeing = plan.conditions.fwhm
    reason = plan.defects[0].reason
    if reason == "bad_seeing":
        return f'{plan.expnum} 3 seeing={seeing:.1f}"'
    if reason == "nonoptimal":
        depth = plan.conditions.transparency * min(plan.conditions.exptime / 90, 1)
        return f"{plan.expnum} expfactor={depth:.3f}  seeing={seeing:.3f}"
    flag = FLAGS.get(reason, "3")
    separator = "\t" if rng.random() < 0.3 else "  "
    if reason in FLAGS and rng.random() < 0.3 and len(plan.defects) == 1:
        return f"{plan.expnum}\t{flag}"
    return f"{plan.expnum}{separator}{flag}{separator}{comments}"


def ghost_text(plans: Sequence[ExposurePlan], names: dict[int, str], seed: int) -> str:
    """DES's exclude list: one row a CCD; `nan` where the person did not note name and id."""
    lines = ["#date     expnum ccd id ccdnum"]
    for plan in plans:
        rng = stream(seed, "simulate", plan.expnum, "line")
        for ccdnum in sorted({ccdnum for defect in plan.defects for ccdnum in defect.ccds}):
            named = ("nan", "nan") if rng.random() < 0.15 else (str(ccdnum + 50), names[ccdnum])
            lines.append(f"{plan.night}  {plan.expnum} {named[0]:>3} {named[1]:<3} {ccdnum:>2}")
    return "\n".join(lines) + "\n"


def problem_text(plans: Sequence[ExposurePlan]) -> str:
    """DES's list of exposures' problems; columns are two or more spaces apart because reasons have spaces."""
    lines = ["#Nite           Exposure        Problem"]
    lines += [f"{plan.night}        {plan.expnum}         {PROBLEMS[plan.defects[0].reason]}" for plan in plans]
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[tuple[str, ...]]) -> str:
    stream_out = io.StringIO()
    writer = csv.writer(stream_out, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(rows)
    return stream_out.getvalue()
