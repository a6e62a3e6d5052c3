"""The calibrate stage: the mean background pattern and the usual numbers of each CCD and band, from the survey itself.

A map is an exposure's background relative to its sky; what a CCD shows in every exposure (flat-field residuals,
fringes, steps) is its pattern, the weighted median over exposures. Bad exposures are few enough not to move a median,
and count less in a second round.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import CALIBRATION, SHARD
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.observe import track
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels.shardindex import ShardIndex, open_index

logger = logging.getLogger(__name__)

ROUNDS = 2
FEWEST_NUMBERS = 5  # fewer values of a number in a (CCD, band): those of all CCDs in the band serve


@dataclass(frozen=True)
class Sample:
    """The CCDs that are looked at, n of them.

    Attributes:
        ccdnum: (n,). band: (n,) object. expnum: (n,).
        maps, noise: (n, H, W) float16 in units of the sky, NaN unknown.
        numbers: (n, F) float32.
    """

    ccdnum: np.ndarray
    band: np.ndarray
    expnum: np.ndarray
    maps: np.ndarray
    noise: np.ndarray
    numbers: np.ndarray


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write calibration.h5; nothing if it is there and made from the same.

    Raises:
        DataError: no shards.
    """
    if not ranks.is_first:
        return
    where = folder.need("shards", "shard")
    paths = sorted(where.glob("shard-*.h5"))
    if not paths:
        raise DataError(f"{where}: holds no shard; run `hpcqa shard run={folder.path}` first.")
    index = open_index(paths)
    parents = {folder.relative(path): content for path, content in zip(paths, index.contents, strict=True)}
    digest = stage_digest(config, "calibrate")
    target = folder.output("calibration")
    if store.is_current(target, CALIBRATION, config_digest=digest, parents=parents):
        logger.info("calibrate: %s is there already", target)
        return
    names = list(index.names)
    sample = read_sample(paths, index, config.calibrate.max_exposures)
    columns = calibrate(sample, min_exposures=config.calibrate.min_exposures, floor=config.views.background_floor)
    provenance = Provenance(digest, parents, instrument=config.instrument.name)
    attributes = {"number_names": names, "floor": config.views.background_floor}
    store.write_arrays(target, CALIBRATION, columns, provenance, attributes)
    own = int(np.count_nonzero((columns["num_exposures"] > 0) & ~columns["pooled"]))
    pooled = int(np.count_nonzero(columns["pooled"]))
    logger.info(
        "calibrate: %d CCDs and bands: %d with a pattern of their own, %d with that of all bands, %d without",
        len(columns["ccdnum"]), own, pooled, len(columns["ccdnum"]) - own - pooled,
    )  # fmt: skip


# Reading --------------------------------------------------------------------------------------------------------------


def choose_exposures(expnum: np.ndarray, band: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` exposures of each band, evenly spread over the sorted exposure numbers: int64, sorted."""
    chosen = []
    for name in sorted(set(band.tolist())):
        numbers = np.unique(expnum[band == name])
        places = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
        chosen.append(numbers[places])
    return np.unique(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def read_sample(paths: Sequence[Path], index: ShardIndex, most: int) -> Sample:
    """The good CCDs of the chosen exposures; memory is bounded by `most`, not by the survey."""
    expnum, band = index.columns["exposure"], index.columns["exposure_band"]
    chosen = choose_exposures(expnum, band, most)
    band_of = dict(zip(expnum.tolist(), band.tolist(), strict=True))
    # The shards that hold a chosen exposure.
    shard = np.unique(np.searchsorted(index.exposure_starts, np.flatnonzero(np.isin(expnum, chosen)), side="right") - 1)
    parts = [
        _read_part(paths[place], chosen)
        for place in track(shard.tolist(), "calibrate", total=len(shard), unit="shards")
    ]
    if not parts:
        raise DataError(f"{paths[0].parent}: no shard holds an exposure; check the manifest.")
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    bands_of_rows = np.array([band_of[number] for number in joined[1].tolist()], dtype=object)
    return Sample(joined[0], bands_of_rows, *joined[1:])


def _read_part(path: Path, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
    with store.open_arrays(path, SHARD) as shard:
        expnum = shard.read("expnum")
        wanted = np.isin(expnum, chosen) & (shard.read("failed") == 0)
        return (
            shard.read("ccdnum")[wanted],
            expnum[wanted],
            shard.read("background")[wanted],
            shard.read("background_noise")[wanted],
            shard.read("numbers")[wanted],
        )


# The core -------------------------------------------------------------------------------------------------------------


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted median along the first axis; NaN values do not count, and NaN where nothing counts.

    Args:
        values: (n, ...) float.
        weights: the same shape, at least 0.
    """
    known = np.isfinite(values) & (weights > 0)
    order = np.argsort(np.where(known, values, np.inf), axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    weight = np.take_along_axis(np.where(known, weights, 0.0), order, axis=0)
    total = np.cumsum(weight, axis=0)
    half = 0.5 * total[-1]
    place = np.argmax(total >= half[None], axis=0)[None]
    median = np.take_along_axis(ordered, place, axis=0)[0]
    # Exactly half of the weight lies at or below this value: the median is half way to the next one that counts.
    following = np.argmax(total > half[None], axis=0)[None]
    upper = np.take_along_axis(ordered, following, axis=0)[0]
    tied = np.take_along_axis(total, place, axis=0)[0] == half
    with np.errstate(invalid="ignore"):
        median = np.where(tied & np.isfinite(upper), 0.5 * (median + upper), median)
    return np.where(half > 0, median, np.nan)


def pattern_of(maps: np.ndarray, noise: np.ndarray, floor: float) -> np.ndarray:
    """The pattern that maps share: (H, W) float32, 0 where unknown.

    Args:
        maps, noise: (n, H, W) in units of the sky, NaN unknown.
        floor: scatter beyond photon noise, in units of the sky.
    """
    values = maps.astype(np.float32)
    variance = noise.astype(np.float32) ** 2 + np.float32(floor) ** 2
    weights = np.where(np.isfinite(variance), 1.0 / np.maximum(variance, 1e-12), 0.0)
    pattern = weighted_median(values, weights)
    for _ in range(ROUNDS - 1):
        # A map far off, for its own noise, is of a bad exposure: its weight falls as its misfit grows.
        misfit = np.sqrt(_row_median((values - pattern) ** 2 * weights))
        usual = np.nanmedian(misfit) if np.isfinite(misfit).any() else 1.0
        trust = 1.0 / (1.0 + (np.nan_to_num(misfit, nan=np.inf) / max(usual, 1e-6)) ** 2)
        pattern = weighted_median(values, weights * trust[:, None, None])
    known: np.ndarray = np.nan_to_num(pattern, nan=0.0).astype(np.float32)
    return known


def _row_median(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    result = np.full(len(values), np.nan)
    some = np.isfinite(flat).any(axis=1)
    result[some] = np.nanmedian(flat[some], axis=1)
    return result


def usual_numbers(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 MAD of each number (F,), NaN where fewer than FEWEST_NUMBERS are known."""
    known = np.isfinite(numbers).sum(axis=0) >= FEWEST_NUMBERS
    median = np.full(numbers.shape[1], np.nan, np.float32)
    scatter = median.copy()
    if known.any():
        chosen = numbers[:, known].astype(np.float64)
        chosen[~np.isfinite(chosen)] = np.nan
        median[known] = np.nanmedian(chosen, axis=0)
        scatter[known] = 1.4826 * np.nanmedian(np.abs(chosen - median[known]), axis=0)
    return median, scatter


def calibrate(sample: Sample, *, min_exposures: int, floor: float) -> dict[str, np.ndarray]:
    """The columns of the calibration, one row for each (CCD, band) of the sample in ascending order.

    A (CCD, band) with fewer exposures than `min_exposures` gets the pattern of the CCD in all bands together, and none
    (zeros) if these are too few as well. Numbers fall back on those of the band's other CCDs.
    """
    rows: list[tuple[int, str, int, bool, np.ndarray, np.ndarray, np.ndarray]] = []
    fallback = {name: usual_numbers(sample.numbers[sample.band == name]) for name in sorted(set(sample.band.tolist()))}
    for ccdnum in np.unique(sample.ccdnum).tolist():
        of_ccd = np.flatnonzero(sample.ccdnum == ccdnum)
        everything: np.ndarray | None = None
        for band in sorted(set(sample.band[of_ccd].tolist())):
            here = of_ccd[sample.band[of_ccd] == band]
            pooled = len(here) < min_exposures <= len(of_ccd)
            if pooled and everything is None:
                everything = pattern_of(sample.maps[of_ccd], sample.noise[of_ccd], floor)
            pattern, num = _choose(sample, here, of_ccd, everything if pooled else None, min_exposures, floor)
            median, scatter = usual_numbers(sample.numbers[here])
            unknown = ~np.isfinite(median)
            median[unknown], scatter[unknown] = fallback[band][0][unknown], fallback[band][1][unknown]
            rows.append((ccdnum, band, num, pooled, pattern, median, scatter))
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = ("ccdnum", "band", "num_exposures", "pooled", "background", "number_median", "number_scatter")
    result = dict(zip(names, (np.array(column) for column in columns), strict=True))
    result["band"] = np.array(columns[1], dtype=object)
    return result


def _choose(
    sample: Sample, here: np.ndarray, of_ccd: np.ndarray, pooled: np.ndarray | None, min_exposures: int, floor: float
) -> tuple[np.ndarray, int]:
    """The pattern to use and the number of exposures behind it."""
    if pooled is not None:
        return pooled, len(of_ccd)
    if len(here) < min_exposures:
        return np.zeros(sample.maps.shape[1:], np.float32), 0
    return pattern_of(sample.maps[here], sample.noise[here], floor), len(here)
