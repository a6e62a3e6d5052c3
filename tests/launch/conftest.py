"""Small run folders and stages whose functions live in a module that the tests write."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.config.frozen import to_yaml
from hpcqa.stages import Stage

WORK = '''
"""Stage functions of the launch tests."""
import os, signal, time
from pathlib import Path
from hpcqa.errors import ConfigError, DataError
from hpcqa.parallel import preemption


def share(config, folder, ranks):
    for number in ranks.share(6):
        place = folder.path / "pieces"
        place.mkdir(exist_ok=True)
        (place / f"{number}").write_text(f"{ranks.rank} of {ranks.world_size}")
    (folder.path / f"threads-{ranks.rank}").write_text(os.environ.get("OMP_NUM_THREADS", ""))


def mpi_share(config, folder, ranks):
    from hpcqa.parallel import mpi
    for number in mpi.hand_out(list(range(6)), ranks):
        (folder.path / f"piece-{number}").write_text(f"{ranks.rank} of {ranks.world_size}")
    mpi.barrier(ranks)


def refuse(config, folder, ranks):
    if ranks.rank == ranks.world_size - 1:
        raise DataError("image.fits: truncated; fetch it again.")
    time.sleep(60)


def refuse_later(config, folder, ranks):
    if ranks.rank == ranks.world_size - 1:
        error = DataError("too many CCDs failed.")
        error.goes_on = True
        raise error
    time.sleep(0.3)
    (folder.path / f"finished-{ranks.rank}").touch()


def wrong(config, folder, ranks):
    raise ZeroDivisionError("our own mistake")


def die(config, folder, ranks):
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def sleep(config, folder, ranks):
    (folder.path / f"pid-{ranks.rank}").write_text(str(os.getpid()))
    time.sleep(60)
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A factory of stages: work("share", "tasks")."""
    place = tmp_path / "modules"
    place.mkdir()
    (place / "launchwork.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place) + os.pathsep + os.environ.get("PYTHONPATH", ""))

    def make(function: str, ranks: str, name: str = "shard") -> Stage:
        return Stage(name, "", f"launchwork:{function}", ranks, ("manifest",), ("shards",))

    return make


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run folder, with spaces in its path, that holds a run.yaml."""
    path = tmp_path / "my runs" / "one"
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(to_yaml(Config(run=str(path)), []))
    return RunFolder(path)


@pytest.fixture
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "HPCQA_", "PMI", "OMPI", "MPI_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def read_all(path: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in sorted(path.iterdir())}
