"""`hpcqa estimate`: core-hours, GPU-hours, files and terabytes of every stage, from rates that were measured.

The rates of rates.toml say what was measured where and by which command; a finished run (`like=RUN`) replaces them by
its own, stage by stage. Processor time is estimated, not queues: the time on the clock is what the configured width
would take if it were kept busy.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts.catalog import LABELS, MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import read_table
from hpcqa.config import Config
from hpcqa.config.frozen import base_runs, load
from hpcqa.errors import ConfigError, DataError
from hpcqa.launch import batch, costs
from hpcqa.launch.workload import LABELLED_SHARE, Counts, output, work
from hpcqa.stages import STAGES, Stage

RATES = Path(__file__).with_name("rates.toml")


@dataclass(frozen=True)
class Rate:
    """Seconds of one core or one GPU for a unit of a stage's work, and where that was measured."""

    stage: str
    device: str
    unit: str
    seconds: float
    where: str
    command: str

    @property
    def source(self) -> str:
        return f"{self.where}; {self.command}"


@dataclass(frozen=True)
class StageCost:
    """One row of the table. Core-hours of a stage on GPUs are those of the cores that its tasks hold meanwhile."""

    stage: str
    core_hours: float
    gpu_hours: float
    node_hours: float
    hours: float
    files: int
    terabytes: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """The whole table."""

    counts: Counts
    stages: tuple[StageCost, ...]
    sources: tuple[str, ...]

    @property
    def total(self) -> StageCost:
        sums = {
            field: sum(getattr(row, field) for row in self.stages)
            for field in ("core_hours", "gpu_hours", "node_hours", "hours", "files", "terabytes")
        }
        return StageCost("total", sources=(), **sums)


def shipped_rates(path: Path = RATES) -> list[Rate]:
    """The rates that come with the package."""
    return [Rate(**entry) for entry in tomllib.loads(path.read_text())["rate"]]


def counts_of(config: Config, folder: RunFolder, given: Mapping[str, int]) -> Counts:
    """How large the survey is: as given, else by the run's manifest, else as it would be simulated.

    Args:
        given: any of exposures, ccds and labelled.

    Raises:
        ConfigError: nobody knows.
    """
    known = {**(_counted(folder) or _simulated(config)), **given}
    if "exposures" not in known:
        raise ConfigError(
            "exposures: how large is the survey? Give exposures=N (and ccds=N), or run=FOLDER with a manifest."
        )
    exposures = known["exposures"]
    own = given if "exposures" in given else known
    ccds = own.get("ccds", exposures * len(instruments.get(config.instrument.name).ccds))
    share = config.simulate.labelled_fraction if config.survey.simulated else LABELLED_SHARE
    return Counts(exposures, ccds, own.get("labelled", round(share * exposures)))


def _counted(folder: RunFolder) -> dict[str, int]:
    manifest, labels = folder.find("manifest"), folder.find("labels")
    if manifest is None:
        return {}
    table = read_table(manifest, MANIFEST, ["expnum", "cuts"])
    kept = table["expnum"][table["cuts"] == 0]
    known = {"exposures": len(np.unique(kept)), "ccds": len(kept)}
    if labels is not None:
        known["labelled"] = len(np.unique(read_table(labels, LABELS, ["expnum"])["expnum"]))
    return known


def _simulated(config: Config) -> dict[str, int]:
    if not config.survey.simulated:
        return {}
    return {"exposures": config.simulate.exposures}


# Rates of finished runs ---------------------------------------------------------------------------------------------


def rates_of(run: Path, shipped: Sequence[Rate]) -> list[Rate]:
    """The shipped rates, where a finished run has measured a stage replaced by the run's own.

    A stage of several units keeps their ratios; a stage that the run has not done keeps its rates.

    Raises:
        DataError: the run has measured nothing.
    """
    config, _ = load(run / "run.yaml")
    folder = RunFolder(run, base_runs(config))
    measured = costs.read(folder.output("logs"))
    if not measured:
        raise DataError(f"{run}: no STAGE-RANK.cost.jsonl in its logs; name a run whose stages have run.")
    amounts = work(config, counts_of(config, folder, {}))
    return [_scaled(rate, shipped, amounts[rate.stage], measured.get(rate.stage, ()), run) for rate in shipped]


def _scaled(
    rate: Rate, shipped: Sequence[Rate], amounts: Mapping[str, float], found: Sequence[costs.Cost], run: Path
) -> Rate:
    on_gpu = any(cost.gpu_s for cost in found)
    expected = _seconds(
        [other for other in shipped if (other.stage, other.device) == (rate.stage, rate.device)], amounts
    )
    seconds = sum(cost.gpu_s if on_gpu else cost.core_s for cost in found)
    if not seconds or not expected or (rate.device == "gpu") != on_gpu:
        return rate
    last = found[-1]
    place = f"{last.gpu or last.processor}, the run {run.name}"
    return dataclasses.replace(
        rate, seconds=rate.seconds * seconds / expected, where=place, command=f"{run}/logs/*.cost.jsonl"
    )


def _seconds(rates: Sequence[Rate], amounts: Mapping[str, float]) -> float:
    return sum(rate.seconds * amounts.get(rate.unit, 0.0) for rate in rates)


# The table ----------------------------------------------------------------------------------------------------------


def estimate(config: Config, counts: Counts, rates: Sequence[Rate]) -> Estimate:
    """What every stage of a survey costs."""
    amounts, outputs = work(config, counts), output(config, counts)
    used: list[str] = []
    rows = []
    for stage in STAGES:
        if stage.name == "simulate" and not config.survey.simulated:
            continue
        device = "gpu" if on_gpu(config, stage) else "cpu"
        own = [rate for rate in rates if (rate.stage, rate.device) == (stage.name, device)]
        sources = tuple(dict.fromkeys(rate.source for rate in own))
        used += [source for source in sources if source not in used]
        written = outputs[stage.name]
        core, gpu, node, hours = _times(config, stage, _seconds(own, amounts[stage.name]) / 3600)
        rows.append(StageCost(stage.name, core, gpu, node, hours, written.files, written.bytes / 1e12, sources))
    return Estimate(counts, tuple(rows), tuple(used))


def on_gpu(config: Config, stage: Stage) -> bool:
    """Whether a stage is to run on GPUs: by its resources, or by its device."""
    device = {"pretrain": config.ssl.device, "embed": config.embed.device}.get(stage.name, "cpu")
    return device == "cuda" or (device == "auto" and batch.resources_of(config, stage).gpus_per_node > 0)


def _times(config: Config, stage: Stage, device_hours: float) -> tuple[float, float, float, float]:
    """Core-hours, GPU-hours, node-hours and hours on the clock of the configured width."""
    asked = batch.resources_of(config, stage)
    nodes = asked.nodes * batch.num_jobs(config, stage)
    if on_gpu(config, stage):
        hours = device_hours / (nodes * max(1, asked.gpus_per_node))
        held = device_hours / max(1, asked.gpus_per_node) * asked.tasks_per_node * asked.cores_per_task
        return held, device_hours, nodes * hours, hours
    hours = device_hours / (nodes * asked.tasks_per_node * asked.cores_per_task)
    return device_hours, 0.0, nodes * hours, hours


def text(found: Estimate) -> str:
    """The table for people."""
    marks = {source: f"[{number}]" for number, source in enumerate(found.sources, start=1)}
    header = ("stage", "core-hours", "GPU-hours", "node-hours", "hours", "files", "TB", "measured")
    rows: list[tuple[str, ...]] = [header]
    for row in (*found.stages, found.total):
        amounts = (row.core_hours, row.gpu_hours, row.node_hours, row.hours)
        given = " ".join(marks[source] for source in row.sources)
        rows.append((row.stage, *(_short(value) for value in amounts), f"{row.files}", _short(row.terabytes), given))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    counts = found.counts
    lines = [f"{counts.exposures} exposures, {counts.ccds} CCD images, {counts.labelled} labelled exposures"]
    for row_cells in rows:
        first, *middle, last = row_cells
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, last]).rstrip())
    lines += ["hours: at the width that stage.* asks for, without queues and time lost to start-up."]
    return "\n".join([*lines, *(f"{marks[source]} {source}" for source in found.sources)])


def _short(value: float) -> str:
    return "-" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def as_json(found: Estimate) -> str:
    """The table for programs."""
    return json.dumps({**dataclasses.asdict(found), "total": dataclasses.asdict(found.total)}, indent=1)
