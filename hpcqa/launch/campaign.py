"""The flow as Slurm jobs that wait for each other: submit what is missing, watch it, end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config, ResourcesConfig
from hpcqa.errors import ConfigError, EnvironmentProblem
from hpcqa.launch import batch, failures, jobs, progress, queue
from hpcqa.launch.queue import JobState
from hpcqa.launch.submit import batch_text, submit
from hpcqa.observe import Tracker
from hpcqa.stages import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What to do about one stage: submit it, or wait for the job that is queued for it already."""

    stage: Stage
    action: Literal["submit", "queued"]
    job: str = ""


def plan(wanted: Sequence[Stage], known: Mapping[str, Sequence[JobState]]) -> tuple[list[Step], list[str]]:
    """What to submit and what to cancel first.

    A job that waits for one that failed is cancelled and submitted anew; a job that waits or runs is kept, unless
    something before it is submitted now.

    Args:
        wanted: stages with something to do, in order.
        known: live tasks of this run by stage.

    Returns:
        The steps in order and the ids of jobs to cancel.
    """
    steps: list[Step] = []
    doomed: list[str] = []
    anew = False
    for stage in wanted:
        tasks = known.get(stage.name, ())
        running = [task for task in tasks if not task.is_held]
        waits_behind = anew and all(task.state == "PENDING" for task in tasks)
        if running and not waits_behind:
            steps.append(Step(stage, "queued", running[-1].job))
            continue
        doomed += sorted({task.job for task in tasks})
        steps.append(Step(stage, "submit"))
        anew = True
    return steps, doomed


def launch(config: Config, folder: RunFolder, stages: Sequence[Stage], *, whole_flow: bool) -> list[str]:
    """Submit what is missing of some stages, each after the one before; the caller holds the run folder.

    Args:
        whole_flow: skip stages with nothing to do; a single stage is always submitted.

    Returns:
        Sentences for the person who submitted.

    Raises:
        ConfigError: a stage asks for more than the cluster has; nothing is submitted.
        EnvironmentProblem: there is no Slurm, it refuses, or a single stage is queued already.
    """
    check(config, stages)
    wanted = progress.missing(config, folder, stages) if whole_flow else list(stages)
    if config.launch.dry_run:
        return dry_run(config, folder, wanted)
    known = jobs.live(folder.path)
    if not whole_flow:
        _refuse_queued(folder, known, wanted)
    steps, doomed = plan(wanted, known)
    queue.cancel(doomed)
    sentences = _submit(config, folder, steps)
    if not steps:
        return [f"{folder.path}: nothing to submit, every stage is done."]
    if config.launch.wait:
        wait(folder, [stage.name for stage in wanted], every_s=config.launch.poll)
        return sentences
    return [*sentences, f"`hpcqa status {folder.path}` shows how far it is."]


def check(config: Config, stages: Sequence[Stage]) -> None:
    """Compare what stages ask for with what the configuration and Slurm say of the cluster; a dry run asks no Slurm.

    Raises:
        ConfigError: a stage asks for more than the cluster has.
        EnvironmentProblem: there is no Slurm, or it does not answer.
    """
    for stage in stages:
        batch.check(config, stage)
    if not config.launch.dry_run:
        queue.need_slurm()
        check_partitions(config, stages, queue.partitions())


def _submit(config: Config, folder: RunFolder, steps: Sequence[Step]) -> list[str]:
    sentences, after = [], ""
    for step in steps:
        if step.action == "queued":
            sentences.append(f"{step.stage.name}: job {step.job} is queued already")
            after = step.job
            continue
        submission = submit(config, folder, step.stage, after=[after] if after else [])
        size = f", an array of {submission.parts}" if submission.parts > 1 else ""
        sentences.append(f"{step.stage.name}: job {submission.job}{size}{f', after {after}' if after else ''}")
        after = submission.job
    return sentences


def dry_run(config: Config, folder: RunFolder, wanted: Sequence[Stage]) -> list[str]:
    """The batch files as they would be submitted; ids of jobs to come are named by their stages."""
    texts, before = [], ""
    for stage in wanted:
        text = batch_text(config, folder, stage, after=[f"<{before}>"] if before else [])
        texts.append(f"# {stage.name} " + "-" * max(3, 100 - len(stage.name)) + f"\n{text}")
        before = stage.name
    return texts or [f"{folder.path}: nothing to submit, every stage is done."]


def check_partitions(config: Config, stages: Sequence[Stage], known: Mapping[str, queue.Partition]) -> None:
    """Compare what stages ask for with the partitions that Slurm has.

    Raises:
        ConfigError: names the setting, what was asked, and what there is.
    """
    default = next((partition.name for partition in known.values() if partition.is_default), "")
    for stage in stages:
        asked = batch.resources_of(config, stage)
        name = asked.partition or config.cluster.partition
        if name and name not in known:
            raise ConfigError(f"cluster.partition={name}: no such partition; this cluster has {', '.join(known)}.")
        there = known.get(name or default)
        if there is not None:
            _check_partition(f"stage.{stage.name}", asked, there)


def _check_partition(key: str, asked: ResourcesConfig, there: queue.Partition) -> None:
    limits = (
        ("minutes", asked.minutes, there.max_minutes, "minutes at most"),
        ("gpus_per_node", asked.gpus_per_node, there.gpus, "GPUs on a node"),
        ("tasks_per_node*cores_per_task", asked.tasks_per_node * asked.cores_per_task, there.cores, "cores on a node"),
        ("memory_gb", asked.memory_gb, there.memory_gb, "GB on a node"),
    )
    for name, found, limit, what in limits:
        if limit is not None and found > limit:
            raise ConfigError(f"{key}.{name}={found}: partition {there.name} has {limit:g} {what}.")


def _refuse_queued(folder: RunFolder, known: Mapping[str, Sequence[JobState]], wanted: Sequence[Stage]) -> None:
    for stage in wanted:
        running = [task for task in known.get(stage.name, ()) if not task.is_held]
        if running:
            raise EnvironmentProblem(
                f"{folder.path}: in use by job {running[0].job} ({stage.name}, {running[0].state.lower()}); wait for "
                f"it, or `hpcqa cancel {folder.path}`."
            )


def wait(
    folder: RunFolder, names: Sequence[str], *, every_s: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until every job of some stages has ended, with progress.

    Raises:
        HpcqaError: the first failing rank's own; or EnvironmentProblem if a job ended badly without a word.
    """
    entries = [entry for name, entry in jobs.latest(folder.path).items() if name in names]
    total = sum(entry.parts for entry in entries)
    with Tracker("jobs", total=total, unit="jobs") as tracker:
        done = 0
        while True:
            known = queue.states([entry.job for entry in entries])
            ended = sum(ended_tasks(entry, known) for entry in entries)
            tracker.advance(ended - done)
            done = ended
            if done >= total or all(is_stuck(known.get(entry.job, ())) for entry in entries):
                break
            sleep(every_s)
    _raise_failures(folder, entries, known)


def ended_tasks(entry: jobs.Submission, known: Mapping[str, Sequence[JobState]]) -> int:
    """How many tasks of a submission have ended; a job that Slurm has forgotten has."""
    return entry.parts - min(entry.parts, sum(state.is_live for state in known.get(entry.job, ())))


def is_stuck(tasks: Sequence[JobState]) -> bool:
    """Whether no task of a job will ever start or run on."""
    return all(task.is_held or not task.is_live for task in tasks)


def _raise_failures(
    folder: RunFolder, entries: Sequence[jobs.Submission], known: Mapping[str, Sequence[JobState]]
) -> None:
    for entry in entries:
        bad = [task for task in known.get(entry.job, ()) if not task.is_good and not task.is_held]
        told = [failure for failure in failures.read(folder.output("logs"), entry.stage) if not failure.goes_on]
        if bad and told:
            raise told[0].error()
        if bad:
            name = f"{bad[0].job}_{bad[0].task}" if bad[0].task else bad[0].job
            raise EnvironmentProblem(
                f"{entry.stage}: job {name} ended as {bad[0].state} ({bad[0].reason}); see `hpcqa logs {folder.path} "
                f"{entry.stage}`."
            )


def cancel(folder: RunFolder) -> list[str]:
    """End every queued or running job of a run.

    Returns:
        A sentence for each stage that had one.
    """
    queue.need_slurm()
    known = jobs.live(folder.path)
    ids = sorted({task.job for tasks in known.values() for task in tasks})
    queue.cancel(ids)
    if not ids:
        return [f"{folder.path}: no job of it is queued or running."]
    return [f"{name}: cancelled job {', '.join(sorted({task.job for task in tasks}))}" for name, tasks in known.items()]
