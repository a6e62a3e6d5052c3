from __future__ import annotations

import dataclasses
import re

import pytest

from hpcqa.config import ClusterConfig, Config, LaunchConfig, ResourcesConfig
from hpcqa.errors import ConfigError, DataError, EnvironmentProblem
from hpcqa.launch import campaign, failures, jobs, queue
from hpcqa.launch.campaign import Step, plan
from hpcqa.launch.jobs import Submission
from hpcqa.launch.queue import HELD, JobState, Partition
from hpcqa.stages import STAGES, stage

MANIFEST, SHARD, CALIBRATE, PRETRAIN = STAGES[1:5]
FLOW = [MANIFEST, SHARD, CALIBRATE, PRETRAIN]


def actions(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.stage.name, step.job or step.action) for step in steps]


def test_everything_is_submitted_when_nothing_is_queued():
    steps, doomed = plan(FLOW, {})
    assert actions(steps) == [(entry.name, "submit") for entry in FLOW]
    assert doomed == []


def test_what_runs_or_waits_is_kept():
    known = {
        "shard": [JobState("7", "0", "RUNNING"), JobState("7", "1", "PENDING")],
        "calibrate": [JobState("8", "", "PENDING")],
    }
    steps, doomed = plan(FLOW[1:], known)
    assert actions(steps) == [("shard", "7"), ("calibrate", "8"), ("pretrain", "submit")]
    assert doomed == []


def test_dependents_of_a_failed_stage_are_replaced():
    known = {
        "calibrate": [JobState("8", "", "PENDING", HELD)],
        "pretrain": [JobState("9", "", "PENDING", "Dependency")],
    }
    steps, doomed = plan(FLOW[1:], known)
    assert actions(steps) == [("shard", "submit"), ("calibrate", "submit"), ("pretrain", "submit")]
    assert doomed == ["8", "9"]


@pytest.fixture
def slurm(monkeypatch):
    """A Slurm that takes every job and says what it is told to say."""

    class Slurm:
        def __init__(self):
            self.submitted: list[tuple[str, list[str]]] = []
            self.cancelled: list[str] = []
            self.states: dict[str, list[JobState]] = {}

        def submit(self, config, folder, entry, *, after):
            self.submitted = [*self.submitted, (entry.name, list(after))]
            submission = Submission(entry.name, str(100 + len(self.submitted)), 1, 0.0)
            jobs.record(folder.path, submission)
            return submission

    fake = Slurm()
    monkeypatch.setattr(campaign, "submit", fake.submit)
    monkeypatch.setattr(queue, "need_slurm", lambda: None)
    monkeypatch.setattr(queue, "available", lambda: True)
    kinds = [Partition("main", True, 60, 64, 256.0, 4), Partition("long", False, None, 64, 256.0, 0)]
    monkeypatch.setattr(queue, "partitions", lambda: {kind.name: kind for kind in kinds})
    monkeypatch.setattr(queue, "states", lambda ids: {job: fake.states[job] for job in ids if job in fake.states})
    monkeypatch.setattr(queue, "cancel", lambda ids: setattr(fake, "cancelled", [*fake.cancelled, *ids]))
    return fake


def test_a_chain_of_jobs(folder, slurm):
    said = campaign.launch(Config(), folder, FLOW, whole_flow=True)
    assert slurm.submitted == [("manifest", []), ("shard", ["101"]), ("calibrate", ["102"]), ("pretrain", ["103"])]
    assert said[1] == "shard: job 102, after 101"
    assert "hpcqa status" in said[-1]


def test_again_after_a_failure_only_what_is_missing(folder, slurm, monkeypatch):
    campaign.launch(Config(), folder, FLOW, whole_flow=True)
    slurm.states = {
        "101": [JobState("101", "", "COMPLETED")],
        "102": [JobState("102", "", "FAILED")],
        "103": [JobState("103", "", "PENDING", HELD)],
        "104": [JobState("104", "", "PENDING", "Dependency")],
    }
    slurm.submitted = []
    monkeypatch.setattr(campaign.progress, "missing", lambda config, folder, stages: FLOW[1:])
    campaign.launch(Config(), folder, FLOW, whole_flow=True)
    assert [name for name, _ in slurm.submitted] == ["shard", "calibrate", "pretrain"]
    assert slurm.cancelled == ["103", "104"]


def test_nothing_to_do(folder, slurm, monkeypatch):
    monkeypatch.setattr(campaign.progress, "missing", lambda config, folder, stages: [])
    assert "every stage is done" in campaign.launch(Config(), folder, FLOW, whole_flow=True)[0]


def test_a_single_stage_that_is_queued_already(folder, slurm):
    campaign.launch(Config(), folder, [SHARD], whole_flow=False)
    slurm.states = {"101": [JobState("101", "0", "RUNNING")]}
    with pytest.raises(EnvironmentProblem, match=r"in use by job 101 \(shard, running\)"):
        campaign.launch(Config(), folder, [SHARD], whole_flow=False)
    with pytest.raises(EnvironmentProblem, match=r"in use by job 101"):
        jobs.refuse_live(folder.path)


def test_nothing_is_submitted_when_a_later_stage_asks_too_much(folder, slurm):
    config = Config(
        cluster=ClusterConfig(gpus_per_node=4), stage={"pretrain": ResourcesConfig(gpus_per_node=8, tasks_per_node=8)}
    )
    with pytest.raises(ConfigError, match="has 4 GPUs"):
        campaign.launch(config, folder, FLOW, whole_flow=True)
    assert slurm.submitted == []


def test_an_unknown_partition(folder, slurm):
    config = Config(cluster=ClusterConfig(partition="mian"))
    with pytest.raises(ConfigError, match=r"cluster\.partition=mian: no such partition; this cluster has main, long"):
        campaign.launch(config, folder, FLOW, whole_flow=True)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"gpus_per_node": 8}, "stage.shard.gpus_per_node=8: partition main has 4 GPUs"),
        ({"minutes": 90}, "stage.shard.minutes=90: partition main has 60 minutes at most"),
        ({"partition": "long", "gpus_per_node": 1}, "partition long has 0 GPUs"),
        ({"cores_per_task": 128}, "partition main has 64 cores"),
        ({"memory_gb": 512}, "partition main has 256 GB"),
    ],
)
def test_more_than_the_partition_has(folder, slurm, resources, said):
    config = Config(stage={"shard": ResourcesConfig(**resources)})
    with pytest.raises(ConfigError, match=said):
        campaign.launch(config, folder, FLOW, whole_flow=True)
    assert slurm.submitted == []


def test_no_slurm(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="no sbatch on PATH"):
        campaign.launch(Config(), folder, FLOW, whole_flow=True)


def test_dry_run_needs_no_slurm_and_shows_the_chain(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    texts = campaign.launch(Config(launch=LaunchConfig(dry_run=True)), folder, FLOW, whole_flow=True)
    assert len(texts) == 4
    assert re.search(r"--dependency='?afterok:<manifest>", texts[1])


def test_waiting_ends_with_the_failing_rank_s_own_sentence(folder, slurm):
    campaign.launch(Config(), folder, FLOW[:2], whole_flow=True)
    slurm.states = {
        "101": [JobState("101", "", "FAILED", "exit 3:0")],
        "102": [JobState("102", "", "PENDING", HELD)],
    }
    with pytest.raises(EnvironmentProblem, match="manifest: job 101 ended as FAILED"):
        campaign.wait(folder, ["manifest", "shard"], every_s=0)
    failures.record(folder.output("logs"), failures.Failure("manifest", 0, "table.fits: no column expnum.", 3))
    with pytest.raises(DataError, match="no column expnum"):
        campaign.wait(folder, ["manifest", "shard"], every_s=0)


def test_waiting_looks_again_until_all_have_ended(folder, slurm):
    campaign.launch(Config(), folder, [SHARD], whole_flow=False)
    slurm.states = {"101": [JobState("101", "", "RUNNING")]}
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            slurm.states = {"101": [JobState("101", "", "COMPLETED")]}

    campaign.wait(folder, ["shard"], every_s=5, sleep=sleep)
    assert naps == [5, 5, 5]


def test_cancel(folder, slurm):
    assert "no job" in campaign.cancel(folder)[0]
    campaign.launch(Config(), folder, FLOW[:2], whole_flow=True)
    slurm.states = {"101": [JobState("101", "", "COMPLETED")], "102": [JobState("102", "", "RUNNING")]}
    assert campaign.cancel(folder) == ["shard: cancelled job 102"]
    assert slurm.cancelled == ["102"]


def test_records_survive_and_damage_is_named(folder):
    jobs.record(folder.path, Submission("shard", "5", 3, 1.0))
    jobs.record(folder.path, Submission("shard", "6", 3, 2.0))
    assert jobs.latest(folder.path)["shard"].job == "6"
    (folder.path / "jobs.json").write_text('[{"stage": "shard"}]')
    with pytest.raises(DataError, match="remove it if no job"):
        jobs.recorded(folder.path)


def test_resources_of_an_unnamed_stage_are_the_smallest():
    assert dataclasses.asdict(campaign.batch.resources_of(Config(), stage("fit")))["nodes"] == 1
