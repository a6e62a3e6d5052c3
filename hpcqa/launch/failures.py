"""What a rank says when it fails: one small file per rank, read by whoever started it and by `hpcqa status`."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcqa.errors import ConfigError, DataError, EnvironmentProblem, HpcqaError, InternalError
from hpcqa.parallel.preemption import Preempted

KINDS: tuple[type[HpcqaError], ...] = (ConfigError, DataError, EnvironmentProblem, Preempted, InternalError)


@dataclass(frozen=True)
class Failure:
    """Why one rank ended."""

    stage: str
    rank: int
    sentence: str
    exit_code: int
    goes_on: bool = False
    host: str = ""
    time: float = 0.0

    def error(self) -> HpcqaError:
        """The error that the rank raised, for the process that started it."""
        kind = next((kind for kind in KINDS if kind.exit_code == self.exit_code), InternalError)
        error = kind(self.sentence if self.rank == 0 else f"{self.sentence} (rank {self.rank})")
        error.goes_on = self.goes_on
        return error


def failure_path(logs: Path, stage: str, rank: int) -> Path:
    return logs / f"{stage}-{rank}.failure.json"


def record(logs: Path, failure: Failure) -> None:
    """Write a failure; on a full or read-only disk the sentence still goes to standard error."""
    with contextlib.suppress(OSError):
        logs.mkdir(parents=True, exist_ok=True)
        failure_path(logs, failure.stage, failure.rank).write_text(
            json.dumps({**asdict(failure), "host": socket.gethostname(), "time": time.time()})
        )


def clear(logs: Path, stage: str, rank: int | None = None) -> None:
    """Forget the failures of a stage, or of one rank of it."""
    pattern = f"{stage}-*.failure.json" if rank is None else failure_path(logs, stage, rank).name
    for path in logs.glob(pattern):
        with contextlib.suppress(OSError):
            path.unlink()


def read_one(logs: Path, stage: str, rank: int) -> Failure | None:
    """The failure of one rank, if it has failed; a rank may be writing or clearing it just now."""
    return _load(failure_path(logs, stage, rank))


def read(logs: Path, stage: str = "*") -> list[Failure]:
    """The failures of a stage, first one first."""
    found = [failure for path in logs.glob(f"{stage}-*.failure.json") if (failure := _load(path)) is not None]
    # A rank that stopped because others did is not the reason.
    return sorted(found, key=lambda failure: (failure.exit_code == Preempted.exit_code, failure.time))


def _load(path: Path) -> Failure | None:
    try:
        return Failure(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
