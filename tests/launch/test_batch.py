"""Batch files: golden texts, and what is refused before the queue sees it."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from hpcqa import compose
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import ClusterConfig, Config, ResourcesConfig
from hpcqa.errors import ConfigError
from hpcqa.launch import batch, submit
from hpcqa.stages import STAGES, stage

GOLDEN = Path(__file__).parent.parent / "golden"


def text_of(cluster: str, name: str, after: tuple[str, ...] = ()) -> str:
    """The batch file with what differs between checkouts and machines replaced."""
    config = compose.compose([f"cluster={cluster}", "run=/scratch/my runs/dr11", "launch=slurm"])
    config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, account="m0000"))
    text = submit.batch_text(config, RunFolder(Path(config.run)), stage(name), after=after)
    text = re.sub(r"/code/[0-9a-f]{16}'", "/code/DIGEST'", text)
    return re.sub(r"\S*/bin/python\S*", "PYTHON", text)


@pytest.mark.parametrize(
    ("cluster", "name", "after"),
    [
        ("generic", "shard", ()),
        ("perlmutter_cpu", "shard", ("11",)),
        ("perlmutter_gpu", "pretrain", ("12", "13")),
        ("perlmutter_cpu", "embed", ()),
        ("generic", "fit", ("5",)),
    ],
)
def test_golden_batch_files(cluster, name, after):
    golden = GOLDEN / f"{cluster}-{name}.sbatch"
    text = text_of(cluster, name, after)
    if os.environ.get("HPCQA_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


CLUSTERS = sorted(path.stem for path in (submit.PACKAGE.parent / "conf" / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_cluster_and_stage_passes_its_own_checks(cluster):
    config = compose.compose([f"cluster={cluster}"])
    for entry in STAGES:
        batch.check(config, entry)


def config_with(name: str, resources: ResourcesConfig, cluster: ClusterConfig) -> Config:
    return Config(stage={name: resources}, cluster=cluster)


NODE = ClusterConfig(name="here", cores_per_node=64, gpus_per_node=4, memory_per_node_gb=256, max_minutes=120)


@pytest.mark.parametrize(
    ("name", "resources", "said"),
    [
        ("pretrain", {"gpus_per_node": 8}, "stage.pretrain.gpus_per_node=8: cluster here has 4 GPUs on a node"),
        ("shard", {"cores_per_task": 65}, r"cores_per_task=65: cluster here has 64 cores"),
        ("shard", {"tasks_per_node": 33, "cores_per_task": 2}, r"=66: cluster here has 64 cores"),
        ("shard", {"memory_gb": 300}, "memory_gb=300: cluster here has 256 GB"),
        ("shard", {"minutes": 121}, "minutes=121: cluster here has 120 minutes"),
        ("shard", {"minutes": 2}, "minutes=2: expected more than cluster.signal_s=120"),
        ("shard", {"jobs": 1001}, "jobs=1001: cluster here has 1000 tasks in an array; each job takes a list"),
        ("embed", {"jobs": 2}, "embed runs as one job"),
        ("fit", {"nodes": 2}, "fit runs as one process"),
        ("pretrain", {"tasks_per_node": 4, "gpus_per_node": 2}, "expected one GPU a task"),
    ],
)
def test_more_than_there_is(name, resources, said):
    with pytest.raises(ConfigError, match=re.escape(said) if "(" not in said else said):
        batch.check(config_with(name, ResourcesConfig(**resources), NODE), stage(name))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("sbatch_args", ["exclusive"], "name=value"), ("srun_args", ["pmi2"], "an option of srun")],
)
def test_malformed_arguments(field, value, said):
    cluster = dataclasses.replace(NODE, **{field: value})
    with pytest.raises(ConfigError, match=said):
        batch.check(Config(cluster=cluster), stage("shard"))


def test_a_cluster_of_unknown_size_leaves_the_limits_to_slurm():
    batch.check(config_with("pretrain", ResourcesConfig(gpus_per_node=16), ClusterConfig()), stage("pretrain"))


def test_a_stage_may_go_elsewhere_than_the_rest():
    config = config_with("pretrain", ResourcesConfig(constraint="gpu", qos="debug"), ClusterConfig(constraint="cpu"))
    asked = batch.parameters(config, stage("pretrain"), Path("/r"), code=None, after=[])
    assert (asked["constraint"], asked["qos"]) == ("gpu", "debug")
    assert batch.parameters(config, stage("fit"), Path("/r"), code=None, after=[])["constraint"] == "cpu"


def test_nothing_is_written_by_a_dry_run(tmp_path):
    config = Config(run=str(tmp_path / "new"))
    submit.batch_text(config, RunFolder(tmp_path / "new"), stage("shard"))
    assert not (tmp_path / "new").exists()
