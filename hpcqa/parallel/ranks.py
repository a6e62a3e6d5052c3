"""Who am I among how many: a pure parse of an environment mapping."""

from __future__ import annotations

from collections.abc import Mapping
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


# Which variables each launcher sets; the step's own first, so that an sbatch around torchrun does not mislead.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
HPCQA = ("HPCQA_RANK", "HPCQA_WORLD_SIZE", "HPCQA_LOCAL_RANK", "HPCQA_LOCAL_WORLD_SIZE")
SLURM_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


def detect(environ: Mapping[str, str]) -> Ranks:
    """Ranks from torchrun's variables, hpcqa's own, or a Slurm step's; otherwise serial.

    Raises:
        EnvironmentProblem: a launcher's variables are there in part or contradict each other.
    """
    if TORCHRUN[0] in environ and TORCHRUN[1] in environ:
        return _parse(environ, TORCHRUN, "torchrun")
    if HPCQA[0] in environ:
        return _parse(environ, HPCQA, "local")
    if SLURM_STEP[0] in environ and SLURM_STEP[1] in environ:
        return _parse(environ, SLURM_STEP, "slurm")
    return Ranks()


def _parse(environ: Mapping[str, str], names: tuple[str, str, str, str], launcher: str) -> Ranks:
    values = []
    for name in names:
        text = environ.get(name, "")
        # Slurm writes tasks a node as "2(x3)" or "2,1"; the first number is right for every node but the last.
        digits = text.split("(")[0].split(",")[0]
        if not digits.isdigit():
            raise EnvironmentProblem(
                f"{name}={text!r}: expected a number from {launcher}; start with its own launcher."
            )
        values.append(int(digits))
    rank, world_size, local_rank, local_world_size = values
    if rank >= world_size:
        raise EnvironmentProblem(f"{names[0]}={rank} but {names[1]}={world_size}: the launcher contradicts itself.")
    return Ranks(rank, world_size, local_rank, local_world_size, launcher)
