"""The table of stages: what each does, which settings shape its output, what it reads and writes, how it spreads.

Functions are named, not imported, so that the command line starts fast and needs neither torch nor MPI.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.parallel.ranks import Ranks

StageFunction = Callable[[Config, RunFolder, Ranks], None]


@dataclass(frozen=True)
class Stage:
    """One stage; the settings that shape its output are in config/frozen.py."""

    name: str
    doc: str
    function: str
    ranks: Literal["one", "tasks", "torch", "mpi"]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def load(self) -> StageFunction:
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(importlib.import_module(module), name)
        return function


STAGES: tuple[Stage, ...] = (
    Stage(
        "simulate",
        "Make a survey with known defects, written the way the Community Pipeline writes it.",
        "hpcqa.simulate.survey:run",
        "one",
        (),
        ("survey",),
    ),
    Stage(
        "manifest",
        "List every CCD of every table once, with every reason for which one is left out; read the labels.",
        "hpcqa.survey.manifest:run",
        "one",
        (),
        ("manifest", "labels"),
    ),
    Stage(
        "shard",
        "Read every exposure once into views and measured numbers.",
        "hpcqa.pixels.shards:run",
        "tasks",
        ("manifest",),
        ("shards",),
    ),
    Stage(
        "calibrate",
        "Mean background pattern and spread of the numbers for each CCD and band.",
        "hpcqa.pixels.calibrate:run",
        "one",
        ("shards",),
        ("calibration",),
    ),
    Stage(
        "pretrain",
        "Train the vision transformer on the cutouts without labels.",
        "hpcqa.ssl.pretrain:run",
        "torch",
        ("shards", "calibration", "labels"),
        ("backbone",),
    ),
    Stage(
        "embed",
        "Embed every CCD of the survey.",
        "hpcqa.ssl.embed:run",
        "mpi",
        ("shards", "calibration", "backbone"),
        ("embeddings",),
    ),
    Stage(
        "fit",
        "Build the classifier from the labelled exposures.",
        "hpcqa.qa.fit:run",
        "one",
        ("embeddings", "labels", "calibration"),
        ("classifier",),
    ),
    Stage(
        "classify",
        "Decide every exposure and every CCD.",
        "hpcqa.qa.classify:run",
        "mpi",
        ("embeddings", "classifier", "manifest"),
        ("decisions", "ccd_decisions"),
    ),
    Stage(
        "evaluate",
        "Compare the decisions with labels that the classifier has not seen.",
        "hpcqa.qa.evaluate:run",
        "one",
        ("decisions", "labels"),
        ("evaluation",),
    ),
    Stage(
        "report",
        "Write the pages that people look at.",
        "hpcqa.report.pages:run",
        "one",
        ("decisions", "evaluation"),
        ("report",),
    ),
)


def stage(name: str) -> Stage:
    """The stage of that name; KeyError otherwise."""
    return {entry.name: entry for entry in STAGES}[name]
