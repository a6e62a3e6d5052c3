"""The shard stage: every exposure read once, one file per fixed list of exposures.

Tasks take whole shards, threads of a task take exposures; what ends on disk depends on neither. A shard gets its name
when it is complete, so two runs in one folder, or a killed one and its successor, do work twice at worst.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.parts import first_own_shard, shards_of_manifest, stored_shards
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.instruments.base import Instrument
from hpcqa.observe import Tracker, one_of_many
from hpcqa.parallel.ranks import Ranks, usable_cores
from hpcqa.pixels import failures
from hpcqa.pixels.exposures import CcdResult, CcdRow, read_exposure, relative_backgrounds
from hpcqa.pixels.measure import NAMES, NUMBERS
from hpcqa.pixels.shardindex import Notes

logger = logging.getLogger(__name__)

COLUMNS = (
    "expnum", "ccdnum", "ccdname", "camera", "band", "mjd_obs", "exptime", "zpt", "ccdzpt", "plver", "plprocid",
    "image_path", "image_hdu",
)  # fmt: skip
SHARDS_AT_ONCE = 64  # whose manifest rows are held in memory


@dataclass(frozen=True)
class ShardPlan:
    """The CCDs of one shard: exposures in ascending order, CCDs in ascending order in each."""

    number: int
    exposures: tuple[tuple[CcdRow, ...], ...]

    @property
    def num_ccds(self) -> int:
        return sum(len(rows) for rows in self.exposures)


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write this task's shards; see the module.

    Raises:
        DataError: no manifest, or a larger share of CCDs failed than shard.max_failed.
        EnvironmentProblem: the disk refuses.
    """
    manifest = folder.need("manifest", "manifest")
    parents = store.digests(folder, [manifest])
    provenance = Provenance(stage_digest(config, "shard"), parents, instrument=config.instrument.name)
    numbers = shard_numbers(manifest, first_own_shard(folder) if config.survey.update else 0)
    numbers = stored_shards(config, numbers)
    mine = [numbers[place] for place in ranks.share(len(numbers))]
    store.remove_unfinished(folder.output("shards"), "shard", shared=True)  # other ranks write there
    tally = failures.Tally()
    missing = []
    for number in mine:
        done = _current(folder, shard_name(number), provenance, config.shard.retry_failed)
        if done is None:
            missing.append(number)
        else:
            tally.add_failed(done)
    if tally.seen:
        logger.info("shard: %d of %d shards are there already", len(mine) - len(missing), len(mine))
    notes = Notes(folder.output("shards"), min(missing, default=0))
    with Tracker("shard", total=len(missing), unit="shards", shown=ranks.is_first) as ticker:
        for start in range(0, len(missing), SHARDS_AT_ONCE):
            plans = plan_shards(manifest, missing[start : start + SHARDS_AT_ONCE])
            for path, found in write_shards(plans, folder.output("shards"), provenance, config):
                tally.add(found)
                notes.add(path)
                ticker.advance()
            notes.write()
    report(tally, config)


def report(tally: failures.Tally, config: Config) -> None:
    """Say what failed.

    Raises:
        DataError: a larger share of the CCDs than shard.max_failed.
    """
    (logger.warning if tally.num_failed else logger.info)("shard: %s", tally.in_words())
    if tally.bad_masks:
        logger.warning("shard: the masks of %d CCDs were not used, for the reasons above", tally.bad_masks)
    if tally.wrong_sums:
        logger.warning(
            "shard: the data of %d CCDs, or of their masks, contradict their DATASUM and were used all the same; their "
            "wrong_sum is True in the shards. With shard.checksums=fail they have no views",
            tally.wrong_sums,
        )
    if tally.no_mask:
        logger.info("shard: %d CCDs have no mask file beside their image", tally.no_mask)
    if tally.seen and tally.num_failed / tally.seen > config.shard.max_failed:
        raise DataError(
            f"{tally.in_words()}; that is more than shard.max_failed={config.shard.max_failed:g}. Check the images "
            "(survey.images, permissions), or allow it with a larger shard.max_failed."
        )


def _current(folder: RunFolder, name: str, provenance: Provenance, retry_failed: bool) -> np.ndarray | None:
    """The failures of a shard that is there and made from the same; None if it is not."""
    path = folder.output("shards") / name
    digest, parents = provenance.config_digest, provenance.parents
    if path.exists() and store.is_current(path, SHARD, config_digest=digest, parents=parents):
        with store.open_arrays(path, SHARD) as shard:
            failed = shard.read("failed")
        if not (retry_failed and failed.any()):
            return failed
    return None


# The plan -------------------------------------------------------------------------------------------------------------


def shard_numbers(manifest: Path, first: int = 0) -> list[int]:
    """The numbers, from `first` on, of all shards that the manifest names, ascending."""
    return [number for number in shards_of_manifest(manifest).tolist() if number >= first]


def plan_shards(manifest: Path, numbers: Sequence[int]) -> list[ShardPlan]:
    """What some shards hold; only their rows of the manifest are read."""
    table = pq.read_table(manifest, columns=[*COLUMNS, "shard"], filters=[("shard", "in", list(numbers))])
    columns = {name: table[name].to_pylist() for name in (*COLUMNS, "shard")}
    by_shard: dict[int, dict[int, list[CcdRow]]] = {number: {} for number in numbers}
    for place, number in enumerate(columns["shard"]):
        values: dict[str, Any] = {name: _plain(columns[name][place]) for name in COLUMNS}
        row = CcdRow(**values)
        by_shard[number].setdefault(row.expnum, []).append(row)
    return [
        ShardPlan(
            number,
            tuple(tuple(sorted(exposures[key], key=lambda row: row.ccdnum)) for key in sorted(exposures)),
        )
        for number, exposures in by_shard.items()
    ]


def _plain(value: object) -> object:
    return np.nan if value is None else value


def instruments_of(plans: Sequence[ShardPlan], config: Config) -> dict[str, Instrument]:
    """The camera module of every camera that the rows name; the configured one for cameras without a module."""
    default = instruments.get(config.instrument.name)
    cameras = {row.camera for plan in plans for rows in plan.exposures for row in rows}
    return {camera: instruments.for_camera(camera) or default for camera in sorted(cameras)}


# Writing --------------------------------------------------------------------------------------------------------------


class ShardFile:
    """One shard being written: exposures come in any order, the file is finished with the last of them."""

    def __init__(self, plan: ShardPlan, path: Path, provenance: Provenance, config: Config) -> None:
        views = config.views
        lengths = {
            "ccd": plan.num_ccds,
            "exposure": len(plan.exposures),
            "number": len(NAMES),
            "cy": views.context[0],
            "cx": views.context[1],
            "by": views.background[0],
            "bx": views.background[1],
            "dy": views.detail[0],
            "dx": views.detail[1],
        }
        attributes = {
            "number_names": list(NAMES),
            "number_units": [unit for _, unit, _ in NUMBERS],
            "number_docs": [doc for _, _, doc in NUMBERS],
            "asinh_softening": views.asinh_softening,
            "stamp": views.stamp,
        }
        self.plan, self.path = plan, path
        self.tally = failures.Tally()
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in plan.exposures])]).astype(int)
        self._left, self._lengths = len(plan.exposures), lengths
        self._writer = store.ArrayWriter(path, SHARD, lengths=lengths, provenance=provenance, attributes=attributes)
        self._writer.__enter__()

    def write(self, place: int, results: Sequence[CcdResult]) -> bool:
        """Write exposure number `place` of the plan; True if the shard is complete now."""
        rows = self.plan.exposures[place]
        where = slice(int(self._starts[place]), int(self._starts[place + 1]))
        for name, values in self._columns(rows, results).items():
            self._writer.write(name, where, values)
        backgrounds = relative_backgrounds(results, (self._lengths["by"], self._lengths["bx"]))
        self._writer.write("background", where, backgrounds.maps)
        self._writer.write("background_noise", where, backgrounds.noise)
        one = slice(place, place + 1)
        self._writer.write("exposure", one, np.array([rows[0].expnum], np.int64))
        self._writer.write("exposure_band", one, np.array([rows[0].band], dtype=object))
        self._writer.write("exposure_sky", one, np.array([backgrounds.sky], np.float32))
        self.tally.add(tally_of(results))
        self._left -= 1
        return self._left == 0

    def _columns(self, rows: Sequence[CcdRow], results: Sequence[CcdResult]) -> dict[str, np.ndarray]:
        lengths = self._lengths
        context = np.zeros((len(rows), lengths["cy"], lengths["cx"]), np.float16)
        detail = np.zeros((len(rows), lengths["dy"], lengths["dx"]), np.float16)
        numbers = np.full((len(rows), lengths["number"]), np.nan, np.float32)
        bins = np.zeros((2, len(rows)), np.int32)
        for place, result in enumerate(results):
            if result.views is not None:
                context[place], detail[place] = result.views.context, result.views.detail
                numbers[place] = result.views.numbers
                bins[:, place] = result.views.context_bin, result.views.background_bin
        return {
            "expnum": np.array([row.expnum for row in rows], np.int64),
            "ccdnum": np.array([row.ccdnum for row in rows], np.int32),
            "failed": np.array([result.failed for result in results], np.int64),
            "wrong_sum": np.array([bool(result.doubt) for result in results]),
            "bin": bins[0],
            "background_bin": bins[1],
            "context": context,
            "detail": detail,
            "numbers": numbers,
        }

    def close(self, error: BaseException | None = None) -> None:
        """Finish the file, or throw it away if there is an error."""
        self._writer.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def num_workers(config: Config) -> int:
    """Reading threads of this task, whose ranks share a node's cores."""
    return config.shard.workers or usable_cores()


def write_shards(
    plans: Sequence[ShardPlan], shards: Path, provenance: Provenance, config: Config
) -> Iterator[tuple[Path, failures.Tally]]:
    """Read the exposures of some shards with threads and write each shard when its last exposure is in.

    Yields:
        The path of each shard, as they are finished, and what went wrong with its CCDs.
    """
    cameras = instruments_of(plans, config)
    jobs = iter([(plan, place) for plan in plans for place in range(len(plan.exposures))])
    open_files: dict[int, ShardFile] = {}
    pool = ThreadPoolExecutor(num_workers(config), thread_name_prefix="shard")
    pending: dict[Future[list[CcdResult]], tuple[ShardPlan, int]] = {}
    traces: set[str] = set()
    try:
        while _top_up(pool, jobs, pending, cameras, config):
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                plan, place = pending.pop(future)
                results = future.result()
                list_problems(plan.exposures[place], results, traces)
                if plan.number not in open_files:
                    path = shards / shard_name(plan.number)
                    open_files[plan.number] = ShardFile(plan, path, provenance, config)
                if open_files[plan.number].write(place, results):
                    shard = open_files.pop(plan.number)
                    shard.close()
                    yield shard.path, shard.tally
    except BaseException as error:
        for shard in open_files.values():
            shard.close(error)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _top_up(
    pool: ThreadPoolExecutor,
    jobs: Iterator[tuple[ShardPlan, int]],
    pending: dict[Future[list[CcdResult]], tuple[ShardPlan, int]],
    cameras: Mapping[str, Instrument],
    config: Config,
) -> bool:
    """Keep a few exposures more under way than there are threads; False when nothing is left."""
    while len(pending) < num_workers(config) + 2:
        job = next(jobs, None)
        if job is None:
            break
        plan, place = job
        pending[pool.submit(read_exposure, plan.exposures[place], cameras, config)] = job
    return bool(pending)


def tally_of(results: Sequence[CcdResult]) -> failures.Tally:
    """What went wrong with the CCDs of an exposure."""
    tally = failures.Tally(
        no_mask=sum(result.mask_missing for result in results),
        bad_masks=sum(bool(result.mask_problem) for result in results),
        wrong_sums=sum(bool(result.doubt) for result in results),
    )
    tally.add_failed(np.array([result.failed for result in results], np.int64))
    return tally


def list_problems(rows: Sequence[CcdRow], results: Sequence[CcdResult], traces: set[str]) -> None:
    """Log what failed, which masks were of no use and what contradicts its sum.

    One line for each reason, in the words of its first CCD.

    Args:
        rows, results: the CCDs of an exposure.
        traces: where hpcqa failed before; what is new is added, and logged in full.
    """
    said: dict[str, list[tuple[CcdRow, str]]] = {}
    for row, result in zip(rows, results, strict=True):
        if result.failed:
            said.setdefault(failures.in_words(result.failed), []).append((row, result.said))
        elif result.mask_problem:
            said.setdefault("masks of no use", []).append((row, f"the mask is not used: {result.mask_problem}"))
        if result.doubt:
            said.setdefault("wrong sums", []).append((row, result.doubt))
        # The last line has the values, which differ from CCD to CCD.
        place = result.trace.strip().rpartition("\n")[0]
        if place and place not in traces:
            traces.add(place)
            logger.error("%s\n%s", result.said, result.trace, extra=one_of_many("traces"))
    for kind, problems in said.items():
        (row, words), extra = problems[0], one_of_many(kind)
        logger.warning("expnum %d, %d CCDs from %s: %s", row.expnum, len(problems), row.ccdname, words, extra=extra)
