"""The simulate stage: a survey with known defects in RUN/survey/, made exposure by exposure, resumed where it stopped.

survey.json, written first without and last with its counts, says which settings the folder belongs to.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hpcqa import __version__
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import read_json, remove_unfinished, write_json
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import ConfigError, EnvironmentProblem
from hpcqa.instruments import get
from hpcqa.observe import Tracker
from hpcqa.parallel.ranks import Ranks, usable_cores
from hpcqa.reasons import REASONS

logger = logging.getLogger(__name__)

MARKER = "survey.json"
# Raised whenever the same settings no longer give the same pixels.
SIMULATOR_VERSION = 1
# File names tell exposures apart by the second.
MOST_PER_NIGHT = 5000


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Make the survey, or what is missing of it.

    Raises:
        ConfigError: the folder holds a survey of other settings, or simulate.novel names no reason.
        EnvironmentProblem: GalSim is not installed, the disk refuses, or a worker was killed.
    """
    survey = folder.output("survey")
    _check_settings(config)
    if _is_finished(config, survey):
        logger.info("simulate: %s is current", survey)
        return
    if importlib.util.find_spec("galsim") is None:
        raise EnvironmentProblem("simulate needs GalSim, which is not installed: pip install 'hpcqa[simulate]'.")
    # GalSim is an extra: nothing that imports it may be imported above.
    from hpcqa.simulate import labels
    from hpcqa.simulate.plan import plan_survey

    _write_marker(config, survey, {"finished": False})
    plans = plan_survey(config)
    _make_missing(config, survey, plans)
    num_ccds = _write_table(config, survey, plans)
    num_labelled = labels.write_labels(survey / "labels", config, plans)
    labels.write_truth(survey / "truth.csv", plans)
    for place in survey.glob("**/"):
        remove_unfinished(place, "simulate")
    counts = {
        "finished": True,
        "exposures": len(plans),
        "bad": sum(plan.bad for plan in plans),
        "ccds": num_ccds,
        "labelled": num_labelled,
        "novel": sorted(config.simulate.novel),
    }
    _write_marker(config, survey, counts)
    logger.info("simulate: %d exposures, %d bad, %d labelled, in %s", *list(counts.values())[1:3], num_labelled, survey)


def _check_settings(config: Config) -> None:
    """ConfigError for what single ranges cannot say."""
    settings = config.simulate
    unknown = sorted(set(settings.novel) - set(REASONS))
    if unknown:
        raise ConfigError(f"simulate.novel={unknown[0]}: no such reason; expected some of {', '.join(REASONS)}.")
    try:
        dt.date.fromisoformat(settings.start)
    except ValueError:
        raise ConfigError(f"simulate.start={settings.start}: expected a date such as 2025-01-05.") from None
    if settings.exposures > MOST_PER_NIGHT * settings.nights:
        raise ConfigError(
            f"simulate.nights={settings.nights}: too few for {settings.exposures} exposures; "
            f"expected at least {-(-settings.exposures // MOST_PER_NIGHT)}."
        )


def _is_finished(config: Config, survey: Path) -> bool:
    """Whether the survey is there in full.

    Raises:
        ConfigError: what is there was made with other settings.
    """
    marker = survey / MARKER
    if not marker.exists():
        return False
    found = read_json(marker)
    expected = {"config": stage_digest(config, "simulate"), "simulator": SIMULATOR_VERSION}
    if any(found.get(name) != value for name, value in expected.items()):
        raise ConfigError(
            f"{survey}: holds a survey that was simulated with other settings (seed, instrument or simulate.*) or by "
            f"another version; choose another run folder or remove {survey}."
        )
    return bool(found.get("finished"))


def _write_marker(config: Config, survey: Path, counts: dict[str, Any]) -> None:
    said = {"config": stage_digest(config, "simulate"), "simulator": SIMULATOR_VERSION, "code_version": __version__}
    write_json(survey / MARKER, {**said, **counts})


def _make_missing(config: Config, survey: Path, plans: Sequence[Any]) -> None:
    from hpcqa.simulate.exposure import is_complete

    camera = get(config.instrument.name)
    missing = [plan for plan in plans if not is_complete(survey, plan, camera.name)]
    with Tracker("simulate", total=len(plans), unit="exposures") as ticker:
        ticker.advance(len(plans) - len(missing))
        for _ in _spread(config, survey, missing):
            ticker.advance()


def _spread(config: Config, survey: Path, plans: Sequence[Any]) -> Iterator[None]:
    """Make exposures in as many processes as there are cores; yields once for each."""
    from hpcqa.simulate.exposure import make_exposure

    workers = config.simulate.workers or usable_cores()
    processes = min(workers, len(plans))
    if processes <= 1:
        for plan in plans:
            make_exposure(config, survey, plan, threads=workers)
            yield
        return
    # Spawned, not forked: the caller may have threads of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        futures: list[Future[None]] = [pool.submit(make_exposure, config, survey, plan) for plan in plans]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool:
            raise EnvironmentProblem(
                f"simulate: one of {processes} worker processes was killed, perhaps for memory; "
                "run again with a smaller simulate.workers."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import galsim

    galsim.set_omp_threads(1)


def _write_table(config: Config, survey: Path, plans: Sequence[Any]) -> int:
    from hpcqa.simulate import tables
    from hpcqa.simulate.exposure import read_facts
    from hpcqa.simulate.geometry import FocalPlane

    plane = FocalPlane(get(config.instrument.name))
    rows = [row for plan in plans for row in tables.survey_rows(config.seed, plane, plan, read_facts(survey, plan))]
    tables.write_survey_table(survey / f"survey-ccds-{plane.instrument.name}.fits.gz", rows)
    return len(rows)
