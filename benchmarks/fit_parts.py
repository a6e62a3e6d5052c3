"""What parts of fit give: the rarity of single numbers, and the cleaning of weak labels.

    python benchmarks/fit_parts.py RUN [--json FILE]

RUN is a finished run with a truth table (`hpcqa run survey=simulated`). The classifier is fitted by measured numbers,
with the run's own settings of fit, and scored on the CCDs and exposures that no label names: as it is, without rarity
(by neighbours alone), and twice with its CCD-level labels turned into labels of the whole exposure, as most lists have
them: taking from a bad exposure only the CCDs that lie far from the good ones (fit.clean, the default), and taking all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config.frozen import base_runs, load
from hpcqa.qa import metrics
from hpcqa.qa.blocks import FeatureMap, Features, NumberScale, Raw
from hpcqa.qa.embedded import Embedded, ExposureTable, embedding_paths, read_embeddings
from hpcqa.qa.evaluate import Truth, bad_ccds, find_truth, measures, read_answers
from hpcqa.qa.fit import MANIFEST_COLUMNS, fit_labels, read_examples, recipe_of
from hpcqa.qa.learn import BAD, UNKNOWN, Examples, Recipe, learn

SHOWN = ("average_precision", "recall", "recall_few_ccds", "roc_area_few_ccds", "recall_novel", "roc_area_novel")


def weakened(examples: Examples) -> Examples:
    """What is said of CCDs said of their exposures."""
    return dataclasses.replace(
        examples,
        whole=np.where(examples.any_bad(), BAD, examples.whole).astype(np.int8),
        ccd=np.full_like(examples.ccd, UNKNOWN),
        ccd_reasons=np.zeros_like(examples.ccd_reasons),
    )


def precision(score: np.ndarray, bad: np.ndarray) -> float:
    return float(metrics.average_precision(metrics.Ranked.of(score, bad), np.ones(len(bad))))


@contextlib.contextmanager
def without_rarity() -> Iterator[None]:
    """Features none of which is rare."""
    apply = FeatureMap.apply

    def of_neighbours(self: FeatureMap, raw: Raw) -> Features:
        found = apply(self, raw)
        return dataclasses.replace(found, rare={name: np.zeros_like(rows) for name, rows in found.rare.items()})

    FeatureMap.apply = of_neighbours  # type: ignore[method-assign]
    try:
        yield
    finally:
        FeatureMap.apply = apply  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Task:
    """Labelled exposures, and those to score with what is true of them and of their CCDs."""

    examples: Examples
    scale: NumberScale
    recipe: Recipe
    asked: Embedded
    truth: Truth
    bad: np.ndarray
    local: np.ndarray

    @classmethod
    def of(cls, run: Path) -> Task:
        config = load(run / "run.yaml")[0]
        folder = RunFolder(run, base_runs(config))
        columns = store.read_table(folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
        exposures = ExposureTable.of_manifest(columns)
        known = fit_labels(config, folder, exposures)
        truth, _ = find_truth(folder, exposures, known)
        paths = embedding_paths(folder)
        examples, scale, _ = read_examples(config, folder, paths, exposures, known)
        asked = read_embeddings(paths, exposures, scale, truth.expnum)
        expnum = np.repeat(asked.expnum, asked.raw.sizes())
        bad, local = bad_ccds(read_answers(folder)[0], expnum, asked.ccdnum)
        recipe = dataclasses.replace(recipe_of(config), channels=("numbers", "contrast"))
        chosen = truth.select(np.isin(truth.expnum, asked.expnum))
        return cls(examples, scale, recipe, asked, chosen, bad, local)

    def row(self, name: str, examples: Examples, *, clean: bool) -> dict[str, object]:
        learned = learn(examples, self.scale, dataclasses.replace(self.recipe, clean=clean))
        answers = learned.decide(self.asked.raw, self.asked.expnum)
        p_bad, bad, local = answers.ccd_p_bad, self.bad, self.local
        found = measures(self.truth, answers.p_bad)
        weight = np.ones(len(self.truth.expnum))
        return {
            "fit": name,
            **{key: float(found[key].figure(weight)) for key in SHOWN},
            "ccd_ap": precision(p_bad, bad),
            "ccd_ap_local": precision(p_bad[local], bad[local]),
            "good_ccds_called_bad": float(np.mean(p_bad[local & ~bad] > 0.5)),
            "bad_ccds_called_bad": float(np.mean(p_bad[local & bad] > 0.5)),
            "bad_reference_ccds": int(learned.ccd.bad.sum()),
        }


def measure(run: Path) -> list[dict[str, object]]:
    task = Task.of(run)
    rows = [task.row("as it is", task.examples, clean=True)]
    with without_rarity():
        rows.append(task.row("without rarity", task.examples, clean=True))
    weak = weakened(task.examples)
    rows.append(task.row("weak labels, cleaned", weak, clean=True))
    rows.append(task.row("weak labels, all CCDs", weak, clean=False))
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
