"""From measured numbers and embeddings to the features that neighbours are looked up in.

Kinds of evidence ("channels") stay apart, each with features of its own for a CCD and for an exposure: `numbers`
(measured, robustly standardised), `contrast` (how a CCD's numbers differ from its exposure's, which shows what is wrong
with one or two CCDs whatever the weather), the network's embeddings of `maps` (CCD backgrounds and focal plane), of the
whole CCD (`context`) and of star stamps (`detail`), each reduced by PCA without whitening, and `defects` (what the
injected-defect heads answer). Were the views one channel, a view that says nothing would drown those that do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcqa.qa.knn import of_unit_length

CHANNELS: dict[str, tuple[str, ...]] = {
    "numbers": ("numbers",),
    "contrast": ("contrast",),
    "maps": ("background",),
    "context": ("context",),
    "detail": ("detail",),
    "defects": ("defects",),
}
NUMBERS, EMBEDDINGS = ("numbers", "contrast"), ("maps", "context", "detail")
NETWORK = (*EMBEDDINGS, "defects")  # all that a trained network says; an untrained one has learnt no defects
EXPOSURE_BLOCKS: dict[str, tuple[str, ...]] = {"maps": ("focal_plane",), "defects": ("exposure_defects",)}
# At most so many rows enter a PCA or a median; more change nothing that matters.
FIT_ROWS = 20000
# Tails begin at this quantile of good examples, but not nearer to zero than LEAST_START; few rows show them.
TAIL_FROM, LEAST_START, TAIL_ROWS = 0.9, 1.0, 200000
# The reach that tails usually have, worth so many examples.
USUAL_REACH, TAIL_PRIOR = 0.4, 10.0
RAREST = 2  # features of a CCD that its rarity is a mean of


# Standardising ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robust:
    """Centre and scale of each feature among good examples; what is far from them is squashed like asinh.

    Attributes:
        centre, scale: float64 (feature,).
    """

    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, good: np.ndarray, everything: np.ndarray) -> Robust:
        """Median and spread of the good rows; what is constant there takes a tenth of the largest deviation."""
        good, everything = thin(good), thin(everything)
        centre = np.median(good, axis=0).astype(np.float64)
        deviation = np.abs(good - centre)
        # The MAD is zero for flags and counts; the 95 % quantile still sees their tail.
        scale = np.maximum(1.4826 * np.median(deviation, axis=0), 0.5 * np.quantile(deviation, 0.95, axis=0))
        largest = np.abs(everything - centre).max(axis=0, initial=0.0)
        scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(centre)), scale, 0.1 * largest)
        return cls(centre, np.where(scale > 0, scale, 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """float32 of the same shape: linear within two scales, logarithmic beyond."""
        return squash((values - self.centre) / self.scale)


def squash(deviation: np.ndarray) -> np.ndarray:
    """2 asinh(z / 2) as float32; NaN becomes 0, which is unremarkable."""
    return np.nan_to_num(2.0 * np.arcsinh(deviation / 2.0), nan=0.0, posinf=60.0, neginf=-60.0).astype(np.float32)


def thin(rows: np.ndarray, most: int = FIT_ROWS) -> np.ndarray:
    """At most `most` rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


@dataclass(frozen=True)
class Pca:
    """Leading components, not whitened, scaled so that good examples have unit mean square in all of them together.

    Attributes:
        centre: float64 (feature,); components: float64 (feature, component), the scale included.
    """

    centre: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, good: np.ndarray, everything: np.ndarray, count: int) -> Pca:
        rows = np.nan_to_num(thin(everything)).astype(np.float64)
        centre = rows.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(rows - centre, rowvar=False, bias=True).reshape(rows.shape[1], -1))
        components = vectors[:, np.argsort(values)[::-1][:count]]
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        peak = np.argmax(np.abs(components), axis=0)
        components = components * np.sign(components[peak, np.arange(components.shape[1])])
        projected = (np.nan_to_num(thin(good)) - centre) @ components
        spread = np.sqrt(np.mean(np.square(projected - projected.mean(axis=0)).sum(axis=1)))
        return cls(centre, components / (spread if spread > 0 else 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """float32 (row, component)."""
        return np.asarray((np.nan_to_num(values) - self.centre) @ self.components, np.float32)


@dataclass(frozen=True)
class Tails:
    """How far values of each feature lie out in the tails that good examples have, above and below.

    Neighbours weigh all features alike, so that one that is far out of all that good CCDs ever show drowns in the
    scatter of a hundred others; and what is far out for one number is usual for another, whose tail is long. So each
    side of each feature gets a tail of its own, exponential beyond the quantile TAIL_FROM. For squashed deviations,
    which grow like logarithms, that is Hill's estimate of a power law (Hill 1975, Annals of Statistics 3, 1163).

    Attributes:
        start: float64 (2, feature), where the tail begins, above and below zero.
        reach: float64 (2, feature), in which it falls by a factor e.
    """

    start: np.ndarray
    reach: np.ndarray

    @classmethod
    def fit(cls, good: np.ndarray) -> Tails:
        """From features of good examples, float (row, feature), centred about zero."""
        start, reach = np.empty((2, good.shape[1])), np.empty((2, good.shape[1]))
        for side, sign in enumerate((1.0, -1.0)):
            values = np.maximum(sign * good, 0.0)
            start[side] = np.quantile(values, TAIL_FROM, axis=0) if len(good) else 0.0
            start[side] = np.maximum(start[side], LEAST_START)
            excess = np.maximum(values - start[side], 0.0)
            # A few examples' worth of a usual tail keep a feature that never stands out from looking endlessly rare.
            reach[side] = (excess.sum(axis=0) + TAIL_PRIOR * USUAL_REACH) / ((excess > 0).sum(axis=0) + TAIL_PRIOR)
        return cls(start, reach)

    def rarity(self, features: np.ndarray) -> np.ndarray:
        """Factors of e by which a value is rarer than where its tail begins: float32 (row, feature), 0 in the bulk."""
        values = np.asarray(features, np.float32)
        start, rate = self.start.astype(np.float32), (1.0 / self.reach).astype(np.float32)
        # Tails begin away from zero, so at most one side is positive.
        rarity: np.ndarray = (values - start[0]) * rate[0]
        np.maximum(rarity, (-values - start[1]) * rate[1], out=rarity)
        np.maximum(rarity, np.float32(0.0), out=rarity)
        return rarity


def rarest(rarity: np.ndarray) -> np.ndarray:
    """Mean of the RAREST largest rarities of each row, 0 where there are no features: float32 (row,)."""
    count = min(RAREST, rarity.shape[1])
    if not count:
        return np.zeros(len(rarity), np.float32)
    return np.asarray(np.partition(rarity, -count, axis=1)[:, -count:].mean(axis=1), np.float32)


# Numbers against the survey -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NumberScale:
    """Median and scatter of each measured number by (CCD, band), from calibration.h5.

    Attributes:
        ccdnum: int32 (pattern,); band: str (pattern,); median, scatter: float32 (pattern, number).
    """

    ccdnum: np.ndarray
    band: np.ndarray
    median: np.ndarray
    scatter: np.ndarray
    _bands: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def apply(self, numbers: np.ndarray, ccdnum: np.ndarray, band: np.ndarray) -> np.ndarray:
        """Deviations in units of the band's scatter, and the share of unknown numbers as one more column.

        A CCD without a pattern takes the median of its band's patterns, a band without any the median of all.

        Returns:
            float32 (ccd, number + 1); NaN unknown; where the scatter is zero the plain difference.
        """
        deviation = np.empty(numbers.shape, np.float32)
        for name in np.unique(band.astype(str)):
            rows = np.flatnonzero(band == name)
            inside, median, scatter = self._of_band(name)
            deviation[rows] = (numbers[rows] - self._centres(inside, median, ccdnum[rows])) / scatter
        unknown = np.isnan(deviation).sum(axis=1, keepdims=True) / max(1, numbers.shape[1])
        return np.concatenate([deviation, unknown.astype(np.float32)], axis=1)

    def _of_band(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A band's patterns, and median and scatter of its CCDs together; worked out once, asked for by every file."""
        if name not in self._bands:
            inside = np.flatnonzero(self.band == name)
            pooled = inside if len(inside) else np.arange(len(self.band))
            scatter = _nanmedian(self.scatter[pooled])
            self._bands[name] = inside, _nanmedian(self.median[pooled]), np.where(scatter > 0, scatter, 1.0)
        return self._bands[name]

    def _centres(self, inside: np.ndarray, pooled: np.ndarray, ccdnum: np.ndarray) -> np.ndarray:
        own = {int(self.ccdnum[row]): np.where(np.isnan(self.median[row]), pooled, self.median[row]) for row in inside}
        numbers, inverse = np.unique(ccdnum, return_inverse=True)
        return np.stack([own.get(int(number), pooled) for number in numbers])[inverse]

    @classmethod
    def of_numbers(cls, numbers: np.ndarray, band: np.ndarray) -> NumberScale:
        """A scale from the numbers themselves, by band; for runs without a calibration."""
        names = np.unique(band.astype(str))
        medians, scatters = [], []
        for name in names:
            median = _nanmedian(numbers[band == name])
            medians.append(median)
            scatters.append(1.4826 * _nanmedian(np.abs(numbers[band == name] - median)))
        return cls(np.full(len(names), -1, np.int32), names.astype(object), np.stack(medians), np.stack(scatters))


def _nanmedian(rows: np.ndarray) -> np.ndarray:
    """Median of each column without NaN; 0 for a column of nothing else."""
    unknown = np.isnan(rows).all(axis=0)
    return np.asarray(np.nanmedian(np.where(unknown, 0.0, rows), axis=0))


# CCDs to exposure ---------------------------------------------------------------------------------------------------


def per_exposure(values: np.ndarray, starts: np.ndarray, how: Sequence[str]) -> np.ndarray:
    """Statistics of the CCDs of each exposure, side by side.

    Args:
        values: float (ccd, feature), the CCDs of an exposure together.
        starts: int (exposure,), first row of each exposure.
        how: of mean, spread, max, min.

    Returns:
        float64 (exposure, len(how) x feature).
    """
    if not len(starts):
        return np.zeros((0, len(how) * values.shape[1]))
    count = np.diff(np.r_[starts, len(values)])[:, None]
    mean = np.add.reduceat(values.astype(np.float64), starts, axis=0) / count
    parts = {"mean": mean}
    if "spread" in how:
        square = np.add.reduceat(np.square(values.astype(np.float64)), starts, axis=0) / count
        parts["spread"] = np.sqrt(np.maximum(square - np.square(mean), 0.0))
    if "max" in how:
        parts["max"] = np.maximum.reduceat(values, starts, axis=0)
    if "min" in how:
        parts["min"] = np.minimum.reduceat(values, starts, axis=0)
    return np.concatenate([parts[name] for name in how], axis=1)


STATISTICS = {
    "numbers": ("mean", "spread", "max", "min"),
    "contrast": ("max", "min"),
    **dict.fromkeys(EMBEDDINGS, ("mean", "spread")),
    "defects": ("mean", "max"),
}


# The map ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """What is known of some exposures, before any scaling. CCDs of an exposure lie together, exposures in order.

    Attributes:
        starts: int64 (exposure,), first CCD of each exposure.
        ccd: block name to float (ccd, feature); "numbers" already as deviations by NumberScale.
        exposure: block name to float (exposure, feature).
    """

    starts: np.ndarray
    ccd: Mapping[str, np.ndarray]
    exposure: Mapping[str, np.ndarray]

    def block(self, name: str) -> np.ndarray:
        """A block of the CCDs; "contrast" is made from the numbers."""
        if name == "contrast":
            return contrast(self.ccd["numbers"], self.starts)
        return self.ccd[name]

    def has(self, name: str) -> bool:
        return name in self.ccd or name == "contrast"

    def has_any(self, channel: str) -> bool:
        """Whether there is a block of a channel, of CCDs or of exposures."""
        return any(map(self.has, CHANNELS[channel])) or any(
            name in self.exposure for name in EXPOSURE_BLOCKS.get(channel, ())
        )

    @property
    def num_ccds(self) -> int:
        return len(next(iter(self.ccd.values())))

    def sizes(self) -> np.ndarray:
        """CCDs of each exposure: int64 (exposure,)."""
        return np.diff(np.r_[self.starts, self.num_ccds])

    def select(self, exposures: np.ndarray) -> Raw:
        """Some exposures with their CCDs, in the order given (int rows)."""
        sizes = self.sizes()[exposures]
        rows = segment_rows(self.starts[exposures], sizes)
        ccd = {name: values[rows] for name, values in self.ccd.items()}
        exposure = {name: values[exposures] for name, values in self.exposure.items()}
        return Raw(np.cumsum(sizes) - sizes, ccd, exposure)


def contrast(deviations: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Squashed deviations of CCDs less the median of their exposure: float32 (ccd, number)."""
    values = squash(deviations)
    ends = np.r_[starts[1:], len(values)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        values[start:end] -= np.median(values[start:end], axis=0)
    return values


def segment_rows(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The rows of several segments, one after the other: int64."""
    ends = np.cumsum(sizes)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes))


@dataclass(frozen=True)
class Features:
    """What scores are made from.

    Attributes:
        ccd, exposure: channel to float32 (ccd, feature) and (exposure, feature), for neighbours.
        rare: channel to float32 (ccd,), see `rarest`.
        rarity: float32 (ccd, number), of the measured numbers one by one; no columns without that channel.
    """

    ccd: dict[str, np.ndarray]
    exposure: dict[str, np.ndarray]
    rare: dict[str, np.ndarray]
    rarity: np.ndarray


@dataclass(frozen=True)
class FeatureMap:
    """Raw blocks to features by channel, for CCDs and for exposures; all it learned is in `parameters`.

    With `unit_length` every row of a channel has length one, so that Euclidean neighbours are those by cosine.
    """

    channels: tuple[str, ...]
    parameters: Mapping[str, np.ndarray]
    unit_length: bool = False

    def apply(self, raw: Raw) -> Features:
        """Features of the CCDs and of the exposures, and how rare the CCDs' rarest are."""
        ccd = self.ccd(raw)
        exposure = self.exposure(raw, ccd)
        rare, numbers = {}, np.zeros((raw.num_ccds, 0), np.float32)
        for channel, rows in ccd.items():
            rarity = self.tails(channel).rarity(rows)
            rare[channel] = rarest(rarity)
            numbers = rarity if channel == "numbers" else numbers
        if self.unit_length:
            ccd = {name: of_unit_length(rows) for name, rows in ccd.items()}
            exposure = {name: of_unit_length(rows) for name, rows in exposure.items()}
        return Features(ccd, exposure, rare, numbers)

    def tails(self, channel: str) -> Tails:
        """The tails of a channel's features of CCDs, before they get unit length."""
        return Tails(self.parameters[f"tails.{channel}.start"], self.parameters[f"tails.{channel}.reach"])

    def ccd(self, raw: Raw) -> dict[str, np.ndarray]:
        """Features of the CCDs before they get unit length: channel to float32 (ccd, feature)."""
        return {channel: self._joined(channel, raw) for channel in self.channels}

    def _joined(self, channel: str, raw: Raw) -> np.ndarray:
        names = [name for name in CHANNELS[channel] if f"ccd.{name}.centre" in self.parameters]
        if not names:  # what is known is of the exposure alone
            return np.zeros((raw.num_ccds, 1), np.float32)
        return np.concatenate([self._apply(f"ccd.{name}", raw.block(name)) for name in names], axis=1)

    def exposure(self, raw: Raw, ccd: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Features of the exposures from those of their CCDs and their own blocks: float32 (exposure, feature)."""
        result = {}
        for channel in self.channels:
            summary = per_exposure(ccd[channel], raw.starts, STATISTICS[channel])
            parts = [self._apply(f"exposure.{channel}", summary)]
            parts += [self._apply(f"exposure.{name}", raw.exposure[name]) for name in self._own(channel)]
            result[channel] = np.concatenate(parts, axis=1)
        return result

    def _own(self, channel: str) -> list[str]:
        return [name for name in EXPOSURE_BLOCKS.get(channel, ()) if f"exposure.{name}.centre" in self.parameters]

    def _apply(self, name: str, values: np.ndarray) -> np.ndarray:
        centre = self.parameters[f"{name}.centre"]
        if f"{name}.scale" in self.parameters:
            return Robust(centre, self.parameters[f"{name}.scale"]).apply(values)
        return Pca(centre, self.parameters[f"{name}.components"]).apply(values)


def learn_features(
    raw: Raw, good_exposure: np.ndarray, channels: Sequence[str], pca: int, *, unit_length: bool = False
) -> FeatureMap:
    """Learn every scale and projection from labelled exposures.

    Args:
        raw: labelled exposures.
        good_exposure: bool (exposure,), good as a whole.
        channels: of CHANNELS; those whose blocks `raw` lacks are left out.
        pca: components of each embedded block.
        unit_length: neighbours by cosine.
    """
    usable = tuple(channel for channel in channels if raw.has_any(channel))
    good_ccd = np.repeat(good_exposure, raw.sizes())
    parameters: dict[str, np.ndarray] = {}
    for channel in usable:
        for name in filter(raw.has, CHANNELS[channel]):
            _learn(parameters, f"ccd.{name}", raw.block(name), good_ccd, channel, pca)
    partial = FeatureMap(usable, parameters).ccd(raw)
    for channel in usable:
        good = partial[channel][good_ccd] if good_ccd.any() else partial[channel]
        tails = Tails.fit(thin(good, TAIL_ROWS))
        parameters[f"tails.{channel}.start"], parameters[f"tails.{channel}.reach"] = tails.start, tails.reach
        summary = per_exposure(partial[channel], raw.starts, STATISTICS[channel])
        _learn(parameters, f"exposure.{channel}", summary, good_exposure, channel, 2 * pca)
        for name in EXPOSURE_BLOCKS.get(channel, ()):
            if name in raw.exposure:
                _learn(parameters, f"exposure.{name}", raw.exposure[name], good_exposure, channel, pca)
    return FeatureMap(usable, parameters, unit_length)


def _learn(
    parameters: dict[str, np.ndarray], name: str, values: np.ndarray, good: np.ndarray, channel: str, pca: int
) -> None:
    chosen = values[good] if good.any() else values
    if channel in EMBEDDINGS:
        learned = Pca.fit(chosen, values, pca)
        parameters[f"{name}.centre"], parameters[f"{name}.components"] = learned.centre, learned.components
        return
    robust = Robust.fit(np.nan_to_num(chosen), np.nan_to_num(values))
    parameters[f"{name}.centre"], parameters[f"{name}.scale"] = robust.centre, robust.scale
