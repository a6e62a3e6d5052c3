"""All that a run must remember, in one object; written aside, renamed, kept by a policy.

`RUN/checkpoints/DIGEST/step-00000100/` holds torch.distributed.checkpoint's files (tensors, loadable on any number of
ranks) and meta.json (counters). Random numbers are functions of the seed and the step, and the position in the data is
the step, so nothing else is needed to go on bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from hpcqa.artifacts.files import read_json, sync, write_json
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.parallel.torchdist import World
from hpcqa.ssl.student_teacher import Learner, Teacher

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def one_process_said() -> Iterator[None]:
    """Without torch's warning that nothing is distributed, which `no_dist` has said already (torch 2.13)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


META = "meta.json"


@dataclass
class Counters:
    """What is not tensors: the next step, steps skipped (in all, in a row), the best score and its step."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    images: int = 0
    best: float = -1.0
    best_step: int = -1


@dataclass
class TrainState:
    """Everything that training changes."""

    student: Learner
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    counters: Counters = field(default_factory=Counters)

    def tensors(self) -> dict[str, Any]:
        """Names and tensors as torch.distributed.checkpoint saves and loads them."""
        student, optimizer = get_state_dict(self.student, self.optimizer, options=StateDictOptions())
        return {
            "student": student,
            "optimizer": optimizer,
            "teacher": self.teacher.network.state_dict(),
            "centres": self.teacher.centres,
        }

    def put(self, tensors: dict[str, Any]) -> None:
        set_state_dict(
            self.student, self.optimizer, model_state_dict=tensors["student"], optim_state_dict=tensors["optimizer"]
        )
        self.teacher.network.load_state_dict(tensors["teacher"])
        self.teacher.centres = tensors["centres"]


class Checkpoints:
    """The checkpoints of one configuration in a run folder."""

    def __init__(self, folder: Path, world: World, *, keep: int, identity: dict[str, Any]) -> None:
        """Args: `identity` is the architecture; a checkpoint of another one is refused."""
        self.folder, self.world, self.keep, self.identity = folder, world, keep, identity

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = self.folder.glob(f"step-*/{META}")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def save(self, state: TrainState) -> None:
        """Write the state of all ranks aside, then give it its name; all ranks call this together.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        path = self.path(state.counters.step)
        aside = path.with_name(f".{path.name}.tmp")
        try:
            if self.world.is_first:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            self.world.barrier()
            with one_process_said():
                dcp.state_dict_saver.save(state.tensors(), checkpoint_id=aside, no_dist=self.world.size == 1)
            if self.world.is_first:
                write_json(aside / META, {"counters": asdict(state.counters), "identity": self.identity})
                shutil.rmtree(path, ignore_errors=True)
                aside.rename(path)
                sync(self.folder)
                self._prune(state.counters.best_step)
        except (OSError, CheckpointException) as error:
            if self.world.is_first:
                shutil.rmtree(aside, ignore_errors=True)
            # Of a full disk torch only says that its file's position is not what it expected (torch 2.13).
            said = error.strerror if isinstance(error, OSError) else "the disk is full or refuses"
            raise EnvironmentProblem(f"{path}: cannot be written ({said}); free some space and run again.") from error
        self.world.barrier()

    def _prune(self, best_step: int) -> None:
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != best_step:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def load_latest(self, state: TrainState) -> bool:
        """Take up the newest checkpoint, if there is one; all ranks call this together.

        Raises:
            DataError: it is damaged, or of another architecture.
        """
        steps = self.world.share(self.steps())
        if not steps:
            return False
        self.load(state, steps[-1])
        return True

    def load(self, state: TrainState, step: int) -> None:
        """Take up the checkpoint of a step; see `load_latest`."""
        path = self.path(step)
        meta = read_json(path / META)
        if meta.get("identity") != self.identity:
            raise DataError(
                f"{path}: holds another architecture than model asks for; remove {self.folder} or take another run."
            )
        tensors = state.tensors()
        try:
            with one_process_said():
                dcp.state_dict_loader.load(tensors, checkpoint_id=path, no_dist=self.world.size == 1)
        except (Exception, CheckpointException) as error:  # any rank may fail anywhere in a damaged file
            raise DataError(f"{path}: damaged ({type(error).__name__}); remove it and run again.") from error
        state.put(tensors)
        state.counters = Counters(**meta["counters"])
        logger.info("pretrain: goes on at step %d from %s", state.counters.step, path)
