"""One small simulated survey and one finished run of it, made once for all end-to-end tests."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.store import read_json, read_provenance

SMALL = (
    "experiment=demo",
    "ssl.steps=4",
    "ssl.checkpoint_every=1",
    "ssl.batch=8",
    "shard.exposures_per_shard=4",
    "evaluate.bootstrap=20",
    "report.exposures=2",
    "shard.workers=1",
)


def hpcqa(*words: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcqa", *words], capture_output=True, text=True, timeout=timeout, check=False
    )


def settings(survey: Path) -> tuple[str, ...]:
    """Settings of a run that reads a survey made before."""
    return (
        *SMALL,
        f"survey.tables=[{survey}/survey-ccds-minicam.fits.gz]",
        f"survey.images=[{survey}/images]",
        f"survey.labels=[{survey}/labels/*]",
        f"survey.truth={survey}/truth.csv",
    )


def contents(run: Path) -> dict[str, object]:
    """What a run's artifacts hold, without when they were made."""
    found: dict[str, object] = {}
    for path in sorted(run.glob("*.parquet")) + sorted(run.rglob("*.h5")):
        found[path.relative_to(run).as_posix()] = read_provenance(path).content
    evaluation = RunFolder(run).find("evaluation")
    if evaluation is not None:
        found[NAMES["evaluation"]] = {key: value for key, value in read_json(evaluation).items() if key != "provenance"}
    return found


@dataclass(frozen=True)
class Finished:
    """A finished run and the survey that it was made from."""

    run: Path
    survey: Path
    output: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    made = tmp_path_factory.mktemp("made")
    done = hpcqa(
        "simulate", f"run={made}", "simulate.exposures=24", "simulate.nights=6", "simulate.labelled_fraction=0.6"
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path_factory.mktemp("finished") / "run"
    output = hpcqa("run", f"run={run}", *settings(made / "survey"))
    assert output.returncode == 0, output.stderr
    return Finished(run, made / "survey", output)
