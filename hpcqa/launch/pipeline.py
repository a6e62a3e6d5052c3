"""The flow in order: what `hpcqa run` and `hpcqa STAGE` do once the configuration is frozen."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.store import read_json
from hpcqa.config import Config
from hpcqa.config.frozen import STAGE_SECTIONS, load, refuse_other_settings, settings_of
from hpcqa.errors import ConfigError, HpcqaError
from hpcqa.launch import campaign, progress
from hpcqa.launch.submit import run_stage
from hpcqa.stages import STAGES, Stage
from hpcqa.stages import stage as stage_named

logger = logging.getLogger(__name__)

# Other lists are other labels, and a base run lends none that were made from others.
LISTS = ("survey.labels", "survey.truth")


@dataclass
class Outcome:
    """What came of it: sentences for the person who waits, errors that did not stop the rest, a sweep's objective."""

    sentences: list[str] = field(default_factory=list)
    errors: list[HpcqaError] = field(default_factory=list)
    objective: float | None = None


def planned(config: Config) -> list[Stage]:
    """The stages of a run: without `simulate` for a real survey, without the network for one that takes it over."""
    left_out = set() if config.survey.simulated else {"simulate"}
    if config.survey.update:
        left_out |= {"calibrate", "pretrain"}
    return [stage for stage in STAGES if stage.name not in left_out]


def refuse_no_survey(config: Config, name: str) -> None:
    """ConfigError if a command has nothing to read or to go on from; asked before anything is written."""
    survey = config.survey
    if survey.update:
        refuse_other_settings(config)
    if name in ("run", "manifest") and not (survey.simulated or survey.tables or survey.images):
        raise ConfigError(
            "survey.tables=[]: no survey; name tables (survey.tables=[...]), image directories (survey.images=[...]), "
            "or simulate one with survey=simulated."
        )


def refuse_impossible(config: Config, name: str) -> None:
    """Stop before anything is written, and so remembered, if Slurm could not run what a command asks for.

    Raises:
        ConfigError: a stage asks for more than the cluster has.
        EnvironmentProblem: there is no Slurm, or it does not answer.
    """
    if config.launch.kind == "slurm":
        campaign.check(config, planned(config) if name == "run" else [stage_named(name)])


def run_all(config: Config, folder: RunFolder) -> Outcome:
    """Every stage in order; each skips what is done. Through Slurm, what is missing is submitted as a chain of jobs.

    Raises:
        HpcqaError: of the first stage that fails for good.
    """
    outcome = Outcome()
    lent = lenders(config, folder)
    for name, base in lent.items():
        logger.info("%s: from %s", name, base)
    own = [stage for stage in planned(config) if stage.name not in lent]
    if config.launch.kind == "slurm":
        outcome.sentences += campaign.launch(config, folder, own, whole_flow=True)
        if is_over(config):
            _conclude(config, folder, outcome)
        return outcome
    for stage in own:
        _run(config, folder, stage, outcome)
    _conclude(config, folder, outcome)
    return outcome


def run_one(config: Config, folder: RunFolder, stage: Stage) -> Outcome:
    """One stage on what the stages before it wrote."""
    outcome = Outcome()
    if config.launch.kind == "slurm":
        outcome.sentences += campaign.launch(config, folder, [stage], whole_flow=False)
    else:
        _run(config, folder, stage, outcome)
    if config.launch.kind == "slurm" and not is_over(config):
        return outcome
    outcome.objective = objective(folder, stage.name)
    outcome.sentences += [f"{stage.name}: {folder.output(artifact)}" for artifact in stage.writes]
    return outcome


def is_over(config: Config) -> bool:
    """Whether submitted jobs have ended when the command that submitted them goes on."""
    return config.launch.wait and not config.launch.dry_run


def lenders(config: Config, folder: RunFolder) -> dict[str, Path]:
    """The stages that a base run has done with these very settings, on nothing that this run makes anew.

    Returns:
        The base run for each such stage; none for an update, which makes everything its own.
    """
    lent: dict[str, Path] = {}
    for base in () if config.survey.update else folder.bases:
        other, lender = load(base / NAMES["run"])[0], RunFolder(base)
        shards = progress.own_shards(other, lender)
        for stage in planned(config):
            reads_own = any(folder.output(artifact).exists() for artifact in stage.reads)
            has_own = any(folder.output(artifact).exists() for artifact in stage.writes)
            there = progress.progress_of(other, lender, stage, shards).is_complete
            same = all(
                settings_of(other, (*STAGE_SECTIONS[name], *LISTS))
                == settings_of(config, (*STAGE_SECTIONS[name], *LISTS))
                for name in upstream(stage)
            )
            if there and same and not reads_own and not has_own:
                lent.setdefault(stage.name, base)
    return lent


def upstream(stage: Stage) -> set[str]:
    """The names of a stage and of all stages whose artifacts reach it."""
    writer = {artifact: other for other in STAGES for artifact in other.writes}
    names = {stage.name}
    for artifact in stage.reads:
        names |= upstream(writer[artifact])
    return names


def _run(config: Config, folder: RunFolder, stage: Stage, outcome: Outcome) -> None:
    started = time.monotonic()
    logger.info("%s: started", stage.name)
    try:
        run_stage(config, folder, stage)
    except HpcqaError as error:
        if not error.goes_on:
            raise
        outcome.errors.append(error)
    logger.info("%s: finished in %.1f s", stage.name, time.monotonic() - started)


def _conclude(config: Config, folder: RunFolder, outcome: Outcome) -> None:
    from hpcqa.report.compare import changes_since_base

    report = (folder.find("report") or folder.output("report")) / "index.html"
    decisions = folder.find("decisions") or folder.output("decisions")
    outcome.objective = objective(folder, "evaluate")
    changes = changes_since_base(config, folder)
    outcome.sentences += [changes.sentence()] if changes is not None else []
    outcome.sentences += [f"decisions: {decisions}", f"report: {report}"]


def objective(folder: RunFolder, name: str) -> float | None:
    """What a sweep makes large: average precision once it is evaluated, kNN's own after training; else None."""
    if name == "pretrain":
        values = [entry.get("knn_ap") for entry in progress.last_entries(folder.output("metrics"))]
        known = [float(value) for value in values if isinstance(value, (int, float))]
        return known[-1] if known else None
    evaluation = folder.find("evaluation") if name == "evaluate" else None
    if evaluation is None:
        return None
    value = read_json(evaluation).get("figures", {}).get("average_precision", {}).get("value")
    return None if value is None else float(value)
