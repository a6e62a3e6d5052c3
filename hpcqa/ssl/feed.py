"""Which images a step sees, and their bytes: a pure function of the step, read ahead by one thread.

Every view goes through the survey in an order of its own, epoch after epoch; a step takes the next so many images and
deals them out to the ranks. The position in the data is therefore the step alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hpcqa.config import Config
from hpcqa.config.together import check_mix
from hpcqa.errors import ConfigError, DataError, HpcqaError
from hpcqa.pixels.order import Order, dealt
from hpcqa.streams import stream, stream_seed

logger = logging.getLogger(__name__)

STEPS_AHEAD = 32  # steps in which an order's window is used up; their bytes are asked for together


class Cutouts(Protocol):
    """What training needs of the shards; pixels.dataset.ShardSet has it."""

    expnum: np.ndarray
    ccdnum: np.ndarray
    failed: np.ndarray
    exposures: np.ndarray

    @property
    def number_names(self) -> Sequence[str]: ...

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """float32 (B, F)."""

    def batch(self, view: str, rows: np.ndarray) -> np.ndarray:
        """float16 (B, H, W)."""

    def focal_plane(self, exposure_rows: np.ndarray) -> np.ndarray:
        """float16 (B, H, W)."""

    def will_need(self, view: str, rows: np.ndarray) -> None:
        """Says which rows are read soon."""


@dataclass(frozen=True)
class ViewImages:
    """One rank's images of one view, in one piece of a step.

    Attributes:
        total: images of the step, of all ranks and pieces.
        of_ranks: images of each rank in this piece.
        partners: the images that second crops come from; None: the same ones.
    """

    total: int
    of_ranks: list[int]
    expnum: np.ndarray
    ccdnum: np.ndarray
    images: np.ndarray
    partners: np.ndarray | None
    numbers: np.ndarray | None


@dataclass(frozen=True)
class StepImages:
    """The pieces of a step in which a rank works its share through, or why they could not be read."""

    step: int
    pieces: list[dict[str, ViewImages]]
    problem: HpcqaError | None = None

    def keys(self) -> list[dict[str, object]]:
        """The (expnum, ccdnum) of all images by view, for a report of a bad batch."""
        return [
            {"view": view, "expnum": part.expnum.tolist(), "ccdnum": part.ccdnum.tolist()}
            for piece in self.pieces
            for view, part in piece.items()
        ]


class NumberScale:
    """Scales the measured numbers to order 1 for prediction: asinh of the deviation from the median over the MAD."""

    def __init__(self, numbers: np.ndarray) -> None:
        known = np.where(np.isfinite(numbers), numbers, np.nan).astype(np.float64)
        self.used = np.isfinite(known).sum(0) >= 0.1 * max(1, len(known))
        self.centre = np.nan_to_num(_nanmedian(known))
        scatter = 1.4826 * np.nan_to_num(_nanmedian(np.abs(known - self.centre)))
        self.scale = np.where(scatter > 0, scatter, 1.0)

    def apply(self, numbers: np.ndarray) -> np.ndarray:
        """float32 (B, F); NaN where unknown or hardly ever known."""
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.arcsinh((numbers - self.centre) / self.scale)
        return np.where(np.isfinite(scaled) & self.used, scaled, np.nan).astype(np.float32)


def _nanmedian(values: np.ndarray) -> np.ndarray:
    empty = ~np.isfinite(values).any(0)
    filled = np.where(empty, 0.0, values)
    return np.nanmedian(filled, axis=0) if len(values) else np.zeros(values.shape[1])


class Feed:
    """Reads the images of each step for one rank."""

    def __init__(self, cutouts: Cutouts, config: Config, *, rank: int, world_size: int) -> None:
        self.cutouts, self.config = cutouts, config
        self.rank, self.world_size = rank, world_size
        self.good = np.flatnonzero(np.asarray(cutouts.failed) == 0)
        self.counts = self._counts()
        self._orders = {view: self._order(view, count) for view, count in self.counts.items()}
        self._sibling = _siblings(np.asarray(cutouts.expnum)[self.good])
        self.scale = NumberScale(cutouts.numbers(self._some(self.good, 20000)))

    def _counts(self) -> dict[str, int]:
        ssl, counts = self.config.ssl, {}
        check_mix(ssl)
        for view, share in zip(ssl.views, ssl.mix, strict=False):
            num = len(self.cutouts.exposures) if view == "focal_plane" else len(self.good)
            counts[view] = max(2, round(share * ssl.batch))
            if counts[view] > num:
                logger.warning(
                    "ssl.batch: %d images of %s a step, but there are %d: taking these.", counts[view], view, num
                )
                counts[view] = num
            if counts[view] < self.world_size * ssl.accumulate:
                raise ConfigError(
                    f"ssl.batch={ssl.batch}: {counts[view]} images of {view} a step do not go round "
                    f"{self.world_size} ranks and ssl.accumulate={ssl.accumulate}; raise ssl.batch or its ssl.mix."
                )
            if view in ssl.crop_views and ssl.koleo_weight and counts[view] < 2 * ssl.accumulate:
                raise ConfigError(
                    f"ssl.batch={ssl.batch}: {counts[view]} images of {view} a step in ssl.accumulate={ssl.accumulate} "
                    "pieces, but KoLeo needs two in each; raise ssl.batch or set ssl.koleo_weight=0."
                )
        return counts

    def _order(self, view: str, count: int) -> Order:
        """The order of a view's images; exposures, which are long pieces by themselves, are shuffled one by one."""
        seed, piece = stream_seed(self.config.seed, "order", view), max(1, count // self.config.ssl.accumulate)
        if view == "focal_plane":
            return Order(len(self.cutouts.exposures), seed, piece, block=1)
        return Order(len(self.good), seed, piece)

    @staticmethod
    def _some(rows: np.ndarray, count: int) -> np.ndarray:
        return rows if len(rows) <= count else np.sort(stream(0, "some").choice(rows, count, replace=False))

    def bank(self, view: str, count: int) -> np.ndarray:
        """A sample of the survey's images of a view: float32 (M, H, W)."""
        if view == "focal_plane":
            rows = self._some(np.arange(len(self.cutouts.exposures)), count)
            images = self.cutouts.focal_plane(rows)
        else:
            images = self.cutouts.batch(view, self._some(self.good, count))
        return np.nan_to_num(np.asarray(images, np.float32))

    def load(self, step: int) -> StepImages:
        """This rank's images of a step; a damaged shard is told, not raised, so that all ranks end together."""
        num_pieces = self.config.ssl.accumulate
        try:
            pieces = [self._piece(step, number) for number in range(num_pieces)]
        except DataError as problem:
            return StepImages(step, [], problem)
        return StepImages(step, pieces)

    def _ask_ahead(self, start: int, step: int) -> None:
        """Say what the next steps read, at their turn: a disk is fast in long pieces, and a step's are short."""
        if (step - start) % STEPS_AHEAD:
            return
        first = step if step == start else step + STEPS_AHEAD
        for view, count in self.counts.items():
            if view != "focal_plane":
                steps = range(first, step + 2 * STEPS_AHEAD)
                places_ = [self._places(view, count, one, piece) for one in steps
                           for piece in range(self.config.ssl.accumulate)]  # fmt: skip
                self.cutouts.will_need(view, self.good[np.concatenate(places_)])

    def _places(self, view: str, count: int, step: int, number: int) -> np.ndarray:
        """This rank's places in a view's order, of one piece of a step."""
        first, last = self._bounds(count, number)
        position = step * count + first
        return self._orders[view].rows(position, last - first, rank=self.rank, world_size=self.world_size)

    def _bounds(self, count: int, number: int) -> tuple[int, int]:
        """Where a piece begins and ends among the images of a step."""
        return dealt(count, number, self.config.ssl.accumulate)

    def _of_ranks(self, count: int, number: int) -> list[int]:
        """How many images of a piece each rank gets."""
        begin, end = self._bounds(count, number)
        edges = (dealt(end - begin, rank, self.world_size) for rank in range(self.world_size))
        return [last - first for first, last in edges]

    def _piece(self, step: int, number: int) -> dict[str, ViewImages]:
        result = {}
        for view, count in self.counts.items():
            mine, of_ranks = self._places(view, count, step, number), self._of_ranks(count, number)
            result[view] = (
                self._exposures(mine, count, of_ranks)
                if view == "focal_plane"
                else self._ccds(view, mine, count, of_ranks, step)
            )
        return result

    def _exposures(self, places_: np.ndarray, total: int, of_ranks: list[int]) -> ViewImages:
        expnum = np.asarray(self.cutouts.exposures)[places_]
        images = self.cutouts.focal_plane(places_)
        return ViewImages(total, of_ranks, expnum, np.full_like(expnum, -1), images, None, None)

    def _ccds(self, view: str, places_: np.ndarray, total: int, of_ranks: list[int], step: int) -> ViewImages:
        rows, ssl = self.good[places_], self.config.ssl
        partners = None
        if ssl.positives == "exposure" and view in ssl.crop_views:
            partners = self.cutouts.batch(view, self.good[self._partner(places_, step)])
        return ViewImages(
            total=total,
            of_ranks=of_ranks,
            expnum=np.asarray(self.cutouts.expnum)[rows],
            ccdnum=np.asarray(self.cutouts.ccdnum)[rows],
            images=self.cutouts.batch(view, rows),
            partners=partners,
            numbers=self.scale.apply(self.cutouts.numbers(rows)) if ssl.number_weight else None,
        )

    def _partner(self, places_: np.ndarray, step: int) -> np.ndarray:
        """Another CCD of each one's exposure, by a rule that depends on the step; itself where it is alone."""
        order, place, first, size = self._sibling
        start, length = first[places_], size[places_]
        turn = 1 + step % np.maximum(length - 1, 1)
        partner: np.ndarray = order[start + (place[places_] - start + turn) % length]
        return partner

    def stream(self, start: int, stop: int) -> Iterator[StepImages]:
        """The images of steps start to stop, the next step's read while this one is worked on."""

        def load(step: int) -> StepImages:
            self._ask_ahead(start, step)
            return self.load(step)

        with ThreadPoolExecutor(1) as pool:
            ahead: Future[StepImages] | None = pool.submit(load, start) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None
                images = ahead.result()
                ahead = pool.submit(load, step + 1) if step + 1 < stop else None
                yield images


def _siblings(expnum: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each CCD: `order` by exposure, its place there, where its exposure begins, how many CCDs that has."""
    order = np.argsort(expnum, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    _, inverse, size = np.unique(expnum, return_inverse=True, return_counts=True)
    begin = np.cumsum(size) - size
    return order, place, begin[inverse], size[inverse]
