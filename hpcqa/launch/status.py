"""How far a run is: `hpcqa status RUN`, as a table and as JSON, and `hpcqa logs RUN STAGE`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.launch import failures, jobs, queue
from hpcqa.launch.pipeline import lenders
from hpcqa.launch.progress import Progress, own_shards, progress_of
from hpcqa.launch.queue import JobState
from hpcqa.stages import STAGES, stage

TAIL_BYTES = 16384


@dataclass(frozen=True)
class StageStatus:
    """One row of the table; `lent` is the run whose artifacts serve, where this one needs none of its own."""

    stage: str
    progress: Progress
    job: str
    tasks: Mapping[str, int]
    failures: Sequence[str]
    last_line: str
    lent: str = ""


@dataclass(frozen=True)
class RunStatus:
    """The whole table and what could not be asked."""

    run: str
    stages: Sequence[StageStatus]
    notes: Sequence[str]


def collect(config: Config, folder: RunFolder) -> RunStatus:
    """Look at the run folder and ask Slurm, where there is one, about the run's jobs."""
    latest = jobs.latest(folder.path)
    known, notes = _ask([entry.job for entry in latest.values()])
    shards, lent = own_shards(config, folder), lenders(config, folder)
    rows = []
    for entry in STAGES:
        if entry.name == "simulate" and not config.survey.simulated:
            continue
        submission = latest.get(entry.name)
        rows.append(
            StageStatus(
                entry.name,
                progress_of(config, RunFolder(lent[entry.name]) if entry.name in lent else folder, entry, shards),
                submission.job if submission else "",
                queue.summary(known.get(submission.job, [])) if submission else {},
                [describe(failure) for failure in failures.read(folder.output("logs"), entry.name)],
                last_line(folder.output("logs") / f"{entry.name}-0.log"),
                str(lent.get(entry.name, "")),
            )
        )
    return RunStatus(str(folder.path), rows, notes)


def _ask(ids: Sequence[str]) -> tuple[dict[str, list[JobState]], list[str]]:
    if not ids:
        return {}, []
    if not queue.available():
        return {}, ["This machine has no Slurm: the states of the jobs are not known here."]
    try:
        known = queue.states(ids)
    except EnvironmentProblem as error:
        return {}, [str(error)]
    forgotten = [job for job in ids if job not in known]
    if forgotten:
        return known, [
            f"Slurm has forgotten job {', '.join(forgotten)} (sacct keeps them where accounting is on); the files tell "
            "what is done."
        ]
    return known, []


def describe(failure: failures.Failure) -> str:
    """A failure in words."""
    return f"rank {failure.rank} on {failure.host}: {failure.sentence}"


def status_json(config: Config, folder: RunFolder) -> str:
    """The status as JSON."""
    found = asdict(collect(config, folder))
    for row in found["stages"]:
        progress = row["progress"]
        row["complete"] = progress["total"] > 0 and progress["done"] >= progress["total"]
    return json.dumps(found, indent=1)


def status_text(config: Config, folder: RunFolder) -> str:
    """The status as a table, with failures and the last line of the stage that is at work below it."""
    return render(collect(config, folder))


def render(status: RunStatus) -> str:
    """The table as text."""
    rows = [("stage", "done", "rate", "left", "job", "tasks")]
    rows += [
        (
            row.stage,
            done_text(row.progress) + (" (lent)" if row.lent else ""),
            "" if row.progress.rate is None else f"{row.progress.rate:.3g}/s",
            "" if row.progress.left_s is None else duration(row.progress.left_s),
            row.job,
            ", ".join(f"{count} {name.lower()}" for name, count in row.tasks.items()),
        )
        for row in status.stages
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [status.run]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for row in status.stages:
        lines += [f"{row.stage} failed, {failure}" for failure in row.failures[:3]]
        if len(row.failures) > 3:
            lines.append(f"{row.stage}: {len(row.failures) - 3} further ranks failed")
    working = [row for row in status.stages if row.last_line and not row.progress.is_complete]
    lines += [f"{working[-1].stage} says: {working[-1].last_line}"] if working else []
    lines += [f"lent by {base}" for base in dict.fromkeys(row.lent for row in status.stages if row.lent)]
    return "\n".join([*lines, *status.notes])


def done_text(progress: Progress) -> str:
    """Pieces done of all, in words."""
    if progress.total == 1:
        return "yes" if progress.done else "-"
    return f"{progress.done}/{progress.total}" if progress.total else "-"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def last_line(path: Path) -> str:
    """The last message of a log that is meant for people, without its time; empty if there is none."""
    lines = [line for line in tail(path, 100) if re.search(r" rank \d+ (INFO|WARNING|ERROR) ", line)]
    return lines[-1].split(": ", 1)[-1] if lines else ""


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a text file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def logs_text(folder: RunFolder, name: str, count: int = 20) -> str:
    """The last lines of every log of a stage: its ranks', and its latest job's, which catch what ranks can't say.

    Raises:
        DataError: there is none.
    """
    logs = folder.output("logs")
    paths = sorted(logs.glob(f"{stage(name).name}-*.log"), key=_by_rank)
    submission = jobs.latest(folder.path).get(name)
    if submission is not None:
        paths += sorted((logs / "slurm").glob(f"{submission.job}_*_log.out"))
    if not paths:
        raise DataError(f"{logs}: no logs of {name}; it has not run here.")
    blocks = ["\n".join([f"== {path}", *tail(path, count)]) for path in paths]
    return "\n".join(blocks)


def _by_rank(path: Path) -> tuple[int, str]:
    digits = path.stem.rpartition("-")[2]
    return (int(digits) if digits.isdigit() else -1, path.name)
