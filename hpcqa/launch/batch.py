"""What a stage asks Slurm for: parameters of its batch file, checked before the queue sees them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcqa.config import ClusterConfig, Config, ResourcesConfig
from hpcqa.errors import ConfigError
from hpcqa.stages import Stage


def resources_of(config: Config, stage: Stage) -> ResourcesConfig:
    """What the configuration gives a stage; a stage that it does not name gets the smallest job."""
    return config.stage.get(stage.name, ResourcesConfig())


def num_jobs(config: Config, stage: Stage) -> int:
    """Jobs that a stage is split into: only stages made of independent tasks are."""
    return resources_of(config, stage).jobs if stage.ranks == "tasks" else 1


def check(config: Config, stage: Stage) -> None:
    """Compare what a stage asks for with the facts of the cluster.

    Raises:
        ConfigError: names the setting, what was asked, and what there is.
    """
    asked, cluster = resources_of(config, stage), config.cluster
    key = f"stage.{stage.name}"
    if stage.ranks == "one" and asked.nodes * asked.tasks_per_node > 1:
        raise ConfigError(
            f"{key}: {asked.nodes} nodes of {asked.tasks_per_node} tasks, but {stage.name} runs as one process; set "
            f"{key}.nodes=1 {key}.tasks_per_node=1."
        )
    if stage.ranks != "tasks" and asked.jobs > 1:
        raise ConfigError(f"{key}.jobs={asked.jobs}: {stage.name} runs as one job; widen it with {key}.nodes.")
    if asked.minutes * 60 <= cluster.signal_s:
        raise ConfigError(
            f"{key}.minutes={asked.minutes}: expected more than cluster.signal_s={cluster.signal_s} s, the time that a "
            "job needs to stop and be requeued."
        )
    _check_limits(key, asked, cluster)
    if stage.ranks == "torch" and 0 < asked.gpus_per_node < asked.tasks_per_node:
        raise ConfigError(
            f"{key}.gpus_per_node={asked.gpus_per_node} for {asked.tasks_per_node} tasks on a node: expected one GPU a "
            f"task; set {key}.tasks_per_node={asked.gpus_per_node}."
        )
    for name in ("sbatch_args", "srun_args"):
        for item in getattr(cluster, name):
            if name == "sbatch_args" and "=" not in item:
                raise ConfigError(f"cluster.sbatch_args: {item!r}: expected name=value, as in exclusive=user.")
            if name == "srun_args" and not item.startswith("-"):
                raise ConfigError(f"cluster.srun_args: {item!r}: expected an option of srun, as in --cpu-bind=none.")


def _check_limits(key: str, asked: ResourcesConfig, cluster: ClusterConfig) -> None:
    cores = asked.tasks_per_node * asked.cores_per_task
    limits = (
        ("tasks_per_node*cores_per_task", cores, cluster.cores_per_node or None, "cores on a node", ""),
        ("gpus_per_node", asked.gpus_per_node, cluster.gpus_per_node, "GPUs on a node", ""),
        ("memory_gb", asked.memory_gb, cluster.memory_per_node_gb or None, "GB on a node", ""),
        ("minutes", asked.minutes, cluster.max_minutes or None, "minutes at most", ""),
        ("jobs", asked.jobs, cluster.array_limit, "tasks in an array", "; each job takes a list of shards"),
    )
    for name, found, limit, what, advice in limits:
        if limit is not None and limit >= 0 and found > limit:
            raise ConfigError(f"{key}.{name}={found}: cluster {cluster.name} has {limit} {what}{advice}.")


def parameters(config: Config, stage: Stage, run: Path, *, code: Path | None, after: Sequence[str]) -> dict[str, Any]:
    """The parameters of submitit's Slurm executor for one stage.

    Args:
        code: a folder with the snapshot of the package that the job runs; None: what is installed.
        after: ids of jobs that must end well before.
    """
    asked, cluster = resources_of(config, stage), config.cluster
    values: dict[str, Any] = {
        "job_name": f"hpcqa-{stage.name}",
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks_per_node,
        "cpus_per_task": asked.cores_per_task,
        "time": asked.minutes,
        "signal_delay_s": cluster.signal_s,
        "array_parallelism": cluster.array_parallelism,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": setup_lines(cluster, stage, code),
        "srun_args": srun_arguments(asked, cluster, stage),
        "additional_parameters": {"requeue": True, "comment": str(run)} | sbatch_options(cluster),
    }
    for name in ("account", "partition", "qos", "constraint"):
        values[name] = getattr(asked, name) or getattr(cluster, name) or None
    if asked.gpus_per_node:
        values["gpus_per_node"] = asked.gpus_per_node
    if asked.memory_gb:
        values["mem"] = f"{asked.memory_gb}GB"
    if after:
        values["dependency"] = "afterok:" + ":".join(after)
    values = {name: value for name, value in values.items() if value is not None}
    # submitit would name its own key, which clusters that track keys refuse.
    return values | {"wckey": None}


def sbatch_options(cluster: ClusterConfig) -> dict[str, str]:
    """cluster.sbatch_args as a mapping."""
    return {name.lstrip("-"): value for name, _, value in (item.partition("=") for item in cluster.sbatch_args)}


def srun_arguments(asked: ResourcesConfig, cluster: ClusterConfig, stage: Stage) -> list[str]:
    """What srun is told: since Slurm 22.05 it does not inherit the cores of a task from sbatch."""
    arguments = [f"--cpus-per-task={asked.cores_per_task}", *cluster.srun_args]
    if stage.ranks == "mpi" and cluster.mpi:
        arguments.append(f"--mpi={cluster.mpi}")
    if stage.ranks in ("mpi", "torch"):
        arguments.append("--kill-on-bad-exit=1")
    return arguments


# MPICH names its shared memory by job and step. A requeued job would begin with step 0 again, and meet what its killed
# ranks left behind on the same node: "failed to unpack address" (mpich 5.0.2 with pmi2). Empty steps count it up first.
NEW_STEP = "for _ in $(seq ${SLURM_RESTART_COUNT:-0}); do srun --ntasks=1 --nodes=1 true; done"


def setup_lines(cluster: ClusterConfig, stage: Stage, code: Path | None) -> list[str]:
    """Shell lines before srun: the cluster's own, threads, and where the code is."""
    lines = [*cluster.setup, "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OMP_WAIT_POLICY=PASSIVE"]
    if stage.ranks == "mpi":
        lines.append(NEW_STEP)
    if code is not None:
        # Safe path: `python -m` would put the directory of submission before the snapshot.
        lines.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1")
    return lines
