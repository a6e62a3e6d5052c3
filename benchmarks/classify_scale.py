"""Time and memory of classify and report on a whole data release: synthetic embeddings, every other file as in a run.

    python benchmarks/classify_scale.py --folder /somewhere/with/20/GB --shares 1/64,1/16,1/4,1

The release has 224,000 exposures of 58 CCDs (13 million CCDs): a survey-ccds table, a manifest with a tenth of the rows
cut, embeddings in files of 16 exposures, of a few columns unless --numbers and --width say more. The first 2,000
exposures of every share are labelled, half of them bad (elsewhere one in 50 is), so that all shares are compared with
the same references, some 100,000 CCDs. Each share runs in a process of its own; peak memory is that process's largest
resident set, its libraries included. Both should grow by the ratio of the shares and no faster: the table at the end
has the time by the ratio of the CCDs. With --json FILE it is written by name.

With --tables the neighbours are left out: made-up answers go through everything that one process does for the whole
release (joining, verdicts, both tables, all exports, the report). The neighbours are linear in the CCDs and shared by
the ranks; without --tables their time is in what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.coded import Coded
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Column, Provenance, Schema
from hpcqa.config import ClassifyConfig, Config, EvaluateConfig, FitConfig, SurveyConfig
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classifier_file, classify, fit, fitstable
from hpcqa.qa.decisions import Part, merge_parts
from hpcqa.report import pages

EXPOSURES, CCDS, A_SHARD, LABELLED = 224_000, 58, 16, 2_000
LARGEST_PCA, MOST_GB = 32, 8
Row = dict[str, Any]
FIRST = 200_000
BANDS = ("g", "r", "i", "z", "Y")
TABLE_COLUMNS = (
    *(("expnum", "int64"), ("ccd_cuts", "int32"), ("ra", "float64"), ("dec", "float64"), ("exptime", "float32")),
    *((f"number{place}", "float32") for place in range(24)),
)


@dataclasses.dataclass(frozen=True)
class Width:
    """Measured numbers, and columns of each view's embedding."""

    numbers: int
    view: int


def settings(run: Path, width: Width) -> Config:
    return Config(
        run=str(run),
        survey=SurveyConfig(labels=["labels.csv"], tables=[str(run / "survey-ccds-decam.fits.gz")]),
        fit=FitConfig(pca=min(width.view, LARGEST_PCA)),
        classify=ClassifyConfig(),
        evaluate=EvaluateConfig(bootstrap=20),
    )


def make_run(run: Path, exposures: int, num_files: int, labelled: int, width: Width) -> None:
    """Everything that classify and report read; embeddings in at most so many files."""
    folder, rng = RunFolder(run), np.random.default_rng(1)
    rows = exposures * CCDS
    of_row = np.arange(rows) // CCDS
    table = run / "survey-ccds-decam.fits.gz"
    write_survey_table(table, of_row)
    is_cut = of_row % 10 == 7
    shard = np.where(is_cut, -1, of_row // A_SHARD)
    codes = np.zeros(rows, np.int32)
    columns: dict[str, np.ndarray | Coded] = {}
    for column in catalog.MANIFEST.columns:
        text = column.dtype == "str"
        columns[column.name] = Coded(codes, ("",)) if text else np.zeros(rows, column.dtype)
    columns |= {"expnum": FIRST + of_row, "ccdnum": np.arange(rows) % CCDS + 1, "night": 20250101 + of_row // 40}
    columns |= {"ccdname": Coded((np.arange(rows) % CCDS).astype(np.int32), tuple(f"N{ccd}" for ccd in range(CCDS)))}
    columns |= {"band": Coded((of_row % 5).astype(np.int32), BANDS), "camera": Coded(codes, ("decam",))}
    columns |= {"plver": Coded(codes, ("V5.5",)), "plprocid": Coded(codes, ("abcdef0",))}
    columns |= {"table": Coded(codes, (str(table),)), "table_row": np.arange(rows), "shard": shard}
    columns |= {"cuts": np.where(is_cut, 1 << 12, 0)}
    columns |= {"cut_detail": Coded(is_cut.astype(np.int32), ("", "exptime 5 s is shorter than 10 s"))}
    store.write_table(folder.output("manifest"), catalog.MANIFEST, columns, Provenance("d"))
    share_bad = np.where(np.arange(exposures) < labelled, 0.5, 0.02)
    kinds = np.where(rng.random(exposures) < share_bad, rng.integers(0, 4, exposures), -1)
    write_labels(folder, kinds[:labelled])
    write_calibration(folder.output("calibration"), width.numbers)
    for number in range(min(num_files, -(-exposures // A_SHARD))):
        write_embedding(folder.output("embeddings") / shard_name(number), number, kinds, width, rng)


def write_survey_table(path: Path, of_row: np.ndarray) -> None:
    schema = Schema("ccds", 1, tuple(Column(name, dtype, "") for name, dtype in TABLE_COLUMNS))
    columns = {name: np.zeros(len(of_row), dtype) for name, dtype in TABLE_COLUMNS}
    columns["expnum"] = FIRST + of_row
    plain = path.with_name("plain.fits")
    fitstable.write_table(plain, schema, columns, "benchmark")
    subprocess.run(["gzip", "-1", str(plain)], check=True)
    plain.with_name("plain.fits.gz").rename(path)


def write_labels(folder: RunFolder, kinds: np.ndarray) -> None:
    rows = len(kinds)
    columns = {
        column.name: np.full(rows, "", object) if column.dtype == "str" else np.zeros(rows, column.dtype)
        for column in catalog.LABELS.columns
    }
    columns |= {"expnum": FIRST + np.arange(rows), "ccdnum": np.full(rows, -1), "bad": kinds >= 0}
    columns["reasons"] = np.where(kinds >= 0, 2 << np.maximum(kinds, 0), 0)
    store.write_table(folder.output("labels"), catalog.LABELS, columns, Provenance("d"))


def write_calibration(path: Path, numbers: int) -> None:
    lengths = {"pattern": 1, "by": 2, "bx": 2, "number": numbers}
    arrays = {
        column.name: np.ones([lengths[axis] for axis in column.dims], column.dtype)
        for column in catalog.CALIBRATION.columns
        if column.dtype != "str"
    }
    arrays |= {"band": np.array(["g"], object), "number_median": np.zeros((1, numbers), "f4")}
    store.write_arrays(path, catalog.CALIBRATION, arrays, Provenance("d"))


def write_embedding(path: Path, number: int, kinds: np.ndarray, width: Width, rng: np.random.Generator) -> None:
    exposure = np.arange(number * A_SHARD, min((number + 1) * A_SHARD, len(kinds)))
    exposure = exposure[exposure % 10 != 7]
    rows = len(exposure) * CCDS
    numbers = rng.normal(size=(len(exposure), CCDS, width.numbers)).astype("f4")
    for place, kind in enumerate(kinds[exposure]):
        if kind >= 0:
            numbers[place, :, kind] += 6.0
    arrays = {"expnum": np.repeat(FIRST + exposure, CCDS), "ccdnum": np.tile(np.arange(CCDS) + 1, len(exposure))}
    arrays |= {"failed": np.where(rng.random(rows) < 0.002, 2, 0), "numbers": numbers.reshape(rows, width.numbers)}
    arrays |= {name: rng.normal(size=(rows, width.view)).astype("f4") for name in ("context", "background", "detail")}
    arrays |= {"exposure": FIRST + exposure, "focal_plane": rng.normal(size=(len(exposure), width.view)).astype("f4")}
    arrays |= {"defects": np.zeros((rows, 0), "f4"), "exposure_defects": np.zeros((len(exposure), 0), "f4")}
    names = [f"number{place}" for place in range(width.numbers)]
    attributes = {"number_names": names, "failure_words": ["the file is not there", "the file cannot be read"]}
    store.write_arrays(path, catalog.EMBEDDING, arrays, Provenance("d"), attributes)


def write_made_up(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """What classify's first rank does with the answers of all ranks."""
    manifest = store.read_table(folder.output("manifest"), catalog.MANIFEST, ("expnum", "ccdnum", "cuts"))
    rng = np.random.default_rng(2)
    kept = np.flatnonzero(manifest["cuts"] == 0)
    lost = rng.random(len(kept)) < 0.002
    seen, lost_rows = kept[~lost], kept[lost]
    expnum = np.unique(manifest["expnum"][seen])
    p_bad = rng.beta(0.05, 2.0, len(expnum)).astype("f4")
    ccd_p_bad = rng.beta(0.05, 2.0, len(seen)).astype("f4")
    text = np.array(
        [f"evidence {number % 5000}: fwhm +8.2, sky_noise +4.1; N4 alone: step +9" for number in expnum], object
    )
    part = Part(
        expnum=expnum,
        p_bad=p_bad,
        novelty=rng.exponential(1.0, len(expnum)).astype("f4"),
        reasons=np.where(p_bad > 0.3, 2 + 3 * 256, 0),
        worst=text,
        nearest=text.copy(),
        evidence=text.copy(),
        ccd_expnum=manifest["expnum"][seen],
        ccd_ccdnum=manifest["ccdnum"][seen],
        ccd_p_bad=ccd_p_bad,
        ccd_novelty=rng.exponential(1.0, len(seen)).astype("f4"),
        ccd_reasons=np.where(ccd_p_bad > 0.3, 2, 0),
        ccd_where=np.where(ccd_p_bad > 0.3, "x 513-1024 y 1-512 +9.3", "").astype(object),
        failed_expnum=manifest["expnum"][lost_rows],
        failed_ccdnum=manifest["ccdnum"][lost_rows],
        failed=np.full(len(lost_rows), 2),
    )
    del manifest
    classifier = classifier_file.read(folder.output("classifier"))
    words = ("the file is not there", "the file cannot be read")
    classify._write(config, folder, classifier, merge_parts([part]), words, Provenance("d"))


def measure(run: Path, width: Width, *, tables: bool) -> Row:
    """Classify and report an existing run: what each took."""
    logging.basicConfig(level=logging.ERROR)
    config, folder = settings(run, width), RunFolder(run)
    steps = (("classify", write_made_up if tables else classify.run), ("report", pages.run))
    row: Row = {}
    for name, step in steps:
        started, used = time.perf_counter(), time.process_time()
        step(dataclasses.replace(config), folder, Ranks())
        row |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": time.process_time() - used}
        row[f"{name}_peak_gb"] = peak_gb()
    return row


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'CCDs':>12} {'':>9} {'wall s':>8} {'CPU s':>8} {'us/CCD':>8} {'peak GB':>8} {'time by CCDs':>13}")
    for row in rows:
        for name in ("classify", "report"):
            wall, work, peak = (row[f"{name}_{what}"] for what in ("s", "cpu_s", "peak_gb"))
            spent, first = work / row["ccds"], rows[0][f"{name}_cpu_s"] / rows[0]["ccds"]
            figures = f"{wall:8.1f} {work:8.1f} {1e6 * spent:8.1f} {peak:8.2f} {spent / first:13.2f}"
            print(f"{row['ccds']:12,} {name:>9} {figures}")
    largest = max(row["report_peak_gb"] for row in rows)
    print(f"largest memory {largest:.2f} GB (aim below {MOST_GB}: {'met' if largest < MOST_GB else 'missed'})")


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def peak_gb() -> float:
    """Largest memory of this program; what getrusage says begins with that of the process that started it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="where the runs go; removed afterwards")
    parser.add_argument("--shares", default="1/64,1/16", help="shares of the release, smallest first")
    parser.add_argument("--tables", action="store_true", help="made-up answers instead of neighbours")
    parser.add_argument("--numbers", type=int, default=12, help="measured numbers (real runs have about 100)")
    parser.add_argument("--width", type=int, default=8, help="columns of each view's embedding")
    parser.add_argument("--measure", type=Path, default=None, help="measure an existing run, in this process")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    width = Width(arguments.numbers, arguments.width)
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, width, tables=arguments.tables)))
        return
    rows: list[Row] = []
    for share in arguments.shares.split(","):
        exposures = round(EXPOSURES * Fraction(share))
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="classify-scale-") as folder:
            run = Path(folder)
            made = time.perf_counter()
            # Made-up answers need a classifier to look things up in, no more.
            make_run(run, exposures, *((200, 100) if arguments.tables else (exposures, LABELLED)), width)
            fitted = time.process_time()
            fit.run(settings(run, width), RunFolder(run), Ranks())
            fitted = time.process_time() - fitted
            references = len(classifier_file.read(RunFolder(run).output("classifier")).ccd.expnum)
            made = time.perf_counter() - made
            of_fit = f"{references:,} labelled CCDs, fitted in {fitted:.0f} s of processor"
            print(f"{share}: {exposures:,} exposures, {of_fit} ({made:.0f} s)", flush=True)
            words = [*("--measure", str(run), "--numbers", str(width.numbers), "--width", str(width.view))]
            words += ["--tables"] if arguments.tables else []
            done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
            row = {"exposures": exposures, "ccds": exposures * CCDS, "references": references, "fit_cpu_s": fitted}
            row |= json.loads(done.stdout.splitlines()[-1])
            row |= {"exports_mb": size_of(run / "exports"), "page_mb": size_of(run / "report" / "index.html")}
            row["page_data_mb"] = size_of(run / "report" / "data")
            rows.append(row)
            written = "exports {exports_mb:.0f} MB; page {page_mb:.1f} MB, its data {page_data_mb:.0f} MB"
            print("  " + written.format(**row))
    print_table(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
