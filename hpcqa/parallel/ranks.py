"""Who am I among how many, and with how many cores: a pure parse of an environment mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcqa.errors import EnvironmentProblem


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. The serial case is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = "inline"

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """The indices of `count` pieces of work that are this rank's: every world_size-th, starting at rank."""
        return range(self.rank, count, self.world_size)


@dataclass(frozen=True)
class Launcher:
    """Which variables a launcher sets: rank, world size, local rank, ranks on this node."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


# In order of precedence: what was started last knows best, so torchrun or mpiexec inside a Slurm step come before the
# step. SLURM_PROCID alone is set in a batch script too; only a step sets SLURM_STEP_NUM_TASKS.
TORCHRUN = Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LOCAL = Launcher("local", "HPCQA_RANK", "HPCQA_WORLD_SIZE", "HPCQA_LOCAL_RANK", "HPCQA_LOCAL_WORLD_SIZE")
MPICH = Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
OPENMPI = Launcher(
    "mpiexec",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
SLURM = Launcher("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
LAUNCHERS = (TORCHRUN, LOCAL, MPICH, OPENMPI, SLURM)


def detect(environ: Mapping[str, str]) -> Ranks:
    """Ranks from the variables of torchrun, hpcqa's own launcher, mpiexec or a Slurm step; otherwise serial.

    Raises:
        EnvironmentProblem: a launcher's variables are there in part or contradict each other.
    """
    for launcher in LAUNCHERS:
        # srun --mpi=pmi2 sets PMI_RANK as well, without the local ones: then the Slurm step is the launcher.
        decisive = launcher.local_world_size if launcher is MPICH else launcher.world_size
        if launcher.rank in environ and decisive in environ:
            return _parse(environ, launcher)
    return Ranks()


def _parse(environ: Mapping[str, str], launcher: Launcher) -> Ranks:
    rank = _number(environ, launcher.rank, launcher.name)
    world_size = _number(environ, launcher.world_size, launcher.name)
    local_rank = _number(environ, launcher.local_rank, launcher.name)
    if launcher is SLURM:
        counts = tasks_per_node(environ.get(launcher.local_world_size, ""))
        node = _number(environ, "SLURM_NODEID", launcher.name) if len(counts) > 1 else 0
        local_world_size = counts[node] if node < len(counts) else 0
    else:
        local_world_size = _number(environ, launcher.local_world_size, launcher.name)
    if rank >= world_size:
        raise EnvironmentProblem(
            f"{launcher.rank}={rank} but {launcher.world_size}={world_size}: the launcher contradicts itself; "
            "start again from a clean shell."
        )
    if local_rank >= local_world_size:
        raise EnvironmentProblem(
            f"{launcher.local_rank}={local_rank} but {launcher.local_world_size}="
            f"{environ.get(launcher.local_world_size)!r}: the launcher contradicts itself; start again from a clean "
            "shell."
        )
    return Ranks(rank, world_size, local_rank, local_world_size, launcher.name)


def _number(environ: Mapping[str, str], name: str, launcher: str) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise EnvironmentProblem(f"{name}={text!r}: expected a number from {launcher}; start with its own launcher.")
    return int(text)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's way to write tasks a node: "2(x3),1" is [2, 2, 2, 1].

    Raises:
        EnvironmentProblem: not such a list.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part)
        if match is None:
            raise EnvironmentProblem(f"tasks per node {text!r}: expected a list like 2(x3),1; start with srun.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def rendezvous(environ: Mapping[str, str], ranks: Ranks, resolves: Callable[[str], bool]) -> dict[str, str]:
    """The variables by which torch.distributed finds its peers inside a Slurm step.

    The address is the step's first node, which holds rank 0; where node names don't resolve (they would hang), that of
    the node from which the step was launched, which is the same one in a batch job. The port depends on the job, its
    restarts and the step, so that a requeued job never meets what is left of itself.

    Args:
        resolves: whether a host name can be looked up.

    Raises:
        EnvironmentProblem: not inside a Slurm step, or no address.
    """
    first = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    address = first if first and resolves(first) else environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not address:
        raise EnvironmentProblem(
            f"SLURM_STEP_NODELIST={environ.get('SLURM_STEP_NODELIST', '')!r}: no address of rank 0's node; start this "
            "stage with srun or torchrun."
        )
    job = _number(environ, "SLURM_JOB_ID", "slurm")
    restart = int(environ.get("SLURM_RESTART_COUNT") or 0)
    step = int(environ.get("SLURM_STEP_ID") or 0)
    # Below Linux's ephemeral ports (32768 and up).
    port = 15000 + (job * 31 + restart * 997 + step * 7) % 15000
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: "nid[001003-001007,2],x1" is nid001003."""
    match = re.match(r"([^,\[]+)(?:\[([^\]-]+?)[-,\]])?", nodes)
    return "" if match is None else match[1] + (match[2] or "")


def cores_of_rank(environ: Mapping[str, str], ranks: Ranks, affinity: int) -> int:
    """How many cores this rank may keep busy.

    Args:
        affinity: cores that the process may run on.
    """
    given = environ.get("SLURM_CPUS_PER_TASK") or environ.get("HPCQA_CORES") or ""
    if given.isdigit() and int(given) > 0:
        return min(int(given), affinity)
    on_node = environ.get("SLURM_CPUS_ON_NODE", "")
    if ranks.launcher == "slurm" and on_node.isdigit():
        return max(1, min(affinity, int(on_node) // ranks.local_world_size))
    return max(1, affinity // ranks.local_world_size)


def usable_cores() -> int:
    """How many cores this process may keep busy, its share where ranks share a node."""
    return cores_of_rank(os.environ, detect(os.environ), len(os.sched_getaffinity(0)))


def thread_variables(environ: Mapping[str, str], cores: int) -> dict[str, str]:
    """Settings that keep numerical libraries within a rank's cores; a smaller number that someone set stays.

    Waiting threads sleep instead of spinning: two ranks that spin on shared cores were measured 3 to 5 times slower.
    """
    values = {"OMP_WAIT_POLICY": environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        before = environ.get(name, "")
        values[name] = str(min(cores, int(before))) if before.isdigit() and int(before) > 0 else str(cores)
    return values
