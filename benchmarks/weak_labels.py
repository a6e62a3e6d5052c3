"""What it gives to clean weak labels: lists that name whole exposures where only some of their CCDs are bad.

    python benchmarks/weak_labels.py RUN [--json FILE]

RUN is a finished run with a truth table (`hpcqa run survey=simulated`). Its CCD-level labels are turned into labels of
the whole exposure, as most lists have them, and the classifier is fitted with them twice: taking from a bad exposure
only the CCDs that lie far from the good ones (fit.clean, the default), and taking all. Scored are the CCDs and the
exposures that no label names, by the measured numbers, with the run's own settings of fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config.frozen import base_runs, load
from hpcqa.qa import metrics
from hpcqa.qa.embedded import ExposureTable, embedding_paths, read_embeddings
from hpcqa.qa.evaluate import bad_ccds, find_truth, read_answers
from hpcqa.qa.fit import MANIFEST_COLUMNS, fit_labels, read_examples, recipe_of
from hpcqa.qa.learn import BAD, UNKNOWN, Examples, learn


def weakened(examples: Examples) -> Examples:
    """What is said of CCDs said of their exposures."""
    return dataclasses.replace(
        examples,
        whole=np.where(examples.any_bad(), BAD, examples.whole).astype(np.int8),
        ccd=np.full_like(examples.ccd, UNKNOWN),
        ccd_reasons=np.zeros_like(examples.ccd_reasons),
    )


def figures(score: np.ndarray, bad: np.ndarray) -> float:
    return float(metrics.average_precision(metrics.Ranked.of(score, bad), np.ones(len(bad))))


def measure(run: Path) -> list[dict[str, object]]:
    config = load(run / "run.yaml")[0]
    folder = RunFolder(run, base_runs(config))
    columns = store.read_table(folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
    exposures = ExposureTable.of_manifest(columns)
    known = fit_labels(config, folder, exposures)
    truth, _ = find_truth(folder, exposures, known)
    paths = embedding_paths(folder)
    examples, scale, _ = read_examples(config, folder, paths, exposures, known)
    asked = read_embeddings(paths, exposures, scale, truth.expnum)
    truth = truth.select(np.isin(truth.expnum, asked.expnum))
    bad, local = bad_ccds(read_answers(folder)[0], np.repeat(asked.expnum, asked.raw.sizes()), asked.ccdnum)
    recipe = dataclasses.replace(recipe_of(config), channels=("numbers", "contrast"))
    rows: list[dict[str, object]] = []
    for clean in (True, False):
        learned = learn(weakened(examples), scale, dataclasses.replace(recipe, clean=clean))
        answers = learned.decide(asked.raw, asked.expnum)
        rows.append(
            {
                "clean": clean,
                "bad_reference_ccds": int(learned.ccd.bad.sum()),
                "ccd_ap": figures(answers.ccd_p_bad, bad),
                "ccd_ap_local": figures(answers.ccd_p_bad[local], bad[local]),
                "good_ccds_called_bad": float(np.mean(answers.ccd_p_bad[local & ~bad] > 0.5)),
                "bad_ccds_called_bad": float(np.mean(answers.ccd_p_bad[local & bad] > 0.5)),
                "exposure_ap": figures(answers.p_bad, truth.bad),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    rows = measure(options.run)
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
