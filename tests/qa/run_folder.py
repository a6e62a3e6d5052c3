"""A run folder as the stages before fit leave it, from the synthetic survey."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Provenance, Schema
from hpcqa.config import ClassifyConfig, Config, EvaluateConfig, FitConfig, SurveyConfig
from hpcqa.qa.learn import BAD, GOOD, Examples
from tests.qa.synthetic import NUMBERS, WIDTH, survey

FAILED_EXPNUM, CUT_EXPNUM = 5000, 5001
WORDS = ["the image file is not there", "the image file cannot be read or is not FITS"]


def settings(run: Path, **changes: object) -> Config:
    config = Config(
        run=str(run),
        survey=SurveyConfig(labels=["labels.csv"], truth="truth.csv"),
        fit=FitConfig(bad_rate=0.4, pca=8),
        classify=ClassifyConfig(),
        evaluate=EvaluateConfig(bootstrap=50),
    )
    return dataclasses.replace(config, **changes)


def empty_columns(schema: Schema, rows: int) -> dict[str, np.ndarray]:
    columns = {}
    for column in schema.columns:
        if column.dtype == "str":
            columns[column.name] = np.full(rows, "", object)
        else:
            columns[column.name] = np.zeros(rows, column.dtype)
    return columns


def make_manifest(examples: Examples) -> dict[str, np.ndarray]:
    """Every CCD, then an exposure that could not be read and one that a cut removed, two CCDs each."""
    ccds = examples.raw.num_ccds
    columns = empty_columns(catalog.MANIFEST, ccds + 4)
    sizes = examples.raw.sizes()
    columns["expnum"] = np.r_[np.repeat(examples.expnum, sizes), [FAILED_EXPNUM] * 2, [CUT_EXPNUM] * 2]
    columns["ccdnum"] = np.r_[examples.ccdnum, 1, 2, 1, 2].astype(np.int32)
    columns["ccdname"] = np.array([f"N{number}" for number in columns["ccdnum"]], object)
    columns["night"] = np.r_[np.repeat(examples.night, sizes), [20250101] * 4].astype(np.int32)
    columns["band"][:], columns["camera"][:] = "g", "minicam"
    columns["table"][:] = "survey-ccds-minicam.fits"
    columns["table_row"] = np.arange(ccds + 4)
    columns["cuts"][-2:] = 4
    columns["cut_detail"][-2:] = "exptime 5 s is shorter than 10 s"
    columns["plver"][:] = "V1"
    return columns


def make_labels(examples: Examples) -> dict[str, np.ndarray]:
    rows: list[tuple[int, int, bool, int]] = []
    owner = examples.exposure_of_ccd()
    for row, expnum in enumerate(examples.expnum.tolist()):
        if examples.whole[row] in (GOOD, BAD):
            rows.append((expnum, -1, bool(examples.whole[row] == BAD), int(examples.reasons[row])))
        for ccd in np.flatnonzero((owner == row) & (examples.ccd == BAD)).tolist():
            rows.append((expnum, int(examples.ccdnum[ccd]), True, int(examples.ccd_reasons[ccd])))
    columns = empty_columns(catalog.LABELS, len(rows))
    for name, place in (("expnum", 0), ("ccdnum", 1), ("bad", 2), ("reasons", 3)):
        columns[name] = np.array([row[place] for row in rows], catalog.LABELS.column(name).dtype)
    return columns


def write_embeddings(folder: Path, examples: Examples, per_file: int = 20) -> None:
    for number, start in enumerate(range(0, len(examples.expnum), per_file)):
        part = examples.select(np.arange(start, min(start + per_file, len(examples.expnum))))
        expnum = np.repeat(part.expnum, part.raw.sizes())
        arrays = {"expnum": expnum, "ccdnum": part.ccdnum, "failed": np.zeros(len(expnum), np.int64)}
        arrays |= {name: part.raw.ccd[name] for name in ("numbers", "context", "background", "detail")}
        arrays |= {"exposure": part.expnum, "focal_plane": part.raw.exposure["focal_plane"]}
        if start == 0:
            arrays = _with_failures(arrays)
        arrays |= {"defects": np.zeros((len(arrays["expnum"]), 0), "f4")}
        arrays |= {"exposure_defects": np.zeros((len(arrays["exposure"]), 0), "f4")}
        names = [f"number{place}" for place in range(NUMBERS)]
        attributes = {"number_names": names, "failure_words": WORDS}
        path = folder / shard_name(number)
        store.write_arrays(path, catalog.EMBEDDING, arrays, Provenance("d"), attributes)


def _with_failures(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two CCDs more, of an exposure that could not be read."""
    arrays["expnum"] = np.r_[arrays["expnum"], [FAILED_EXPNUM] * 2]
    arrays["ccdnum"] = np.r_[arrays["ccdnum"], 1, 2].astype(np.int32)
    arrays["failed"] = np.r_[arrays["failed"], 2, 2]
    for name in ("numbers", "context", "background", "detail"):
        arrays[name] = np.r_[arrays[name], np.full((2, arrays[name].shape[1]), np.nan, "f4")]
    arrays["exposure"] = np.r_[arrays["exposure"], FAILED_EXPNUM]
    arrays["focal_plane"] = np.r_[arrays["focal_plane"], np.zeros((1, WIDTH), "f4")]
    return arrays


def write_calibration(path: Path) -> None:
    lengths = {"pattern": 1, "by": 2, "bx": 2, "number": NUMBERS}
    arrays = {
        column.name: np.ones([lengths[axis] for axis in column.dims], column.dtype)
        for column in catalog.CALIBRATION.columns
        if column.dtype != "str"
    }
    arrays |= {"band": np.array(["g"], object), "number_median": np.zeros((1, NUMBERS), "f4")}
    store.write_arrays(path, catalog.CALIBRATION, arrays, Provenance("d"))


def make_run(run: Path, *, labelled: str = "half", truth: bool = True, seed: int = 0) -> RunFolder:
    """A run folder ready for fit; `labelled` is half, none, good (one class) or elsewhere (no match)."""
    folder = RunFolder(run)
    examples = survey(seed)
    rows = np.arange(len(examples.expnum))
    chosen = {"half": rows % 2 == 0, "none": rows < 0, "good": examples.whole == GOOD, "elsewhere": rows % 2 == 0}
    labels = make_labels(examples.select(np.flatnonzero(chosen[labelled])))
    if labelled == "elsewhere":
        labels["expnum"] = labels["expnum"] + 10**6
    provenance = Provenance("d")
    store.write_table(folder.output("manifest"), catalog.MANIFEST, make_manifest(examples), provenance)
    store.write_table(folder.output("labels"), catalog.LABELS, labels, provenance)
    if truth:
        store.write_table(folder.output("truth"), catalog.LABELS, make_labels(examples), provenance)
    write_calibration(folder.output("calibration"))
    write_embeddings(folder.output("embeddings"), examples)
    rng = np.random.default_rng(5)
    noise = {name: rng.normal(size=values.shape).astype("f4") for name, values in examples.raw.ccd.items()}
    noise["numbers"] = examples.raw.ccd["numbers"]
    raw = dataclasses.replace(examples.raw, ccd=noise)
    write_embeddings(folder.output("embeddings-untrained"), dataclasses.replace(examples, raw=raw))
    return folder
