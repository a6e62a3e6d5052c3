"""The whole flow on a real Slurm: campaigns from the command line, the batch scripts, sweeps; same results as alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcqa.artifacts.store import read_provenance
from tests.slurm.conftest import ROOT, wait_for

SURVEY = ["survey=simulated", "simulate.exposures=12", "simulate.nights=4", "shard.exposures_per_shard=4"]
QUICK = ["ssl.steps=2", "ssl.batch=32", "ssl.checkpoint_every=1", "evaluate.bootstrap=20", "report.exposures=4"]
BIN = Path(sys.executable).parent


def hpcqa(*words: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(BIN / "hpcqa"), *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory) -> Path:
    """The same survey and settings without Slurm; later runs take its survey as theirs."""
    place = tmp_path_factory.mktemp("flow") / "a place"
    place.mkdir()
    hpcqa("run", "run=alone", *SURVEY, *QUICK, cwd=place)
    return place / "alone"


def ended(cwd: Path, run: str) -> bool:
    rows = json.loads(hpcqa("status", run, "--json", cwd=cwd))["stages"]
    return all(set(row["tasks"]) <= {"COMPLETED", "FAILED", "HELD", "CANCELLED", "TIMEOUT"} for row in rows)


def contents(run: Path) -> dict[str, str]:
    """Content digests of the artifacts that must not depend on how a run was launched."""
    # Not the manifest: it holds the absolute paths of the images.
    paths = [*sorted((run / "shards").glob("*.h5")), run / "labels.parquet"]
    return {path.relative_to(run).as_posix(): read_provenance(path).content for path in paths}


def decisions(run: Path) -> str:
    return read_provenance(run / "decisions.parquet").content


@pytest.mark.slow
def test_a_campaign_gives_what_a_run_alone_gives(alone, cluster):
    place = alone.parent
    words = ["run", "run=by slurm", *SURVEY, *QUICK, "launch=slurm", "stage.shard.jobs=3"]
    said = hpcqa(*words, cwd=place)
    assert "shard: job" in said
    assert "an array of 3" in said
    again = hpcqa("run", "run=by slurm", cwd=place)
    assert again.count("is queued already") >= 5
    table = hpcqa("status", "by slurm", cwd=place)
    assert "pending" in table
    wait_for(lambda: ended(place, "by slurm"), cluster, 300)
    assert "failed" not in hpcqa("status", "by slurm", cwd=place)
    assert contents(place / "by slurm") == contents(alone)
    assert decisions(place / "by slurm") == decisions(alone)
    assert "every stage is done" in hpcqa("run", "run=by slurm", cwd=place)


@pytest.mark.slow
def test_the_batch_scripts_do_the_same(alone, cluster, monkeypatch):
    place = alone.parent
    run = place / "by sbatch"
    hpcqa("simulate", f"run={run}", *SURVEY, *QUICK, cwd=place)
    hpcqa("manifest", f"run={run}", cwd=place)
    monkeypatch.setenv("HPCQA_PYTHON", sys.executable)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    said = subprocess.run(
        [str(ROOT / "slurm" / "campaign.sh"), str(run)], capture_output=True, text=True, check=True, cwd=place
    ).stdout
    assert said.count(": job ") == 8
    empty = ["squeue", "--noheader", "--format=%i %r"]
    wait_for(lambda: not subprocess.run(empty, capture_output=True, text=True, check=True).stdout, cluster, 300)
    assert (run / "report" / "index.html").exists(), hpcqa("status", str(run), cwd=place)
    assert contents(run) == contents(alone)


@pytest.mark.parametrize(
    "words",
    [
        ["shard_array.sh", "RUN"],
        ["pretrain_srun.sh", "RUN"],
        ["pretrain_torchrun.sh", "RUN"],
        ["mpi_stage.sh", "RUN", "embed"],
        ["one.sh", "RUN", "fit"],
    ],
)
@pytest.mark.usefixtures("cluster")
def test_the_batch_scripts_pass_slurm_s_own_check(words):
    asked = subprocess.run(
        ["sbatch", "--test-only", str(ROOT / "slurm" / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr


@pytest.mark.slow
def test_torchrun_in_a_batch_script(alone, cluster, monkeypatch):
    place = alone.parent
    monkeypatch.setenv("HPCQA_PYTHON", sys.executable)
    monkeypatch.setenv("HPCQA_PROCESSES", "1")
    monkeypatch.setenv("HPCQA_MASTER", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    hpcqa("manifest", "run=by torchrun", f"base={alone}", *SURVEY, *QUICK, cwd=place)
    script = ROOT / "slurm" / "pretrain_torchrun.sh"
    log = place / "torchrun.out"
    subprocess.run(
        ["sbatch", "--wait", f"--output={log}", str(script), str(place / "by torchrun")],
        check=False,
        cwd=place,
        timeout=240,
        env=os.environ,
    )
    assert (place / "by torchrun" / "backbone.safetensors").exists(), log.read_text()


@pytest.mark.slow
def test_a_sweep_submits_every_combination_and_returns(alone, cluster):
    place = alone.parent
    said = hpcqa("fit", "--multirun", f"run={alone}", "launch=slurm", "fit.k=3,4,5", "seed=1,2", cwd=place)
    assert said.count("fit: job") == 6
    runs = sorted((alone / "sweeps").glob("*/*/run.yaml"))
    assert len(runs) == 6
    wait_for(lambda: all((path.parent / "classifier.h5").exists() for path in runs), cluster, 120)
