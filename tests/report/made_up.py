"""A run folder as the other stages leave it, with made-up decisions; and made-up views of its exposures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hpcqa.artifacts.catalog import CALIBRATION, CCD_DECISIONS, DECISIONS, LABELS, MANIFEST, SHARD
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Provenance, Schema
from hpcqa.artifacts.store import write_arrays, write_json, write_table
from hpcqa.instruments import get
from hpcqa.reasons import BIT
from hpcqa.report.viewer import ExposureViews
from hpcqa.survey.cuts import BIT as CUT_BIT

FIRST = 500001
CCDS = get("minicam").ccds


def _figures(value: float) -> dict[str, object]:
    def entry(level: float, **more: object) -> dict[str, object]:
        return {"value": level, "low": max(0.0, level - 0.06), "high": min(1.0, level + 0.05), **more}

    return {
        "average_precision": entry(value),
        "roc_area": entry(min(1.0, value + 0.06)),
        "recall": entry(value - 0.2, count=76),
        "recall_few_ccds": entry(value - 0.5, count=19),
        "recall_novel": entry(value - 0.3, count=12),
    }


SHOWN = ("average_precision", "recall", "recall_few_ccds", "recall_novel")
EVALUATION: dict[str, object] = {
    "against": "the truth table, on exposures without a label",
    "exposures": 198,
    "bad": 76,
    "undecided": 2,
    "nights": 12,
    "missing": "",
    "false_rate": 0.01,
    "confusion": {"verdicts": ["bad", "review", "good", "undecided"], "good": [3, 11, 108, 1], "bad": [52, 15, 9, 1]},
    "figures": _figures(0.91),
    "curves": {
        "precision_recall": {
            "recall": list(np.linspace(0, 1, 60)),
            "precision": list(1 - 0.6 * np.linspace(0, 1, 60) ** 4),
        },
        "roc": {"fpr": list(np.linspace(0, 1, 60)), "tpr": list(np.linspace(0, 1, 60) ** 0.15)},
    },
    "reliability": [
        {
            "low": n / 10,
            "high": (n + 1) / 10,
            "mean_p_bad": n / 10 + 0.05,
            "share_bad": min(1, n / 9),
            "count": 40 - 4 * n,
        }
        for n in range(10)
    ],
    "calibration_error": 0.031,
    "reasons": [
        {
            "reason": name,
            "labelled": number % 4,
            "named": 0.7,
            "value": 1 - 0.13 * number,
            "low": 0.1,
            "high": 1.0,
            "count": 9,
        }
        for number, name in enumerate(("psf", "clouds", "ghost", "amplifier", "noise", "pupil", "edge_glow"))
    ],
    "controls": [
        {"name": name, "doc": name, **_figures(value)}
        for name, value in (
            ("numbers", 0.86),
            ("network", 0.78),
            ("numbers+network", 0.91),
            ("published", 0.5),
            ("untrained", 0.77),
            ("numbers+untrained", 0.84),
            ("published-untrained", 0.5),
        )
    ],
    "differences": [
        {"name": name, "less": less, "doc": "", **{key: {"value": 0.04, "low": -0.01, "high": 0.09} for key in SHOWN}}
        for name, less in (("network", "untrained"), ("numbers+network", "numbers"))
    ],
}
KINDS = ("ghost", "clouds", "amplifier", "psf", "out_of_focus", "noise")


def defaults(schema: Schema, rows: int) -> dict[str, np.ndarray]:
    """Every column of a schema, empty or zero."""
    made = {}
    for column in schema.columns:
        made[column.name] = np.full(rows, "", object) if column.dtype == "str" else np.zeros(rows, column.dtype)
    return made


def rows_of(exposures: int) -> tuple[np.ndarray, np.ndarray]:
    expnum = np.repeat(FIRST + np.arange(exposures), len(CCDS))
    return expnum, np.tile([ccd.ccdnum for ccd in CCDS], exposures)


def make_run(path: Path, exposures: int = 60, *, cut: int = 3, failed: int = 2, undecided: bool = False) -> RunFolder:
    """A run of `exposures`, the last `cut` of which were cut and `failed` CCDs of the first of which failed."""
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    expnum, ccdnum = rows_of(exposures)
    is_cut = expnum >= FIRST + exposures - cut
    p_bad = np.clip(rng.beta(0.35, 0.7, exposures), 0, 1)
    lost = np.full(exposures, undecided)
    lost[exposures - cut :] = True
    verdict = np.where(lost, "undecided", np.where(p_bad > 0.8, "bad", np.where(p_bad > 0.5, "review", "good")))
    _manifest(folder, expnum, ccdnum, is_cut)
    _decisions(folder, p_bad, verdict.astype(object), rng)
    has_failed = (expnum == FIRST) & (np.cumsum(expnum == FIRST) <= failed)
    _ccds(folder, expnum, ccdnum, np.repeat(p_bad, len(CCDS)), np.repeat(lost, len(CCDS)), is_cut, has_failed)
    return folder


def _manifest(folder: RunFolder, expnum: np.ndarray, ccdnum: np.ndarray, is_cut: np.ndarray) -> None:
    rows = defaults(MANIFEST, len(expnum))
    rows.update(
        expnum=expnum,
        ccdnum=ccdnum,
        ccdname=np.array([CCDS[number - 1].ccdname for number in ccdnum], object),
        camera=np.full(len(expnum), "minicam", object),
        band=np.array(list("grz"), object)[expnum % 3],
        exptime=np.full(len(expnum), 90.0),
        ra=np.full(len(expnum), 150.1),
        dec=np.full(len(expnum), -2.2),
        object=np.full(len(expnum), "field <b>7</b>", object),
        table=np.full(len(expnum), "survey-ccds-minicam.fits.gz", object),
        table_row=np.arange(len(expnum)),
        cuts=np.where(is_cut, CUT_BIT["no_file"], 0),
        cut_detail=np.where(is_cut, "images/g/one.fits.fz is not there", "").astype(object),
        shard=np.where(is_cut, -1, 0),
    )
    write_table(folder.output("manifest"), MANIFEST, rows, Provenance("made-up"))


def _decisions(folder: RunFolder, p_bad: np.ndarray, verdict: np.ndarray, rng: np.random.Generator) -> None:
    count = len(p_bad)
    rows = defaults(DECISIONS, count)
    lost = verdict == "undecided"
    kinds = np.array(KINDS, object)[np.arange(count) % len(KINDS)]
    rows.update(
        expnum=FIRST + np.arange(count),
        camera=np.full(count, "minicam", object),
        band=np.array(list("grz"), object)[(FIRST + np.arange(count)) % 3],
        night=20250105 + np.arange(count) % 12,
        verdict=verdict,
        p_bad=np.where(lost, np.nan, p_bad),
        reasons=np.where(np.isin(verdict, ["bad", "review"]), kinds, "").astype(object),
        novelty=np.where(lost, np.nan, rng.normal(0, 1, count) + 7 * p_bad**2),
        why=np.array(["cut: The image file is missing." if name == "undecided" else "" for name in verdict], object),
        num_ccds=np.full(count, len(CCDS)),
        num_decided=np.where(lost, 0, len(CCDS)),
        extent=np.where(verdict == "bad", "ccds", "").astype(object),
        num_bad_ccds=np.where(verdict == "bad", 2, 0),
        worst_ccds=np.full(count, "S4 0.91; N2 0.88; N5 0.40", object),
        nearest=np.full(count, "500012 bad: ghost; 500031 bad: clouds; 500044 good", object),
        evidence=np.full(count, "sky 4.1 sigma above r band; FWHM 3.2 sigma above", object),
        plver=np.full(count, "V5.2.2", object),
        plprocid=np.full(count, "abc1234", object),
    )
    write_table(folder.output("decisions"), DECISIONS, rows, Provenance("made-up"))


def _ccds(
    folder: RunFolder,
    expnum: np.ndarray,
    ccdnum: np.ndarray,
    p_bad: np.ndarray,
    lost: np.ndarray,
    is_cut: np.ndarray,
    failed: np.ndarray,
) -> None:
    rows = defaults(CCD_DECISIONS, len(expnum))
    why = np.full(len(expnum), "", object)
    why[is_cut] = "cut: The image file is missing."
    why[failed] = "the image of this CCD cannot be decoded"
    rows.update(
        expnum=expnum,
        ccdnum=ccdnum,
        ccdname=np.array([CCDS[number - 1].ccdname for number in ccdnum], object),
        verdict=np.where(lost | failed, "undecided", np.where(p_bad > 0.8, "bad", "good")).astype(object),
        p_bad=np.where(lost | failed, np.nan, p_bad * (0.5 + 0.5 * (ccdnum % 5) / 4)),
        why=why,
        table=np.full(len(expnum), "survey-ccds-minicam.fits.gz", object),
        table_row=np.arange(len(expnum)),
    )
    write_table(folder.output("ccd_decisions"), CCD_DECISIONS, rows, Provenance("made-up"))


def add_labels(folder: RunFolder, name: str = "labels", exposures: int = 30) -> None:
    """Labels of the first exposures: every third good, every third bad as a whole, every third with two bad CCDs."""
    expnum, ccdnum, reasons = [], [], []
    for number in range(exposures):
        which = FIRST + number
        for ccd in {0: (-1,), 1: (-1,), 2: (3, 5)}[number % 3]:
            expnum.append(which)
            ccdnum.append(ccd)
            reasons.append(0 if number % 3 == 0 else BIT[KINDS[number % len(KINDS)]])
    rows = defaults(LABELS, len(expnum))
    rows.update(expnum=expnum, ccdnum=ccdnum, reasons=reasons, bad=np.array(reasons) != 0)
    write_table(folder.output(name), LABELS, rows, Provenance("made-up"))


def add_metrics(folder: RunFolder, steps: int = 300) -> None:
    """A log of a training that went well, with an unfinished last line."""
    lines = []
    for step in range(0, steps + 1, 10):
        fall = np.exp(-step / 90)
        line = {"step": step, "loss": 6 + 3 * fall, "skipped": 0.0, "why": "text"}
        for view in ("context", "background", "focal_plane"):
            line |= {f"loss_dino_{view}": 1.4 + 0.7 * fall, f"loss_ibot_{view}": 0.6 + 0.3 * fall}
            line |= {
                f"rank_{view}": len(view) + 30 * (1 - fall),
                f"teacher_entropy_{view}": 0.3 + 0.02 * len(view) + 0.4 * fall,
            }
        if step % 50 == 0:
            line |= {"knn_ap": 0.78 + 0.08 * (1 - fall), "knn_ap_untrained": 0.77, "knn_ap_numbers": 0.86}
        lines.append(json.dumps(line))
    folder.output("metrics").write_text("\n".join(lines) + '\n{"step": 9')


def add_evaluation(folder: RunFolder, content: object) -> None:
    write_json(folder.output("evaluation"), content)


def add_shards(folder: RunFolder, exposures: int = 3, failed: int = 2) -> None:
    """One shard of the first exposures; the first CCDs of the first exposure failed. And a calibration."""
    expnum, ccdnum = rows_of(exposures)
    rng = np.random.default_rng(3)
    sizes = {"ccd": len(expnum), "exposure": exposures, "cy": 128, "cx": 64, "by": 32, "bx": 16, "dy": 128, "dx": 128}
    sizes |= {"number": 2, "pattern": len(CCDS)}
    arrays = blank(SHARD, sizes)
    bits = np.where((expnum == FIRST) & (np.arange(len(expnum)) < failed), 2, 0)
    arrays.update(
        expnum=expnum,
        ccdnum=ccdnum,
        failed=bits,
        wrong_sum=(expnum == FIRST + 1) & (ccdnum == 5),
        background_bin=np.full(len(expnum), 16),
        context=rng.normal(0, 1, arrays["context"].shape) + ccdnum[:, None, None],
        background=rng.normal(0, 1e-3, arrays["background"].shape),
        background_noise=np.full(arrays["background"].shape, 1e-3),
        exposure=FIRST + np.arange(exposures),
        exposure_band=np.array(list("grz"), object)[(FIRST + np.arange(exposures)) % 3],
    )
    arrays["background"][-1, 0, 0] = np.nan
    path = folder.output("shards") / shard_name(0)
    write_arrays(path, SHARD, arrays, Provenance("made-up"), {"number_names": ["sky", "fwhm"]})
    patterns = blank(CALIBRATION, sizes)
    patterns.update(ccdnum=np.array([ccd.ccdnum for ccd in CCDS]), band=np.full(len(CCDS), "r", object))
    write_arrays(folder.output("calibration"), CALIBRATION, patterns, Provenance("made-up"))


def blank(schema: Schema, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Every dataset of a schema, zero or empty, with axes of some lengths."""
    made = {}
    for column in schema.columns:
        shape = tuple(sizes[axis] for axis in column.dims)
        made[column.name] = np.full(shape, "", object) if column.dtype == "str" else np.zeros(shape, column.dtype)
    return made


class MadeUpViews:
    """Views of every exposure: noise, stars, and a ghost on one CCD."""

    def __init__(self, without: tuple[int, ...] = ()) -> None:
        self._without = without

    def __contains__(self, expnum: int) -> bool:
        return expnum not in self._without

    def views(self, expnum: int) -> ExposureViews:
        rng = np.random.default_rng(expnum)
        sky = rng.normal(0, 0.3, (128, 64))
        for _ in range(40):
            row, column = rng.integers(0, 128), rng.integers(0, 64)
            sky[row : row + 2, column : column + 2] += rng.exponential(2)
        rows, columns = np.mgrid[:128, :64]
        ring = np.hypot(rows - 70, columns - 30)
        maps = rng.normal(0, 0.5, (32, 16))
        stars = rng.normal(0, 0.4, (128, 128))
        stars[15::32, 15::32] += 4
        numbers = [ccd.ccdnum for ccd in CCDS if ccd.ccdnum != 9]
        context = {number: np.roll(sky, 9 * number, axis=0).astype(np.float32) for number in numbers}
        context[5] = context[5] + 0.8 * ((ring < 22) & (ring > 8))
        return ExposureViews(
            expnum,
            context,
            {number: (np.roll(maps, number) + 1.5 * (number == 5)).astype(np.float32) for number in numbers},
            {number: np.roll(stars, number, axis=1).astype(np.float32) for number in numbers},
            rng.normal(0, 1, (64, 64)).astype(np.float32),
            {9: 2} | dict.fromkeys(numbers, 0),
        )
