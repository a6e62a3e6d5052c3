"""Preemption, requeue, kills, and what a failed stage holds back."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from hpcqa.config import ClusterConfig, ResourcesConfig
from hpcqa.launch import campaign, jobs, progress, status
from hpcqa.launch.submit import submit
from tests.slurm.conftest import cluster_script, make_stage, wait_for
from tests.slurm.test_shapes import WANTED

# A rank opens its log just before it listens for signals; one that comes earlier ends it.
LISTENING_S = 0.3


def test_training_goes_on_exactly_after_preemption(bench):
    resources = ResourcesConfig(nodes=2, tasks_per_node=2, gpus_per_node=2)
    config = bench.configure(pretrain=resources)
    submission = submit(config, bench.folder, make_stage("train", "torch"))
    bench.wait_state(submission, "RUNNING")
    logs = [bench.folder.output("logs") / f"pretrain-{rank}.log" for rank in range(4)]
    wait_for(lambda: all(log.exists() for log in logs), bench.cluster)
    time.sleep(LISTENING_S)
    wait_for(lambda: (bench.path / "state.json").exists() or signal_step(submission), bench.cluster)
    assert bench.wait_through_requeues(submission) == ["COMPLETED"]
    state = json.loads((bench.path / "state.json").read_text())
    value = 1.0
    for step in range(30):
        value = value * 1.01 + sum(rank + step for rank in range(4))
    assert state == {"step": 30, "value": value, "starts": 2}


def signal_step(submission) -> bool:
    """Ask a job's ranks to stop, as Slurm does before a time limit."""
    subprocess.run(["scancel", "--signal=USR2", submission.job], check=False)
    return False


def test_an_array_is_requeued_and_ends_with_the_same_pieces(bench):
    config = bench.configure(shard=ResourcesConfig(jobs=2))
    submission = submit(config, bench.folder, make_stage("slow", "tasks"))
    wait_for(lambda: len(bench.pieces()) >= 2, bench.cluster)
    signal_step(submission)
    assert bench.wait_through_requeues(submission) == ["COMPLETED"] * 2
    assert bench.pieces() == WANTED
    assert len((bench.path / "starts").read_text().split()) >= 3


def test_mpi_ranks_are_requeued_together(bench):
    config = bench.configure(embed=ResourcesConfig(nodes=2, tasks_per_node=2))
    submission = submit(config, bench.folder, make_stage("slow", "mpi"))
    wait_for(lambda: len(bench.pieces()) >= 4, bench.cluster)
    signal_step(submission)
    assert bench.wait_through_requeues(submission) == ["COMPLETED"]
    assert bench.pieces() == WANTED


@pytest.mark.slow
def test_the_time_limit_requeues(bench, monkeypatch):
    """Slurm looks every half minute whose time is nearly up, and then sends the signal that leads to a requeue."""
    monkeypatch.setenv("PIECE_S", "3")
    config = bench.configure(ClusterConfig(signal_s=59), shard=ResourcesConfig(minutes=1))
    submission = submit(config, bench.folder, make_stage("slow", "tasks"))
    assert bench.wait_through_requeues(submission) == ["COMPLETED"]
    assert bench.pieces() == WANTED
    assert restarts(submission.job) >= 1


def restarts(job: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return int(shown.split("Restarts=")[1].split()[0])


def test_a_cancelled_job_stays_cancelled(bench):
    config = bench.configure()
    submission = submit(config, bench.folder, make_stage("slow", "tasks"))
    wait_for(lambda: len(bench.pieces()) >= 1, bench.cluster)
    assert campaign.cancel(bench.folder) == [f"shard: cancelled job {submission.job}"]
    assert bench.wait(submission) == ["CANCELLED"]
    assert restarts(submission.job) == 0


def test_a_killed_task_fails_its_job_and_again_does_the_rest(bench):
    config = bench.configure(shard=ResourcesConfig(jobs=3))
    stage = make_stage("kill_one", "tasks")
    first = submit(config, bench.folder, stage)
    assert sorted(bench.wait(first)) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert "1 failed" in status.status_text(config, bench.folder)
    (bench.path / "mended").touch()
    assert bench.wait(submit(config, bench.folder, stage)) == ["COMPLETED"] * 3
    assert bench.pieces() == WANTED


def test_a_failed_stage_holds_its_dependents_until_it_is_mended(bench, monkeypatch):
    config = bench.configure()
    flow = [make_stage("refuse_once", "one", "manifest"), make_stage("where", "one", "calibrate")]
    monkeypatch.setattr(progress, "missing", lambda config, folder, stages: list(stages))
    campaign.launch(config, bench.folder, flow, whole_flow=True)
    first, second = jobs.latest(bench.path)["manifest"], jobs.latest(bench.path)["calibrate"]
    assert bench.wait(first) == ["FAILED"]
    wait_for(lambda: bench.states(second.job)[0].is_held, bench.cluster)
    text = status.status_text(config, bench.folder)
    assert "1 held" in text
    assert "image.fits: truncated" in text
    (bench.path / "mended").touch()
    campaign.launch(config, bench.folder, flow, whole_flow=True)
    assert bench.wait(jobs.latest(bench.path)["calibrate"]) == ["COMPLETED"]
    assert bench.states(second.job)[0].state == "CANCELLED"
    assert (bench.path / "passed").exists()
    assert "truncated" not in status.status_text(config, bench.folder)


@pytest.mark.slow
def test_a_node_dies_and_comes_back(bench):
    config = bench.configure()
    submission = submit(config, bench.folder, make_stage("slow", "tasks"))
    wait_for(lambda: len(bench.pieces()) >= 2, bench.cluster)
    node = int(bench.states(submission.job)[0].nodes[1:])
    cluster_script.kill_node(bench.cluster, node)
    wait_for(lambda: restarts(submission.job) >= 1, bench.cluster, 90)
    cluster_script.start_node(bench.cluster, node)
    assert bench.wait_through_requeues(submission) == ["COMPLETED"]
    assert bench.pieces() == WANTED
    cluster_script.wait_for_nodes(bench.cluster, 3)
