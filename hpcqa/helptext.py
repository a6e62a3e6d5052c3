"""Help texts from the configuration's own documentation; no Hydra, no torch, so that help answers at once."""

from __future__ import annotations

from collections.abc import Iterator

from hpcqa.config import Config, leaves
from hpcqa.config.fields import Leaf, describe_range
from hpcqa.config.frozen import STAGE_SECTIONS
from hpcqa.stages import STAGES, Stage

COMMANDS: tuple[tuple[str, str], ...] = (
    ("run", "Do all of it in order; picks up where it stopped."),
    ("status RUN", "How far a run is."),
    ("logs RUN STAGE", "The last lines of each rank's log."),
    ("cancel RUN", "Cancel the run's Slurm jobs."),
    ("estimate", "Core-hours, GPU-hours, files and terabytes of each stage (exposures=N or run=FOLDER; like=RUN)."),
    ("sweep-table DIR", "Compare the runs of a sweep: settings that differ, figures, the best; CSV and a plot."),
    ("compare RUN_A RUN_B", "What RUN_B decided otherwise than RUN_A, and why (--json, out=FILE.csv or .parquet)."),
    ("verify RUN", "Check every file of a run against its schema, digests and parents."),
    ("show EXPNUM", "Write a picture of an exposure as the network sees it (with run=FOLDER)."),
    ("votes FILE...", "How far reviewers agree, from the CSV files that they saved in the report."),
    ("import-weights FILE OUT", "Turn published DINOv2 weights into a backbone.safetensors."),
)

# Sections that a stage uses without their shaping its artifacts' digest.
ALWAYS = ("run", "base", "seed", "launch", "cluster", "stage")


def overview() -> str:
    """What `hpcqa --help` prints."""
    lines = [
        "hpcqa finds the bad exposures of an imaging survey.",
        "",
        "  hpcqa run [settings]               the whole flow",
        "  hpcqa STAGE [settings]             one stage of it",
        "  hpcqa STAGE --help                 every setting of a stage, with its range",
        "  hpcqa STAGE --cfg job [settings]   the composed configuration",
        "  hpcqa STAGE --multirun a=1,2       a sweep: one run folder for each combination",
        "",
        "Stages, in order:",
        *(f"  {stage.name:<12} {stage.doc}" for stage in STAGES),
        "",
        "Commands:",
        *(f"  {name:<24} {doc}" for name, doc in COMMANDS),
        "",
        "Settings are key=value, e.g. run=runs/first seed=2 launch=local launch.tasks=4.",
        "Groups of settings: instrument= survey= model= launch= cluster= experiment=.",
        "Exit codes: 0 well, 2 the configuration, 3 the data, 4 the machine, 70 a mistake of hpcqa.",
    ]
    return "\n".join(lines)


def stage_help(stage: Stage | None) -> str:
    """What `hpcqa STAGE --help` prints: every setting that matters to it; all of them for `run` (None)."""
    name, doc = ("run", "All stages in order.") if stage is None else (stage.name, stage.doc)
    lines = [f"hpcqa {name} [settings]: {doc}", ""]
    if stage is not None:
        lines += [
            f"Reads {', '.join(stage.reads) or 'what the settings name'}; writes {', '.join(stage.writes)}.",
            "",
        ]
    lines += ["Settings (key=default: meaning, range):"]
    for leaf in settings_for(stage):
        lines.append(f"  {leaf.name}={_shown(leaf)}")
        lines.append(f"      {leaf.setting.doc}{_range(leaf)}")
    lines += ["", "`--cfg job` prints the composed configuration, `--multirun` sweeps, `--verbose` says more."]
    return "\n".join(lines)


def settings_for(stage: Stage | None) -> Iterator[Leaf]:
    """The settings that a stage's help explains."""
    sections = None if stage is None else (*STAGE_SECTIONS[stage.name], *ALWAYS)
    for leaf in leaves(Config()):
        top = leaf.name.split(".")[0]
        if sections is None or any(section.split(".")[0] == top for section in sections):
            yield leaf


def _shown(leaf: Leaf) -> str:
    if isinstance(leaf.value, list):
        return "[" + ",".join(str(item) for item in leaf.value) + "]"
    return str(leaf.value).lower() if isinstance(leaf.value, bool) else str(leaf.value)


def _range(leaf: Leaf) -> str:
    said = describe_range(leaf.setting)
    return f" ({said})" if said else ""
