"""The kNN check: what the classifier would make of the network as it is now, on the labelled exposures.

The same scoring as `fit` (distance ratios at both levels, folds of nights, one-sided fusion), beside it the figures of
the untrained network and of the measured numbers alone, so that nobody believes in training that doesn't help.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.qa.blocks import NETWORK, NumberScale, Raw, thin
from hpcqa.qa.embedded import CCD_BLOCKS, EXPOSURE_BLOCKS, Embedded, ExposureTable, read_scale
from hpcqa.qa.fit import MANIFEST_COLUMNS, fit_labels, recipe_of
from hpcqa.qa.known import Known, as_examples
from hpcqa.qa.learn import GOOD, Examples, Recipe, learn, what_is_missing
from hpcqa.qa.metrics import Ranked, average_precision
from hpcqa.ssl.embed import embed
from hpcqa.ssl.feed import Cutouts
from hpcqa.ssl.vit import VisionTransformer

logger = logging.getLogger(__name__)
MOST_EXPOSURES = 400  # labelled exposures that are looked at; more cost time and change little
BATCH = 64


class Subset:
    """Some exposures of the cutouts, with all their CCDs that have views, ordered by (expnum, ccdnum)."""

    def __init__(self, cutouts: Cutouts, expnum: np.ndarray) -> None:
        all_expnum, all_ccdnum = np.asarray(cutouts.expnum), np.asarray(cutouts.ccdnum)
        rows = np.flatnonzero(np.isin(all_expnum, expnum) & (np.asarray(cutouts.failed) == 0))
        self._rows = rows[np.lexsort((all_ccdnum[rows], all_expnum[rows]))]
        self._cutouts = cutouts
        self.expnum, self.ccdnum = all_expnum[self._rows], all_ccdnum[self._rows]
        self.failed = np.zeros(len(self._rows), np.int64)
        self.exposures = np.unique(self.expnum)
        by_number = np.argsort(cutouts.exposures, kind="stable")
        place = np.searchsorted(np.asarray(cutouts.exposures), self.exposures, sorter=by_number)
        self._exposure_rows = by_number[place]
        self.number_names = cutouts.number_names

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        return self._cutouts.numbers(self._rows[rows])

    def batch(self, view: str, rows: np.ndarray) -> np.ndarray:
        return self._cutouts.batch(view, self._rows[rows])

    def focal_plane(self, exposure_rows: np.ndarray) -> np.ndarray:
        return self._cutouts.focal_plane(self._exposure_rows[exposure_rows])

    def will_need(self, view: str, rows: np.ndarray) -> None:
        self._cutouts.will_need(view, self._rows[rows])


@dataclass
class OnlineKnn:
    """Scores networks on labelled exposures; see the module's text."""

    cutouts: Subset
    exposures: ExposureTable
    known: Known
    scale: NumberScale | None
    recipe: Recipe
    precision: str
    device: torch.device

    @classmethod
    def of(cls, config: Config, folder: RunFolder, cutouts: Cutouts, device: torch.device) -> OnlineKnn | None:
        """None where nothing is labelled, or not both kinds are."""
        manifest, labels = folder.find("manifest"), folder.find("labels")
        if manifest is None or labels is None:
            return None
        exposures = ExposureTable.of_manifest(store.read_table(manifest, catalog.MANIFEST, MANIFEST_COLUMNS))
        known = fit_labels(config, folder, exposures)
        labelled = np.intersect1d(known.exposures(), np.asarray(cutouts.expnum)[np.asarray(cutouts.failed) == 0])
        if not len(labelled):
            return None
        subset = Subset(cutouts, thin(labelled, MOST_EXPOSURES))
        scale = read_scale(folder.find("calibration"))
        online = cls(subset, exposures, known, scale, recipe_of(config), config.ssl.precision, device)
        missing = what_is_missing(online.examples(None))
        if missing:
            logger.info("pretrain: no kNN check (%s)", missing)
            return None
        return online

    def examples(self, model: VisionTransformer | None) -> Examples:
        """The labelled exposures through a network, or with their numbers alone."""
        cutouts = self.cutouts
        _, starts = np.unique(cutouts.expnum, return_index=True)
        place = self.exposures.rows(cutouts.exposures, "shards")
        band, sizes = self.exposures.band[place], np.diff(np.r_[starts, len(cutouts.expnum)])
        ccd = {"numbers": self._numbers(np.repeat(band, sizes))}
        exposure: dict[str, np.ndarray] = {}
        if model is not None:
            arrays = embed(cutouts, model, self.device, BATCH, self.precision)
            ccd |= {name: arrays[name] for name in CCD_BLOCKS if name in arrays}
            exposure = {name: arrays[name] for name in EXPOSURE_BLOCKS if name in arrays}
        none = np.zeros(0, np.int64)
        embedded = Embedded(
            Raw(starts.astype(np.int64), _with_columns(ccd), _with_columns(exposure)),
            cutouts.exposures, cutouts.ccdnum, band, self.exposures.night[place], none, none, none,
            tuple(cutouts.number_names), (),
        )  # fmt: skip
        return as_examples(embedded, self.known)

    def _numbers(self, band: np.ndarray) -> np.ndarray:
        numbers = self.cutouts.numbers(np.arange(len(self.cutouts.expnum)))
        scale = self.scale or NumberScale.of_numbers(numbers, band)
        return scale.apply(numbers, self.cutouts.ccdnum, band)

    def score(self, examples: Examples, channels: Sequence[str]) -> float:
        """Average precision of finding the bad among the labelled exposures, each scored without its fold of nights."""
        recipe = Recipe(
            k=self.recipe.k,
            pca=self.recipe.pca,
            bad_rate=self.recipe.bad_rate,
            folds=self.recipe.folds,
            seed=self.recipe.seed,
            channels=tuple(channels),
        )
        scale = self.scale or NumberScale.of_numbers(examples.raw.ccd["numbers"], np.full(len(examples.ccdnum), ""))
        answers = learn(examples, scale, recipe).decide(examples.raw, examples.expnum)
        said = (examples.whole == GOOD) | examples.any_bad()
        ranked = Ranked.of(answers.p_bad[said], examples.any_bad()[said])
        return float(average_precision(ranked, np.ones(int(said.sum()))))

    def controls(self, untrained: VisionTransformer) -> dict[str, float]:
        """The figures that training must beat."""
        return {
            "knn_ap_untrained": self.score(self.examples(untrained), NETWORK),
            "knn_ap_numbers": self.score(self.examples(None), ("numbers",)),
        }

    def check(self, model: VisionTransformer) -> dict[str, float]:
        """`knn_ap` of the network alone, and with the measured numbers beside it."""
        examples = self.examples(model)
        return {
            "knn_ap": self.score(examples, NETWORK),
            "knn_ap_with_numbers": self.score(examples, ("numbers", *NETWORK)),
        }


def _with_columns(blocks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in blocks.items() if values.shape[1]}
