"""Which Slurm jobs belong to a run: RUN/jobs.json, written at submission."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hpcqa.artifacts.store import read_json, write_json
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.launch import queue
from hpcqa.launch.queue import JobState

FILE = "jobs.json"


@dataclass(frozen=True)
class Submission:
    """One job or job array of a stage."""

    stage: str
    job: str
    parts: int
    submitted: float


def recorded(run: Path) -> list[Submission]:
    """Every submission of a run, oldest first.

    Raises:
        DataError: jobs.json is damaged.
    """
    path = run / FILE
    if not path.exists():
        return []
    try:
        return [Submission(**entry) for entry in read_json(path)]
    except TypeError as error:
        raise DataError(f"{path}: not a list of jobs ({error}); remove it if no job of this run is queued.") from None


def record(run: Path, submission: Submission) -> None:
    """Add a submission; the caller holds the run folder."""
    write_json(run / FILE, [dataclasses.asdict(entry) for entry in [*recorded(run), submission]])


def latest(run: Path) -> dict[str, Submission]:
    """The newest submission of each stage."""
    return {entry.stage: entry for entry in recorded(run)}


def live(run: Path) -> dict[str, list[JobState]]:
    """States of the tasks of this run's jobs that wait or run, by stage; empty where no Slurm is at hand."""
    entries = recorded(run)
    if not entries or not queue.available():
        return {}
    known = queue.states([entry.job for entry in entries])
    found: dict[str, list[JobState]] = {}
    for entry in entries:
        tasks = [state for state in known.get(entry.job, []) if state.is_live]
        if tasks:
            found.setdefault(entry.stage, []).extend(tasks)
    return found


def refuse_live(run: Path) -> None:
    """Stop a command that would work in the folder while jobs of it are queued.

    Raises:
        EnvironmentProblem: names them.
    """
    for stage, tasks in live(run).items():
        if not all(task.is_held for task in tasks):
            raise EnvironmentProblem(
                f"{run}: in use by job {tasks[0].job} ({stage}, {tasks[0].state.lower()}); wait for it, or "
                f"`hpcqa cancel {run}`."
            )
