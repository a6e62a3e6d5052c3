"""The classifier: references at both levels, scales, weights; and how it scores exposures. Arrays only, no pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcqa.qa import approximate
from hpcqa.qa.blocks import FeatureMap, NumberScale, Raw
from hpcqa.qa.exposure import RARITY, ccd_scores, columns_of, exposure_scores, rank_in_exposure
from hpcqa.qa.fusion import Fusion, OneSided
from hpcqa.qa.scores import Manner, Scores, Sides, nearest_of_both, reason_shares
from hpcqa.reasons import REASONS

LABELLED, UNLABELLED = "labelled", "unlabelled"


@dataclass(frozen=True)
class References:
    """Labelled examples of one level, in the order of (fold, expnum, ccdnum).

    Attributes:
        expnum: int64 (reference,).
        ccdnum: int32 (reference,), -1 for exposures.
        bad: bool (reference,).
        reasons: int64 (reference,), bits of hpcqa.reasons.
        fold: int32 (reference,); a labelled exposure is scored without the references of its own fold of nights.
        features: channel to float32 (reference, feature).
        indices: channel to approximate indices of its good (False) and bad (True) references; usually none.
    """

    expnum: np.ndarray
    ccdnum: np.ndarray
    bad: np.ndarray
    reasons: np.ndarray
    fold: np.ndarray
    features: Mapping[str, np.ndarray]
    indices: Mapping[str, Mapping[bool, approximate.Index]] = field(default_factory=dict)
    _ready: dict[tuple[str, str], Sides] = field(default_factory=dict, init=False, repr=False, compare=False)

    def select(self, rows: np.ndarray) -> References:
        """Some references, in the same order."""
        features = {channel: values[rows] for channel, values in self.features.items()}
        return References(
            self.expnum[rows], self.ccdnum[rows], self.bad[rows], self.reasons[rows], self.fold[rows], features
        )

    def score(self, queries: Mapping[str, np.ndarray], fold: np.ndarray, manner: Manner) -> dict[str, Scores]:
        """Scores of queries by channel; `fold` int (query,), -1 for queries that no label names."""
        return {
            channel: self._sides(channel, manner.device).score(queries[channel], manner, fold)
            for channel in self.features
        }

    def _sides(self, channel: str, device: str) -> Sides:
        """Made when a channel is first searched, and kept."""
        if (channel, device) not in self._ready:
            indices, features = self.indices.get(channel), self.features[channel]
            self._ready[channel, device] = Sides(features, self.bad, group=self.fold, indices=indices, device=device)
        return self._ready[channel, device]

    def indexed(self, k: int) -> tuple[References, float]:
        """The same with approximate indices where references are many, and the least share of neighbours that one of
        them finds, measured with examples of the other class; 1 without any.
        """
        found: dict[str, dict[bool, approximate.Index]] = {}
        least = 1.0
        for channel, features in self.features.items():
            for side in (False, True):
                rows = np.flatnonzero(self.bad == side)
                if len(rows) < approximate.FEWEST:
                    continue
                rows = rows[np.argsort(self.fold[rows], kind="stable")]
                index = approximate.Index.of(np.asarray(features[rows]))
                found.setdefault(channel, {})[side] = index
                others = np.flatnonzero(self.bad != side)
                share = approximate.recall(index, np.asarray(features[others[: 1 << 16]]), k)
                least = min(least, share if np.isfinite(share) else 1.0)
        return dataclasses.replace(self, indices=found), least


@dataclass(frozen=True)
class Calibration:
    """How the scores of one level become a probability and a novelty.

    Attributes:
        names: of the scores, in order.
        fusion: scores to probability; its weights are 0 where nothing was labelled.
        novelty: scale of the largest novelty score among good examples.
    """

    names: tuple[str, ...]
    fusion: Fusion
    novelty: OneSided

    def novelty_of(self, scores: np.ndarray) -> np.ndarray:
        """Distance to the good examples in units of their own scatter, about 0 for them: float64 (row,)."""
        return self.novelty.deviation(largest_novelty(self.names, self.fusion.one_sided, scores)[:, None])[:, 0]

    def contributions(self, scores: np.ndarray, *parts: str) -> np.ndarray:
        """What the scores whose names hold all parts add to the log odds: float64 (row,)."""
        columns = columns_of(self.names, *parts)
        total: np.ndarray = self.fusion.one_sided.apply(scores)[:, columns] @ self.fusion.weight[columns]
        return total


def largest_novelty(names: Sequence[str], scale: OneSided, scores: np.ndarray) -> np.ndarray:
    """The largest of the novelties and rarities, each in units of the good examples' scatter: float64 (row,)."""
    columns = np.r_[columns_of(names, "novelty"), columns_of(names, RARITY)]
    largest: np.ndarray = scale.deviation(scores)[:, columns].max(axis=1, initial=-np.inf)
    return largest


@dataclass(frozen=True)
class Answers:
    """What the classifier says of some exposures, as numbers.

    Attributes:
        p_bad: float64 (exposure,); NaN without labels.
        novelty: float64 (exposure,), distance to the good exposures in units of their own scatter.
        reason: float64 (exposure, reason), probability of each reason given that the exposure is bad.
        nearest: int64 (exposure, NEAREST), rows of the exposure references, nearest first, -1 for none.
        ccd_p_bad, ccd_novelty: float64 (ccd,).
        ccd_reason: float64 (ccd, reason).
        rarity: float32 (ccd, number), of the measured numbers; empty where the classifier does not use them.
    """

    p_bad: np.ndarray
    novelty: np.ndarray
    reason: np.ndarray
    nearest: np.ndarray
    ccd_p_bad: np.ndarray
    ccd_novelty: np.ndarray
    ccd_reason: np.ndarray
    rarity: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """Everything that fit learned.

    Attributes:
        mode: labelled; or unlabelled where there was nothing to learn from: then novelty is all it gives.
        manner: how neighbours become scores.
        numbers: scale of the measured numbers.
        features: maps raw blocks to features.
        ccd, exposure: references of the two levels.
        ccd_calibration, exposure_calibration: scores to probabilities.
        labelled_expnum, labelled_fold, labelled_bad: every labelled exposure, sorted by number: its fold, and whether
            it is bad as a whole or in a CCD.
        settings: names and settings it was fitted with.
    """

    mode: str
    manner: Manner
    numbers: NumberScale
    features: FeatureMap
    ccd: References
    exposure: References
    ccd_calibration: Calibration
    exposure_calibration: Calibration
    labelled_expnum: np.ndarray
    labelled_fold: np.ndarray
    labelled_bad: np.ndarray
    settings: Mapping[str, Any]

    def fold_of(self, expnum: np.ndarray) -> np.ndarray:
        """The fold of each exposure's labels, -1 for exposures without: int64 (exposure,)."""
        return look_up(self.labelled_expnum, self.labelled_fold, expnum, -1)

    def decide(self, raw: Raw, expnum: np.ndarray, device: str = "cpu") -> Answers:
        """Score exposures and their CCDs.

        Args:
            raw: the exposures' blocks; "numbers" as deviations (see `NumberScale`).
            expnum: int64 (exposure,).
            device: where distances are computed.
        """
        manner = dataclasses.replace(self.manner, device=device)
        scored = score_levels(self.features, self.ccd, self.exposure, raw, self.fold_of(expnum), manner)
        exposures, ccds = self.exposure_calibration, self.ccd_calibration
        unknown = np.nan if self.mode == UNLABELLED else 0.0
        ccd_p_bad = ccds.fusion.probability(scored.ccd_matrix) + unknown
        ccd_reason = self._ccd_reasons(scored)
        return Answers(
            p_bad=exposures.fusion.probability(scored.matrix) + unknown,
            novelty=exposures.novelty_of(scored.matrix),
            reason=self._reasons(scored, ccd_reason, raw.starts),
            nearest=self._nearest(scored),
            ccd_p_bad=ccd_p_bad,
            ccd_novelty=ccds.novelty_of(scored.ccd_matrix),
            ccd_reason=ccd_reason,
            rarity=scored.rarity,
        )

    def _ccd_reasons(self, scored: Scored) -> np.ndarray:
        return _mix(
            [self.ccd_calibration.contributions(scored.ccd_matrix, channel) for channel in self.features.channels],
            [reason_shares(scored.ccd[channel], self.ccd.reasons, len(REASONS)) for channel in self.features.channels],
        )

    def _reasons(self, scored: Scored, ccd_reason: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Reasons of the neighbouring exposures and of the two worst CCDs, each by what it adds to the log odds."""
        calibration, channels = self.exposure_calibration, self.features.channels
        weights = [calibration.contributions(scored.matrix, "exposure", channel) for channel in channels]
        shares = [reason_shares(scored.exposure[name], self.exposure.reasons, len(REASONS)) for name in channels]
        worst = self.ccd_calibration.fusion.logit(scored.ccd_matrix)
        rows = rank_in_exposure(worst, starts)
        first = rows[starts]
        second = rows[np.minimum(starts + 1, np.r_[starts[1:], len(rows)] - 1)]
        weights.append(calibration.contributions(scored.matrix, "ccd"))
        shares.append((ccd_reason[first] + ccd_reason[second]) / 2)
        return _mix(weights, shares)

    def _nearest(self, scored: Scored) -> np.ndarray:
        """Nearest labelled exposures in the channel that says most."""
        channels = self.features.channels
        adds = np.stack([self.exposure_calibration.contributions(scored.matrix, name) for name in channels], axis=1)
        found = np.stack([nearest_of_both(scored.exposure[name], NEAREST) for name in channels], axis=1)
        chosen = np.argmax(adds, axis=1)
        nearest = np.full((len(chosen), NEAREST), -1, np.int64)
        nearest[:, : found.shape[2]] = found[np.arange(len(chosen)), chosen]
        return nearest


NEAREST = 5


def _mix(weights: Sequence[np.ndarray], shares: Sequence[np.ndarray]) -> np.ndarray:
    """Weighted mean of shares (row, reason); equal weights for rows whose weights are all 0."""
    weight = np.stack(weights)
    total = weight.sum(axis=0)
    weight = np.where(total > 0, weight, 1.0)
    weight = weight / weight.sum(axis=0)
    mixed: np.ndarray = np.einsum("cn,cnr->nr", weight, np.stack(shares))
    return mixed


@dataclass(frozen=True)
class Scored:
    """Scores of exposures and CCDs by channel, as matrices (exposure, score) and (ccd, score), and Features.rarity."""

    ccd: Mapping[str, Scores]
    exposure: Mapping[str, Scores]
    ccd_matrix: np.ndarray
    matrix: np.ndarray
    rarity: np.ndarray


def score_levels(
    features: FeatureMap,
    ccd_references: References,
    exposure_references: References,
    raw: Raw,
    fold: np.ndarray,
    manner: Manner,
) -> Scored:
    """Score both levels; `fold` int (exposure,) names references that an exposure may not find, -1 for none."""
    found, channels = features.apply(raw), features.channels
    ccd = ccd_references.score(found.ccd, np.repeat(fold, raw.sizes()), manner)
    exposure = exposure_references.score(found.exposure, fold, manner)
    return Scored(
        ccd,
        exposure,
        ccd_scores(ccd, found.rare, channels),
        exposure_scores(exposure, ccd, found.rare, raw.starts, channels),
        found.rarity,
    )


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: int) -> np.ndarray:
    """Values of sorted keys, `missing` for keys that are not there: int64."""
    if not len(keys):
        return np.full(len(wanted), missing, np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing).astype(np.int64)
