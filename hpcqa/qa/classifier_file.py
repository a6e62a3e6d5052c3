"""classifier.h5: a classifier as arrays and settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.schema import Provenance
from hpcqa.qa.blocks import FeatureMap, NumberScale
from hpcqa.qa.classifier import Calibration, Classifier, References
from hpcqa.qa.exposure import is_rarity
from hpcqa.qa.fusion import Fusion, OneSided
from hpcqa.qa.scores import Manner


def write(path: Path, classifier: Classifier, provenance: Provenance) -> Provenance:
    """Write a classifier; every number that is no reference goes into `parameters`, found through an index."""
    values, index = _pack(_parameters(classifier))
    arrays = {"parameters": values}
    columns: dict[str, dict[str, list[int]]] = {}
    for level, references in (("ccd_", classifier.ccd), ("", classifier.exposure)):
        for name in ("expnum", "bad", "reasons", "fold"):
            arrays[f"{level}{name}"] = getattr(references, name)
        blocks = [references.features[channel] for channel in classifier.features.channels]
        arrays[f"{level}features"] = np.concatenate(blocks, axis=1)
        columns[level] = _columns([block.shape[1] for block in blocks], classifier.features.channels)
    arrays["ccd_ccdnum"] = classifier.ccd.ccdnum
    for name in ("expnum", "fold", "bad"):
        arrays[f"labelled_{name}"] = getattr(classifier, f"labelled_{name}")
    attributes = {
        "mode": classifier.mode,
        "k": classifier.manner.k,
        "form": classifier.manner.form,
        "unit_length": classifier.features.unit_length,
        "channels": list(classifier.features.channels),
        "columns": columns,
        "bands": [str(band) for band in classifier.numbers.band],
        "score_names": list(classifier.exposure_calibration.names),
        "ccd_score_names": list(classifier.ccd_calibration.names),
        "index": index,
        "thresholds": dict(classifier.settings.get("thresholds", {})),
        "settings": dict(classifier.settings),
    }
    return store.write_arrays(path, catalog.CLASSIFIER, arrays, provenance, attributes)


def _columns(widths: list[int], channels: tuple[str, ...]) -> dict[str, list[int]]:
    ends = np.cumsum(widths).tolist()
    return {name: [end - width, end] for name, width, end in zip(channels, widths, ends, strict=True)}


def _parameters(classifier: Classifier) -> dict[str, np.ndarray]:
    numbers = classifier.numbers
    found = {f"features.{name}": values for name, values in classifier.features.parameters.items()}
    found |= {
        "numbers.ccdnum": numbers.ccdnum,
        "numbers.median": numbers.median,
        "numbers.scatter": numbers.scatter,
    }
    for level, calibration in (("ccd", classifier.ccd_calibration), ("exposure", classifier.exposure_calibration)):
        found |= {
            f"{level}.centre": calibration.fusion.one_sided.centre,
            f"{level}.scale": calibration.fusion.one_sided.scale,
            f"{level}.weight": calibration.fusion.weight,
            f"{level}.intercept": np.array([calibration.fusion.intercept]),
            f"{level}.novelty_centre": calibration.novelty.centre,
            f"{level}.novelty_scale": calibration.novelty.scale,
        }
    # Among the arrays, so that the file's digest knows of them.
    chosen = classifier.settings.get("thresholds", {})
    return found | {f"thresholds.{name}": np.array([value]) for name, value in chosen.items()}


def _pack(parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    index, offset = {}, 0
    for name, values in parameters.items():
        index[name] = {"offset": offset, "shape": list(np.shape(values))}
        offset += int(np.size(values))
    parts = [np.ravel(values).astype(np.float64) for values in parameters.values()]
    return (np.concatenate(parts) if parts else np.zeros(0)), index


def _unpack(values: np.ndarray, index: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: values[entry["offset"] : entry["offset"] + int(np.prod(entry["shape"], dtype=np.int64))].reshape(
            entry["shape"]
        )
        for name, entry in index.items()
    }


def read(path: Path) -> Classifier:
    """A classifier; the references' features stay in the file, mapped, so that the ranks of a node share them.

    Raises:
        DataError: missing, damaged, or of another schema.
    """
    with store.open_arrays(path, catalog.CLASSIFIER) as arrays:
        note = arrays.attributes
        found = _unpack(arrays.read("parameters"), note["index"])
        features = {
            name.removeprefix("features."): values for name, values in found.items() if name.startswith("features.")
        }
        levels = {level: _references(arrays, level, note["columns"][level]) for level in ("ccd_", "")}
        return Classifier(
            mode=note["mode"],
            manner=Manner(int(note["k"]), note["form"]),
            numbers=NumberScale(
                found["numbers.ccdnum"].astype(np.int32),
                np.array(note["bands"], dtype=object),
                found["numbers.median"],
                found["numbers.scatter"],
            ),
            features=FeatureMap(tuple(note["channels"]), features, bool(note["unit_length"])),
            ccd=levels["ccd_"],
            exposure=levels[""],
            ccd_calibration=_calibration(found, "ccd", note["ccd_score_names"]),
            exposure_calibration=_calibration(found, "exposure", note["score_names"]),
            labelled_expnum=arrays.read("labelled_expnum"),
            labelled_fold=arrays.read("labelled_fold"),
            labelled_bad=arrays.read("labelled_bad"),
            settings={**note["settings"], "thresholds": _thresholds(found)},
        )


def _thresholds(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        name.removeprefix("thresholds."): float(values[0])
        for name, values in found.items()
        if name.startswith("thresholds.")
    }


def _references(arrays: store.ArrayFile, level: str, columns: Mapping[str, list[int]]) -> References:
    expnum, bad, reasons, fold = (arrays.read(level + name) for name in ("expnum", "bad", "reasons", "fold"))
    features = arrays.mapping(f"{level}features") if len(expnum) else arrays.read(f"{level}features")
    return References(
        expnum=expnum,
        ccdnum=arrays.read("ccd_ccdnum") if level else np.full(len(expnum), -1, np.int32),
        bad=bad,
        reasons=reasons,
        fold=fold,
        features={channel: features[:, first:last] for channel, (first, last) in columns.items()},
    )


def _calibration(found: Mapping[str, np.ndarray], level: str, names: list[str]) -> Calibration:
    scale = OneSided(found[f"{level}.centre"], found[f"{level}.scale"], is_rarity(names))
    fusion = Fusion(scale, found[f"{level}.weight"], float(found[f"{level}.intercept"][0]))
    novelty = OneSided(found[f"{level}.novelty_centre"], found[f"{level}.novelty_scale"], np.zeros(1, bool))
    return Calibration(tuple(names), fusion, novelty)
