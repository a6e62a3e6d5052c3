"""From CCDs to exposures: the scores of both levels side by side, so that one or two bad CCDs are not averaged away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpcqa.qa.scores import Scores

CCD_STATISTICS = ("top2", "mean")
KINDS = ("leaning", "novelty")
RARITY = "rarity"


def score_names(channels: Sequence[str]) -> list[str]:
    """Names of the columns of `exposure_scores`, in order."""
    names = []
    for channel in channels:
        for kind in KINDS:
            names.append(f"exposure.{channel}.{kind}")
            names += [f"ccd.{channel}.{kind}.{statistic}" for statistic in CCD_STATISTICS]
        names.append(f"ccd.{channel}.{RARITY}.top")
    return names


def exposure_scores(
    exposure: Mapping[str, Scores],
    ccd: Mapping[str, Scores],
    rare: Mapping[str, np.ndarray],
    starts: np.ndarray,
    channels: Sequence[str],
) -> np.ndarray:
    """Scores of exposures by themselves and through their CCDs: float64 (exposure, score), see `score_names`.

    Args:
        exposure: scores of the exposures by channel.
        ccd: scores of the CCDs by channel, the CCDs of an exposure together.
        rare: rarity of the CCDs by channel.
        starts: int (exposure,), first CCD of each exposure.
    """
    columns = []
    for channel in channels:
        for kind in KINDS:
            columns.append(getattr(exposure[channel], kind))
            values = getattr(ccd[channel], kind)
            columns += [top_mean(values, starts, 2), top_mean(values, starts, len(values))]
        columns.append(top_mean(rare[channel], starts, 1))
    return np.stack(columns, axis=1) if columns else np.zeros((len(starts), 0))


def is_rarity(names: Sequence[str]) -> np.ndarray:
    """Which scores are rarities, logarithms by nature: bool (score,)."""
    return np.array([RARITY in name.split(".") for name in names], bool)


def columns_of(names: Sequence[str], *parts: str) -> np.ndarray:
    """Positions of the score names that hold every part, e.g. ("ccd", "numbers"): int64."""
    return np.array([place for place, name in enumerate(names) if set(parts) <= set(name.split("."))], np.int64)


def ccd_score_names(channels: Sequence[str]) -> list[str]:
    """Names of the columns of `ccd_scores`, in order."""
    return [f"ccd.{channel}.{kind}" for channel in channels for kind in (*KINDS, RARITY)]


def ccd_scores(ccd: Mapping[str, Scores], rare: Mapping[str, np.ndarray], channels: Sequence[str]) -> np.ndarray:
    """Scores of CCDs: float64 (ccd, 3 x channel), leaning, novelty and rarity of each channel."""
    columns: list[np.ndarray] = []
    for channel in channels:
        columns += [*(getattr(ccd[channel], kind) for kind in KINDS), rare[channel].astype(np.float64)]
    return np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def top_mean(values: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` largest values of each segment, or of all where it has fewer: float64 (segment,)."""
    if not len(starts):
        return np.zeros(0)
    sizes = np.diff(np.r_[starts, len(values)])
    segment = np.repeat(np.arange(len(starts)), sizes)
    order = np.lexsort((-values, segment))
    place = np.arange(len(values)) - np.repeat(starts, sizes)
    kept = np.where(place < count, values[order], 0.0)
    mean: np.ndarray = np.add.reduceat(kept, starts) / np.minimum(sizes, count)
    return mean


def rank_in_exposure(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Rows ordered within each segment by falling value, ties by row: int64 (row,)."""
    segment = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return np.lexsort((-values, segment))
