"""Settings of where and how wide a stage runs."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting


@dataclass(frozen=True)
class LaunchConfig:
    kind: str = setting(
        "inline",
        "In this process, as local processes, or through Slurm.",
        choices=("inline", "local", "slurm"),
        output=False,
    )
    tasks: int = setting(1, "Ranks or tasks of a stage that can be spread.", low=1, high=100000, output=False)


@dataclass(frozen=True)
class ClusterConfig:
    name: str = setting("generic", "Name of the cluster's facts in conf/cluster/.", output=False)
    account: str = setting("", "Account to charge.", output=False)
    partition: str = setting("", "Partition.", output=False)
    qos: str = setting("", "Quality of service.", output=False)
    constraint: str = setting("", "Node constraint.", output=False)
    cores_per_node: int = setting(0, "Cores of a node.", low=0, output=False)
    gpus_per_node: int = setting(0, "GPUs of a node.", low=0, output=False)
    memory_per_node_gb: int = setting(0, "Memory of a node.", unit="GB", low=0, output=False)
    array_limit: int = setting(1000, "Most tasks in one job array.", low=1, output=False)


@dataclass(frozen=True)
class ResourcesConfig:
    nodes: int = setting(1, "Nodes.", low=1, output=False)
    tasks_per_node: int = setting(1, "Tasks on a node.", low=1, output=False)
    cores_per_task: int = setting(1, "Cores of a task.", low=1, output=False)
    gpus_per_node: int = setting(0, "GPUs on a node.", low=0, output=False)
    minutes: int = setting(60, "Time limit.", unit="min", low=1, output=False)
