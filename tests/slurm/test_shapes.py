"""Arrays, torch jobs and MPI jobs on a real Slurm of three nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcqa.config import ClusterConfig, ResourcesConfig
from hpcqa.errors import ConfigError, EnvironmentProblem
from hpcqa.launch import campaign, failures, status
from hpcqa.launch.submit import batch_text, submit
from tests.slurm.conftest import ROOT, make_stage

WANTED = {number: json.dumps({"number": number, "square": number**2}, indent=1) + "\n" for number in range(12)}


def test_an_array_covers_every_piece_over_the_nodes(bench):
    config = bench.configure(shard=ResourcesConfig(jobs=3, cores_per_task=3))
    submission = submit(config, bench.folder, make_stage("share", "tasks"))
    assert bench.wait(submission) == ["COMPLETED"] * 3
    assert bench.pieces() == WANTED
    assert {path.read_text() for path in bench.path.glob("node-*")} == {"n1", "n2", "n3"}


def test_jobs_of_an_array_may_have_several_tasks(bench):
    config = bench.configure(shard=ResourcesConfig(jobs=2, tasks_per_node=2))
    submission = submit(config, bench.folder, make_stage("share", "tasks"))
    assert bench.wait(submission) == ["COMPLETED"] * 2
    assert bench.pieces() == WANTED
    assert len(list(bench.path.glob("node-*"))) == 4


def test_mpi_over_two_nodes(bench):
    config = bench.configure(embed=ResourcesConfig(nodes=2, tasks_per_node=2))
    submission = submit(config, bench.folder, make_stage("embed", "mpi"))
    assert bench.wait(submission) == ["COMPLETED"]
    assert bench.pieces() == WANTED
    assert len(set(json.loads((bench.path / "nodes.json").read_text()))) == 2


def test_the_wrong_mpi_is_refused(bench):
    cluster = ClusterConfig(mpi="none")
    config = bench.configure(cluster, embed=ResourcesConfig(nodes=2, tasks_per_node=2))
    submission = submit(config, bench.folder, make_stage("embed", "mpi"))
    assert bench.wait(submission) == ["FAILED"]
    told = failures.read(bench.folder.output("logs"))
    assert "pmi2" in told[0].sentence
    assert told[0].exit_code == EnvironmentProblem.exit_code
    assert not bench.pieces()


def test_a_failing_mpi_rank_ends_the_job(bench):
    config = bench.configure(embed=ResourcesConfig(nodes=2, tasks_per_node=2))
    submission = submit(config, bench.folder, make_stage("refuse", "mpi"))
    assert bench.wait(submission) == ["FAILED"]
    assert "truncated" in status.status_text(config, bench.folder)
    assert "truncated" in status.logs_text(bench.folder, "embed")


def test_a_job_runs_the_code_of_its_submission(bench, monkeypatch, tmp_path):
    """The package is edited, here broken, while the job waits: it runs the copy in the run folder."""
    bench.configure(ClusterConfig(sbatch_args=["begin=now+3"]))
    package = tmp_path / "edited" / "hpcqa"
    shutil.copytree(ROOT / "hpcqa", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "__init__.py").open("a") as file:
        file.write("# As it was submitted.\n")
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep + str(package.parent))
    monkeypatch.chdir(package.parent)  # where `python -m` would find the package too
    job = send(tmp_path, bench.path)
    (package / "launch" / "job.py").write_text("raise SystemExit('edited after submission')\n")
    assert bench.wait(type("Job", (), {"job": job})) == ["COMPLETED"]
    where = Path((bench.path / "where").read_text())
    assert where.is_relative_to(bench.path / "code")
    assert where.read_text().endswith("# As it was submitted.\n")
    assert (where.parent / "launch" / "job.py").read_text() == (ROOT / "hpcqa" / "launch" / "job.py").read_text()


@pytest.mark.parametrize("kind", ["script", "module"])
def test_submission_from_a_script_and_from_a_module(bench, tmp_path, kind):
    bench.configure()
    job = send(tmp_path, bench.path, kind)
    assert [state.job for state in bench.states(job)] == [job]
    bench.wait(type("Job", (), {"job": job}))
    assert (bench.path / "where").exists()


def send(tmp_path, run: Path, kind: str = "script") -> str:
    """Submit from a process of its own, in a folder with a space; returns the job's id."""
    script = tmp_path / "a place" / "send.py"
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom hpcqa.artifacts.folder import RunFolder\n"
        "from hpcqa.config.frozen import load\nfrom hpcqa.launch.submit import submit\nfrom hpcqa.stages import Stage\n"
        "run = Path(sys.argv[1])\n"
        "stage = Stage('fit', '', 'slurmwork:where', 'one', (), ())\n"
        "if __name__ == '__main__':\n"
        "    print(submit(load(run / 'run.yaml')[0], RunFolder(run), stage).job)\n"
    )
    command = [sys.executable, str(script)] if kind == "script" else [sys.executable, "-m", "send"]
    sent = subprocess.run(
        [*command, str(run)], cwd=script.parent, capture_output=True, text=True, check=True, timeout=60
    )
    (job,) = sent.stdout.split()
    return job


def test_every_batch_file_passes_slurm_s_own_check(bench, tmp_path):
    config = bench.configure(
        shard=ResourcesConfig(jobs=3),
        pretrain=ResourcesConfig(nodes=2, tasks_per_node=2, gpus_per_node=2),
        embed=ResourcesConfig(nodes=3, tasks_per_node=2),
    )
    for kind in ("one", "tasks", "torch", "mpi"):
        path = tmp_path / f"{kind}.sbatch"
        path.write_text(batch_text(config, bench.folder, make_stage("share", kind)))
        asked = subprocess.run(["sbatch", "--test-only", str(path)], capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize(
    ("facts", "resources", "said"),
    [
        ({"partition": "mian"}, {}, "invalid partition"),
        ({}, {"gpus_per_node": 8}, "configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_one_sentence(bench, facts, resources, said):
    """Of a cluster whose facts are not known, only Slurm can tell."""
    config = bench.configure(ClusterConfig(**facts), fit=ResourcesConfig(**resources))
    with pytest.raises(EnvironmentProblem, match="(?i)" + said) as raised:
        submit(config, bench.folder, make_stage("where", "one"))
    assert "\n" not in str(raised.value)


def test_limits_are_known_before_the_queue_sees_the_job(bench):
    config = bench.configure(fit=ResourcesConfig(minutes=61))
    with pytest.raises(ConfigError, match="minutes=61: partition main has 60 minutes at most"):
        campaign.launch(config, bench.folder, [make_stage("where", "one")], whole_flow=False)
    config = bench.configure(fit=ResourcesConfig(gpus_per_node=3))
    with pytest.raises(ConfigError, match="gpus_per_node=3: partition main has 2 GPUs"):
        campaign.launch(config, bench.folder, [make_stage("where", "one")], whole_flow=False)
