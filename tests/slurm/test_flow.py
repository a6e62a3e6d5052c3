"""The whole flow on a real Slurm: campaigns from the command line, the batch scripts, sweeps; same results as alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcqa.artifacts.store import read_provenance
from hpcqa.launch import jobs, queue
from hpcqa.launch.queue import JobState
from tests.slurm.conftest import CLEAN_UP_S, PATIENCE, ROOT, wait_for

SURVEY = ["survey=simulated", "simulate.exposures=12", "simulate.nights=4", "shard.exposures_per_shard=4"]
QUICK = ["ssl.steps=2", "ssl.batch=32", "ssl.checkpoint_every=1", "evaluate.bootstrap=20", "report.exposures=4"]
BIN = Path(sys.executable).parent


def hpcqa(*words: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(BIN / "hpcqa"), *words], cwd=cwd, capture_output=True, text=True, timeout=300 * PATIENCE, check=False
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


def contents(run: Path) -> dict[str, str]:
    """Content digests of the artifacts that must not depend on how a run was launched."""
    # Not the manifest: it holds the absolute paths of the images.
    paths = [*sorted((run / "shards").glob("*.h5")), run / "labels.parquet"]
    return {path.relative_to(run).as_posix(): read_provenance(path).content for path in paths}


def decisions(run: Path) -> str:
    return read_provenance(run / "decisions.parquet").content


# How often each job is asked to stop: the array's three jobs twice each, ten times in all.
PREEMPTIONS = {"shard": 2, "pretrain": 1, "embed": 2, "classify": 1}


class Preempter:
    """Asks the jobs of a run to stop as soon as all of their ranks listen, and starts them again without the wait."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.pending: dict[str, float] = {}
        self.asked: dict[tuple[str, str], int] = {}

    def look(self) -> None:
        """Once over all jobs."""
        known = queue.states([entry.job for entry in jobs.latest(self.run).values()])
        for name, wanted in PREEMPTIONS.items():
            for task in known.get(jobs.latest(self.run)[name].job, ()):
                job = f"{task.job}_{task.task}" if task.task else task.job
                key, ranks = (name, task.task), [task.task] if task.task else ["0", "1"][: 1 + (name != "pretrain")]
                asked = self.asked.get(key, 0)
                starts = min(self.starts(name, rank) for rank in ranks)
                if task.state == "RUNNING" and asked < wanted and starts > asked:
                    subprocess.run(["scancel", "--signal=USR2", job], check=False)
                    self.asked[key] = asked + 1
                self.hurry(job, task)

    def starts(self, name: str, rank: str) -> int:
        log = self.run / "logs" / f"{name}-{rank}.log"
        return log.read_text().count(f"{name}: rank {rank} of ") if log.exists() else 0

    def hurry(self, job: str, task: JobState) -> None:
        """A requeued job waits two minutes; not at once, for its node cleans up first."""
        if task.state != "PENDING" or task.reason != "BeginTime":
            self.pending.pop(job, None)
        elif time.monotonic() - self.pending.setdefault(job, time.monotonic()) > CLEAN_UP_S:
            subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], capture_output=True, check=False)

    def restarts(self) -> int:
        """Starts of ranks 0 (of every job of the array) beyond the first."""
        logs = [("shard", rank) for rank in "012"] + [(name, "0") for name in PREEMPTIONS if name != "shard"]
        return sum(self.starts(*log) - 1 for log in logs)


@pytest.mark.slow
def test_a_campaign_preempted_ten_times_gives_what_a_run_alone_gives(alone, cluster):
    place = alone.parent
    words = ["run", "run=by slurm", *SURVEY, *QUICK, "launch=slurm", "stage.shard.jobs=3"]
    said = hpcqa(*words, cwd=place)
    assert "shard: job" in said
    assert "an array of 3" in said
    again = hpcqa("run", "run=by slurm", cwd=place)
    assert again.count("is queued already") >= 5
    table = hpcqa("status", "by slurm", cwd=place)
    assert "pending" in table
    preempter = Preempter(place / "by slurm")

    def over() -> bool:
        preempter.look()
        tasks = [task for tasks in jobs.live(preempter.run).values() for task in tasks]
        return not [task for task in tasks if not task.is_held]

    wait_for(over, cluster, 400)
    assert preempter.restarts() >= 10, hpcqa("status", "by slurm", cwd=place)
    rows = json.loads(hpcqa("status", "by slurm", "--json", cwd=place))["stages"]
    assert all(row["complete"] for row in rows), rows
    assert not any(row["failures"] for row in rows)
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
    during = hpcqa("sweep-table", str(alone), cwd=place)
    assert len(re.findall(r"queued|running|done up to", during)) == 6, during
    assert "done" in hpcqa("status", str(runs[5].parent), cwd=place)
    wait_for(lambda: all((path.parent / "classifier.h5").exists() for path in runs), cluster, 120)
    # Hydra's own launcher: each combination is one job, and the command waits for them.
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.sweep.dir=plugin"]
    hpcqa("fit", "--multirun", f"run={alone}", "launch=inline", "fit.k=6,7", *launcher, cwd=place)
    assert [(place / "plugin" / number / "classifier.h5").exists() for number in "01"] == [True, True]
