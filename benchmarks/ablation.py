"""What each piece of pretraining gives: networks scored on exposures that no label names, less their controls.

Networks of a sweep, each against the sweep's reference; or the checkpoints of a run, against images seen:

    hpcqa pretrain --multirun run=BASE experiment='glob(ablation*)'
    python benchmarks/ablation.py BASE BASE/sweeps/*/* --store ablation.json
    python benchmarks/ablation.py BASE RUN --checkpoints --store curve.json --curve docs/pretraining.png

Every network goes through the neighbours of `hpcqa fit` with the settings of BASE, by the views it was trained on.
Differences are of scores on the same exposures and the same bootstrap samples over nights. Scores are kept in a store:
what is in it is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import checkpoint as dcp

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.compose import override_key
from hpcqa.config import Config
from hpcqa.config.frozen import base_runs, load
from hpcqa.pixels.dataset import ShardSet
from hpcqa.qa import metrics
from hpcqa.qa.blocks import EMBEDDINGS, NETWORK, NUMBERS, NumberScale, Raw
from hpcqa.qa.embedded import Embedded, ExposureTable, read_scale
from hpcqa.qa.evaluate import Truth, differences, figures, find_truth
from hpcqa.qa.fit import MANIFEST_COLUMNS, fit_labels, recipe_of
from hpcqa.qa.known import as_examples
from hpcqa.qa.learn import learn
from hpcqa.ssl import weights
from hpcqa.ssl.defects import network_of
from hpcqa.ssl.encode import POOLS, as_images, encode_with_answers
from hpcqa.ssl.vit import VisionTransformer

CCD_VIEWS = ("context", "background", "detail")
SHOWN = (
    ("average_precision", "AP"),
    ("roc_area_few_ccds", "ROC area, 1 or 2 bad CCDs"),
    ("roc_area_novel", "ROC area, kinds without a label"),
    ("recall_few_ccds", "recall, 1 or 2 bad CCDs"),
    ("recall_novel", "recall, kinds without a label"),
)
BATCH = 64


class Survey:
    """The labelled exposures and those to score, with their views in memory."""

    def __init__(self, run: Path) -> None:
        self.config = load(run / "run.yaml")[0]
        self.folder = RunFolder(run, base_runs(self.config))
        shards = sorted(self.folder.need("shards", "shard").glob("shard-*.h5"))
        self.cutouts = ShardSet(shards, self.folder.find("calibration"), self.config)
        columns = store.read_table(self.folder.need("manifest", "manifest"), catalog.MANIFEST, MANIFEST_COLUMNS)
        self.exposures = ExposureTable.of_manifest(columns)
        self.known = fit_labels(self.config, self.folder, self.exposures)
        truth, _ = find_truth(self.folder, self.exposures, self.known)
        seen = np.unique(self.cutouts.expnum[self.cutouts.failed == 0])
        self.truth = truth.select(np.isin(truth.expnum, seen))
        self.labelled = np.intersect1d(self.known.exposures(), seen)
        self.expnum = np.union1d(self.labelled, self.truth.expnum)
        rows = np.flatnonzero(np.isin(self.cutouts.expnum, self.expnum) & (self.cutouts.failed == 0))
        self.rows = rows[np.lexsort((self.cutouts.ccdnum[rows], self.cutouts.expnum[rows]))]
        self.starts = np.unique(self.cutouts.expnum[self.rows], return_index=True)[1].astype(np.int64)
        self.ccdnum = self.cutouts.ccdnum[self.rows]
        self.sizes = np.diff(np.r_[self.starts, len(self.rows)])
        self.place = self.exposures.rows(self.expnum, str(run))
        self.scale = self._scale()
        self._images: dict[str, np.ndarray] = {}

    def _scale(self) -> NumberScale:
        numbers, band = self.cutouts.numbers(self.rows), np.repeat(self.exposures.band[self.place], self.sizes)
        scale = read_scale(self.folder.find("calibration")) or NumberScale.of_numbers(numbers, band)
        self.numbers = scale.apply(numbers, self.ccdnum, band)
        return scale

    def images(self, view: str) -> np.ndarray:
        """All images of a view, read once."""
        if view not in self._images:
            if view == "focal_plane":
                order = np.argsort(self.cutouts.exposures)
                rows = order[np.searchsorted(self.cutouts.exposures[order], self.expnum)]
                self._images[view] = self.cutouts.focal_plane(rows)
            else:
                self._images[view] = self.cutouts.batch(view, self.rows)
        return self._images[view]

    def through(self, model: VisionTransformer, views: Sequence[str]) -> Raw:
        """The blocks of `hpcqa embed`, of some views."""
        found = {view: self._through(model, view) for view in views}
        ccd = {"numbers": self.numbers} | {view: found[view][0] for view in CCD_VIEWS if view in found}
        answers = [found[view][1] for view in views if view != "focal_plane" and found[view][1].shape[1]]
        ccd |= {"defects": np.concatenate(answers, axis=1)} if answers else {}
        exposure = {}
        if "focal_plane" in found:
            exposure = dict(zip(("focal_plane", "exposure_defects"), found["focal_plane"], strict=True))
        return Raw(self.starts, ccd, {name: values for name, values in exposure.items() if values.shape[1]})

    def _through(self, model: VisionTransformer, view: str) -> tuple[np.ndarray, np.ndarray]:
        images = self.images(view)
        parts = [
            encode_with_answers(model, as_images(images[start : start + BATCH], torch.device("cpu")), view, "fp32")
            for start in range(0, len(images), BATCH)
        ]
        return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def score(self, raw: Raw, channels: Sequence[str]) -> np.ndarray:
        """p_bad of the exposures to score, by the labelled ones."""
        labelled = np.searchsorted(self.expnum, self.labelled)
        chosen = np.repeat(np.isin(self.expnum, self.labelled), self.sizes)
        none = np.zeros(0, np.int64)
        place = self.place[labelled]
        embedded = Embedded(
            raw.select(labelled), self.labelled, self.ccdnum[chosen], self.exposures.band[place],
            self.exposures.night[place], none, none, none, tuple(self.cutouts.number_names), (),
        )  # fmt: skip
        recipe = dataclasses.replace(recipe_of(self.config), channels=tuple(channels))
        learned = learn(as_examples(embedded, self.known), self.scale, recipe)
        asked = np.searchsorted(self.expnum, self.truth.expnum)
        return np.asarray(learned.decide(raw.select(asked), self.truth.expnum).p_bad)


def pooled(raw: Raw, pool: str) -> Raw:
    """The same embeddings by one of their three poolings, or by all at equal weight ("equal")."""

    def part(name: str, values: np.ndarray) -> np.ndarray:
        if name not in (*CCD_VIEWS, "focal_plane") or values.shape[1] < len(POOLS):
            return values
        parts = dict(zip(POOLS, np.split(values, len(POOLS), axis=1), strict=True))
        if pool in parts:
            return parts[pool]
        return np.concatenate([one / one.std(axis=0).mean() for one in parts.values()], axis=1)

    ccd = {name: part(name, values) for name, values in raw.ccd.items()}
    return Raw(raw.starts, ccd, {name: part(name, values) for name, values in raw.exposure.items()})


# Networks -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network to be scored, and the configuration that it was trained by."""

    config: Config
    name: str
    step: int
    images: int
    views: tuple[str, ...]
    model: VisionTransformer


def untrained(config: Config, views: Sequence[str], seed: int | None = None) -> Entry:
    """The network before training, which learned no defects; with another seed, to see how much that changes."""
    model = network_of(config, seed)
    name = control_of(views) + ("" if seed is None else f", seed {seed}")
    return Entry(config, name, 0, 0, tuple(views), model.eval())


def control_of(views: Sequence[str]) -> str:
    return f"untrained, {' '.join(views)}"


def name_of(run: Path) -> str:
    """A run by its experiment and seed, or else by its folder."""
    config, overrides = load(run / "run.yaml")
    said = {override_key(item): item.split("=", 1)[1] for item in overrides if "=" in item}
    return f"{said.get('experiment', run.name)}, {config.ssl.steps} steps, seed {config.seed}"


def of_runs(runs: Sequence[Path], known: Mapping[str, Any]) -> Iterator[Entry]:
    for run in runs:
        config, name = load(run / "run.yaml")[0], name_of(run)
        if name not in known:
            model, card = weights.load_backbone(run / "backbone.safetensors")
            yield Entry(config, name, int(card["step"]), int(card["images"]), tuple(config.ssl.views), model)


def of_checkpoints(run: Path, known: Mapping[str, Any], at: Sequence[int]) -> Iterator[Entry]:
    """The teacher at the checkpoints that a run kept; of some steps, or of all."""
    config = load(run / "run.yaml")[0]
    for path in sorted(run.glob("checkpoints/*/step-*")):
        counters = json.loads((path / "meta.json").read_text())["counters"]
        name = f"{name_of(run)}, at step {counters['step']}"
        if name in known or (at and counters["step"] not in at):
            continue
        model = network_of(config)
        tensors = {"teacher": {f"backbone.{key}": value for key, value in model.state_dict().items()}}
        dcp.state_dict_loader.load(tensors, checkpoint_id=path, no_dist=True)
        model.load_state_dict({key.removeprefix("backbone."): value for key, value in tensors["teacher"].items()})
        yield Entry(config, name, counters["step"], counters["images"], tuple(config.ssl.views), model.eval())


# Scores and tables --------------------------------------------------------------------------------------------------


def scores_of(survey: Survey, entry: Entry, *, by_pool: bool) -> dict[str, Any]:
    """What the store keeps of a network."""
    raw = survey.through(entry.model, entry.views)
    channels = {"network": NETWORK, "embeddings": EMBEDDINGS, "numbers+network": (*NUMBERS, *NETWORK)}
    if not entry.step:
        channels = {"network": EMBEDDINGS, "numbers+network": (*NUMBERS, *EMBEDDINGS)}
    found = {name: survey.score(raw, names).tolist() for name, names in channels.items()}
    for pool in (*POOLS, "equal") if by_pool else ():
        found[f"embeddings, {pool}"] = survey.score(pooled(raw, pool), EMBEDDINGS).tolist()
    return {"step": entry.step, "images": entry.images, "views": list(entry.views), "scores": found}


def in_words(found: Mapping[str, Any], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Tables:
    """Markdown of what the store holds."""

    def __init__(self, truth: Truth, known: Mapping[str, Any], config: Config) -> None:
        self.truth, self.known = truth, known
        self.weights = metrics.night_weights(truth.night, config.evaluate.bootstrap, config.seed)

    def score(self, name: str, what: str) -> np.ndarray | None:
        found = self.known[name]["scores"].get(what)
        return None if found is None else np.array(found)

    def figures(self) -> str:
        """Every score of every network."""
        rows = []
        for name, entry in self.known.items():
            for what, score in entry["scores"].items():
                found = figures(self.truth, np.array(score), self.weights)
                images = f"{entry['images']:,}"
                rows.append([name, what, images, *(in_words(found[key]) for key, _ in SHOWN)])
        return table(rows, ["network", "channels", "images seen", *(title for _, title in SHOWN)])

    def less(self, what: str, other: str, other_what: str) -> str:
        """Every network less the same other one; `other` "" is its untrained control."""
        rows = []
        for name, entry in self.known.items():
            against = other or control_of(entry["views"])
            first = self.score(name, what)
            if first is None or against not in self.known or (name, what) == (against, other_what):
                continue
            second = self.score(against, other_what)
            assert second is not None
            found = differences(self.truth, first, second, self.weights)
            rows.append([name, f"{entry['images']:,}", *(in_words(found[key], sign=True) for key, _ in SHOWN)])
        return table(rows, ["network", "images seen", *(title for _, title in SHOWN)])


def draw(path: Path, tables: Tables) -> None:
    """Average precision against images seen, with the interval of the difference from the untrained network's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted((name for name in tables.known if name != "numbers"), key=lambda name: tables.known[name]["images"])
    figure, every = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, (key, title) in zip(every, SHOWN[:1] + SHOWN[2:3], strict=True):
        for what, colour, label in (
            ("numbers+network", "#1f5fa8", "numbers and network"),
            ("network", "#c8641e", "network alone"),
        ):
            chosen = [name for name in names if tables.score(name, what) is not None]
            images = np.array([max(tables.known[name]["images"], 300) for name in chosen])
            found = [figures(tables.truth, np.array(tables.score(name, what)), tables.weights)[key] for name in chosen]
            value = np.array([one["value"] for one in found])
            start = tables.score(chosen[0], what)
            assert start is not None
            apart = [
                differences(tables.truth, np.array(tables.score(name, what)), start, tables.weights)[key]
                for name in chosen
            ]
            low, high = (np.array([one[side] - one["value"] for one in apart]) for side in ("low", "high"))
            axes.errorbar(images, value, [-low, high], color=colour, marker="o", capsize=3, label=label)
        numbers = figures(tables.truth, np.array(tables.score("numbers", "numbers")), tables.weights)[key]["value"]
        axes.axhline(numbers, color="#666666", linestyle="--", label="numbers alone")
        axes.set_xscale("log")
        axes.set_xlabel("images seen (leftmost: untrained)")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    every[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="run folder with shards, labels and truth")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with a backbone")
    parser.add_argument("--checkpoints", action="store_true", help="score the checkpoints that the runs kept")
    parser.add_argument("--at", type=int, nargs="+", default=[], help="only checkpoints of these steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="untrained controls of other seeds too")
    parser.add_argument("--pools", action="store_true", help="score each pooling of the patch tokens by itself too")
    parser.add_argument(
        "--reference", default="ablation, 1000 steps, seed 1", help="network that others are compared with"
    )
    parser.add_argument("--store", type=Path, default=Path("ablation.json"))
    parser.add_argument("--curve", type=Path, help="draw the scores against images seen")
    options = parser.parse_args()
    torch.set_num_threads(1)
    survey = Survey(options.base)
    known: dict[str, Any] = json.loads(options.store.read_text()) if options.store.exists() else {}

    def keep(name: str, entry: dict[str, Any]) -> None:
        known[name] = entry
        options.store.write_text(json.dumps(known))
        print(f"scored {name}", flush=True)

    if "numbers" not in known:
        nothing = Raw(survey.starts, {"numbers": survey.numbers}, {})
        scores = {"numbers": survey.score(nothing, NUMBERS).tolist()}
        keep("numbers", {"step": 0, "images": 0, "views": [], "scores": scores})
    runs = [run for run in options.runs if (run / "run.yaml").exists()]
    entries = (entry for run in runs for entry in of_checkpoints(run, known, options.at))
    for entry in entries if options.checkpoints else of_runs(runs, known):
        control = control_of(entry.views)
        if control not in known:
            keep(control, scores_of(survey, untrained(entry.config, entry.views), by_pool=options.pools))
        keep(entry.name, scores_of(survey, entry, by_pool=options.pools))
        for seed in options.seeds:
            other = untrained(entry.config, entry.views, seed)
            if other.name not in known:
                keep(other.name, scores_of(survey, other, by_pool=options.pools))
    truth = survey.truth
    print(f"{len(truth.expnum)} exposures, {truth.bad.sum()} bad, {truth.few.sum()} in 1 or 2 CCDs, "
          f"{truth.novel.sum()} of kinds without a label; {len(survey.labelled)} labelled")  # fmt: skip
    tables = Tables(truth, known, survey.config)
    print("\n## Scores\n\n" + tables.figures())
    print("\n## Network alone, less its untrained control\n\n" + tables.less("network", "", "network"))
    print("\n## Embeddings alone, less the untrained control\n\n" + tables.less("embeddings", "", "network"))
    both = tables.less("numbers+network", "", "numbers+network")
    print("\n## Numbers and network, less numbers and the untrained control\n\n" + both)
    print("\n## Numbers and network, less numbers\n\n" + tables.less("numbers+network", "numbers", "numbers"))
    if options.reference in known:
        print(f"\n## Network, less {options.reference}\n\n" + tables.less("network", options.reference, "network"))
        both = tables.less("numbers+network", options.reference, "numbers+network")
        print(f"\n## Numbers and network, less {options.reference}\n\n" + both)
    if options.curve:
        draw(options.curve, tables)


if __name__ == "__main__":
    main()
