"""Settings of where and how wide a stage runs; none of them changes what ends on disk."""

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
    tasks: int = setting(1, "Local processes of a stage that can be spread.", low=1, high=4096, output=False)
    dry_run: bool = setting(False, "Print the batch files and submit nothing.", output=False)
    wait: bool = setting(False, "Wait until the submitted jobs have ended.", output=False)
    poll: float = setting(10.0, "Time between two looks at the queue while waiting.", unit="s", low=0.1, output=False)
    snapshot: bool = setting(True, "Give queued jobs a copy of the code as it is at submission.", output=False)


@dataclass(frozen=True)
class ClusterConfig:
    """The facts of a cluster; 0 or empty means unknown or not needed there."""

    name: str = setting("generic", "Name of the cluster.", output=False)
    account: str = setting("", "Account to charge.", output=False)
    partition: str = setting("", "Partition.", output=False)
    qos: str = setting("", "Quality of service.", output=False)
    constraint: str = setting("", "Node constraint.", output=False)
    cores_per_node: int = setting(0, "Cores of a node.", low=0, output=False)
    gpus_per_node: int = setting(-1, "GPUs of a node; -1: unknown.", low=-1, output=False)
    memory_per_node_gb: int = setting(0, "Memory of a node.", unit="GB", low=0, output=False)
    max_minutes: int = setting(0, "Longest time limit of a job.", unit="min", low=0, output=False)
    array_limit: int = setting(1000, "Most tasks in one job array.", low=1, output=False)
    array_parallelism: int = setting(256, "Most tasks of one job array that run at the same time.", low=1, output=False)
    signal_s: int = setting(
        120, "How long before its end a job is asked to stop and requeued.", unit="s", low=1, output=False
    )
    mpi: str = setting("pmi2", "srun's --mpi for MPI stages, as the MPI library speaks it.", output=False)
    srun_args: list[str] = setting(["--cpu-bind=none"], "Further arguments of srun.", output=False)
    sbatch_args: list[str] = setting([], "Further options of sbatch, as name=value.", output=False)
    setup: list[str] = setting([], "Shell lines before srun, e.g. module load.", output=False)


@dataclass(frozen=True)
class ResourcesConfig:
    """What one stage asks for; empty text takes the cluster's own."""

    jobs: int = setting(1, "Jobs in the array of a stage that is spread over tasks.", low=1, output=False)
    nodes: int = setting(1, "Nodes of a job.", low=1, output=False)
    tasks_per_node: int = setting(1, "Tasks on a node.", low=1, output=False)
    cores_per_task: int = setting(1, "Cores of a task.", low=1, output=False)
    gpus_per_node: int = setting(0, "GPUs on a node.", low=0, output=False)
    memory_gb: int = setting(0, "Memory on a node; 0: what Slurm gives by default.", unit="GB", low=0, output=False)
    minutes: int = setting(60, "Time limit.", unit="min", low=1, output=False)
    account: str = setting("", "Account, if not the cluster's.", output=False)
    partition: str = setting("", "Partition, if not the cluster's.", output=False)
    qos: str = setting("", "Quality of service, if not the cluster's.", output=False)
    constraint: str = setting("", "Node constraint, if not the cluster's.", output=False)
