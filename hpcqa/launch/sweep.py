"""`hpcqa sweep-table DIR`: the runs of a sweep side by side; settings that differ, figures, states, the best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import atomic_path, read_json, write_text
from hpcqa.config import Config, leaves
from hpcqa.config.frozen import base_runs, load
from hpcqa.errors import ConfigError, DataError, EnvironmentProblem
from hpcqa.launch import failures, jobs, queue
from hpcqa.launch.progress import last_entries, standing_file
from hpcqa.launch.queue import JobState
from hpcqa.stages import STAGES

# Settings of where and how a run was made, not of what it is.
NOT_COMPARED = ("run", "base", "launch.", "cluster.", "survey.", "stage.")
# What training says of itself, from its last lines; the figures of the evaluation come before them.
TRAINING = ("knn_ap", "knn_ap_with_numbers", "loss")
SMALLER_IS_BETTER = ("loss", "calibration_error")


@dataclass(frozen=True)
class Figure:
    """A figure of merit with its interval; both ends NaN where it has none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Row:
    """One run of the sweep."""

    name: str
    state: str
    settings: Mapping[str, str]
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Table:
    """The sweep; `settings` are those that differ, `metric` is what the best is chosen by, `best` a row's name."""

    folder: Path
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    metric: str = ""
    best: str = ""


def collect(folder: Path, metric: str = "") -> Table:
    """Look at every run of a sweep.

    Args:
        folder: what Hydra wrote (RUN/sweeps/DATE), or a run that sweeps were started on.
        metric: what the best is chosen by; empty: the first one that a run has.

    Raises:
        DataError: there are no runs.
        ConfigError: no run has that metric.
    """
    runs = find_runs(folder)
    if not runs:
        raise DataError(
            f"{folder}: no runs of a sweep; name the folder that holds 0, 1, ..., or the run it started on."
        )
    configs = {path: _config(path) for path in runs}
    states = _job_states(runs)
    plain = {path: _plain(config) for path, config in configs.items() if config is not None}
    names = differing(list(plain.values()))
    rows = []
    for path in runs:
        settings = {name: plain[path][name] for name in names} if path in plain else {}
        rows.append(Row(_name(path, folder), state_of(path, configs[path], states), settings, figures_of(path)))
    metrics = tuple(dict.fromkeys(name for row in rows for name in row.figures))
    if metric and metric not in metrics:
        raise ConfigError(f"best={metric}: no run has it; there are {', '.join(metrics) or 'no figures yet'}.")
    chosen = metric or (metrics[0] if metrics else "")
    return Table(folder, tuple(names), metrics, tuple(rows), chosen, best_of(rows, chosen))


def find_runs(folder: Path) -> list[Path]:
    """The run folders of a sweep in order, those that never began too."""
    for place, pattern in ((folder, "[0-9]*"), (folder, "*/[0-9]*"), (folder / "sweeps", "*/[0-9]*")):
        found = [path for path in place.glob(pattern) if path.is_dir() and path.name.isdigit()]
        if found:
            return sorted(found, key=lambda path: (path.parent, int(path.name)))
    return []


def _name(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder).parts
    return "/".join(part for part in inside if part != "sweeps")


def _config(path: Path) -> Config | None:
    return load(path / "run.yaml")[0] if (path / "run.yaml").exists() else None


def _plain(config: Config) -> dict[str, str]:
    return {
        leaf.name: _as_text(leaf.value)
        for leaf in leaves(config)
        if leaf.name not in NOT_COMPARED and not leaf.name.startswith(NOT_COMPARED[2:])
    }


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(str(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing(plain: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of settings that are not the same in all runs, in the configuration's order."""
    if not plain:
        return []
    return [name for name in plain[0] if len({settings[name] for settings in plain}) > 1]


def _job_states(runs: Sequence[Path]) -> dict[str, list[JobState]]:
    """States of all the runs' jobs with one question to Slurm; empty where it can't be asked."""
    ids = [entry.job for path in runs for entry in jobs.latest(path).values()]
    if not ids or not queue.available():
        return {}
    try:
        return queue.states(ids)
    except EnvironmentProblem:
        return {}


def state_of(path: Path, config: Config | None, states: Mapping[str, Sequence[JobState]]) -> str:
    """A run's state in a few words: its jobs', its failure, or the last stage that it has done."""
    if config is None:
        return "not started"
    tasks = [task for entry in jobs.latest(path).values() for task in states.get(entry.job, ())]
    live = [task for task in tasks if task.is_live and not task.is_held]
    if any(task.state == "RUNNING" for task in live):
        return "running"
    told = [failure for failure in failures.read(path / "logs") if not failure.goes_on]
    if told:
        return f"failed: {told[0].stage}, {told[0].sentence}"
    bad = [task for task in tasks if not task.is_live and not task.is_good]
    if bad:
        return f"failed: job {bad[0].job} {bad[0].state.lower()}"
    if live:
        return "queued"
    folder = RunFolder(path, base_runs(config))
    done = [stage.name for stage in STAGES if all(standing_file(folder, name).exists() for name in stage.writes)]
    if not done:
        return "unfinished"
    return "done" if {"evaluate", "report"} & set(done) else f"done up to {done[-1]}"


def figures_of(path: Path) -> dict[str, Figure]:
    """A run's own figures: of its evaluation, and of its training's last lines."""
    found: dict[str, Figure] = {}
    evaluation = path / "evaluation.json"
    if evaluation.exists():
        content = read_json(evaluation)
        for name, entry in content.get("figures", {}).items():
            if entry.get("value") is not None:
                ends = (entry.get(end) for end in ("low", "high"))
                found[name] = Figure(entry["value"], *(math.nan if end is None else end for end in ends))
    entries = list(last_entries(path / "metrics.jsonl"))
    for name in TRAINING:
        values = [entry[name] for entry in entries if isinstance(entry.get(name), (int, float))]
        if values:
            found[name] = Figure(float(str(values[-1])))
    return found


def best_of(rows: Sequence[Row], metric: str) -> str:
    """Name of the row with the best figure, the first of equals; empty if none has one."""
    having = [row for row in rows if metric in row.figures and math.isfinite(row.figures[metric].value)]
    if not having:
        return ""
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    return max(having, key=lambda row: sign * row.figures[metric].value).name


# As text, CSV and plot ----------------------------------------------------------------------------------------------


def text(table: Table) -> str:
    """The sweep as a table for people; the best run has a star."""
    cells = [["", "run", *table.settings, *table.metrics, "state"]]
    for row in table.rows:
        star = "*" if row.name == table.best else ""
        given = [row.settings.get(name, "") for name in table.settings]
        shown = [_shown(row.figures.get(name)) for name in table.metrics]
        cells.append([star, row.name, *given, *shown, row.state])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    if table.best:
        lines.append(f"best by {table.metric}: {table.best} of {len(table.rows)} runs")
    return "\n".join([*lines, *_warning(table)])


def _shown(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.4g}"


def _warning(table: Table) -> list[str]:
    """A sentence where the best run's interval holds the others: the choice is then within the noise."""
    best = next((row for row in table.rows if row.name == table.best), None)
    if best is None or not math.isfinite(best.figures[table.metric].low):
        return []
    low = best.figures[table.metric].low
    others = [row.figures[table.metric].value for row in table.rows if row is not best and table.metric in row.figures]
    inside = sum(value >= low for value in others)
    return [f"{inside} of {len(others)} others are within its interval (from {low:.4g})."] if others else []


def csv_text(table: Table) -> str:
    """The sweep as CSV: a column for each setting that differs, and value, low and high of each metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ends = [f"{name}{end}" for name in table.metrics for end in ("", "_low", "_high")]
    writer.writerow(["run", "state", "best", *table.settings, *ends])
    for row in table.rows:
        figures = [row.figures.get(name, Figure(math.nan)) for name in table.metrics]
        numbers = [
            "" if math.isnan(value) else repr(value)
            for figure in figures
            for value in (figure.value, figure.low, figure.high)
        ]
        given = [row.settings.get(name, "") for name in table.settings]
        writer.writerow([row.name, row.state, int(row.name == table.best), *given, *numbers])
    return stream.getvalue()


def write(table: Table, place: Path) -> list[Path]:
    """Write sweep.csv, and sweep.png where a run has figures.

    Returns:
        What was written.
    """
    path = place / "sweep.csv"
    write_text(path, csv_text(table))
    having = [row for row in table.rows if table.metric in row.figures]
    if not having or not table.settings:
        return [path]
    # Only here: matplotlib takes a second to import.
    from hpcqa.report.figures import sweep_plot

    figures = [row.figures[table.metric] for row in having]
    with atomic_path(place / "sweep.png") as temporary, temporary.open("wb") as stream:
        sweep_plot(
            stream,
            table.metric,
            {name: [row.settings.get(name, "") for row in having] for name in table.settings},
            [(figure.value, figure.low, figure.high) for figure in figures],
            best=next((number for number, row in enumerate(having) if row.name == table.best), 0),
        )
    return [path, place / "sweep.png"]
