"""Real ranks under the environment's mpiexec, and the serial case without MPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcqa.errors import EnvironmentProblem, InternalError
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks

MPIEXEC = Path(sys.executable).with_name("mpiexec")
PROGRAMS = Path(__file__).with_name("mpi_programs.py")
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")


def start(name: str, ranks: int, folder: Path, *, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m", "mpi4py", str(PROGRAMS), name, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAMS.parents[2])}
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)


def results(folder: Path, ranks: int) -> list[object]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_each_item_goes_to_exactly_one_rank(tmp_path: Path, ranks: int) -> None:
    done = start("hand_out", ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = list(zip(*results(tmp_path, ranks), strict=True))
    for taken, count in zip(rounds, (17, 0, 1, 40), strict=True):
        flat = [item for share in taken for item in share]
        assert sorted(flat) == sorted(f"{count}-{number}" for number in range(count))
        assert all(share == sorted(share, key=lambda item: int(item.split("-")[1])) for share in taken)
    if ranks > 1:
        assert all(rounds[-1]), "every rank works, the first too"


@needs_mpi
def test_the_others_go_on_while_rank_0_is_busy(tmp_path: Path) -> None:
    done = start("busy_master", 3, tmp_path)
    assert done.returncode == 0, done.stderr
    shares = results(tmp_path, 3)
    assert sorted(item for share in shares for item in share) == list(range(20))
    assert len(shares[0]) <= 2, "rank 0 was busy with its first item until all the rest was done"


@needs_mpi
def test_collectives(tmp_path: Path) -> None:
    done = start("collectives", 2, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = results(tmp_path, 2)
    assert first["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert second["gathered"] is None
    assert first["told"] == second["told"] == "from the first"
    assert (first["size"], second["local"]) == (2, 1)


@needs_mpi
def test_a_failing_rank_ends_all_with_its_traceback(tmp_path: Path) -> None:
    done = start("failing", 3, tmp_path)
    ended = time.time()
    assert done.returncode != 0
    failed = json.loads((tmp_path / "rank-2.json").read_text())
    assert ended - failed < 10, "the others had work for more than a minute"
    assert "is broken" in done.stderr
    assert "rank 2 of 3 failed" in done.stderr
    assert "Traceback" in done.stderr


@needs_mpi
def test_an_expected_error_is_a_sentence_with_its_exit_code(tmp_path: Path) -> None:
    done = start("failing_data", 2, tmp_path)
    assert done.returncode == 3
    assert "rank 1 of 2 failed and ends the job: shard-00003.h5: damaged." in done.stderr
    assert "Traceback" not in done.stderr


def test_the_serial_case_needs_no_mpi() -> None:
    code = (
        "import sys; from hpcqa.parallel import mpi; from hpcqa.parallel.ranks import Ranks\n"
        "ranks = Ranks()\n"
        "assert list(mpi.hand_out([1, 2], ranks)) == [1, 2]\n"
        "assert mpi.gather(5, ranks) == [5] and mpi.broadcast(7, ranks) == 7\n"
        "mpi.barrier(ranks)\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_error_of_a_serial_process_is_raised() -> None:
    with pytest.raises(ValueError, match="as it was"), mpi.guarded(Ranks()):
        raise ValueError("as it was")


def test_ranks_that_cannot_talk_share_by_turns() -> None:
    shares = [list(mpi.hand_out(list("abcde"), Ranks(rank, 2, rank, 2, "local"))) for rank in range(2)]
    assert shares == [["a", "c", "e"], ["b", "d"]]
    with pytest.raises(InternalError, match="cannot talk"):
        mpi.gather(1, Ranks(0, 2, 0, 2, "local"))


@pytest.mark.parametrize(
    ("size", "environ", "said"),
    [
        (1, {"SLURM_STEP_NUM_TASKS": "64"}, "world of 1 inside a Slurm step of 64 tasks"),
        (1, {"PMI_SIZE": "4"}, "PMI_SIZE=4"),
        (2, {"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE=8"),
    ],
)
def test_a_world_that_contradicts_its_launcher_is_an_error(size: int, environ: dict[str, str], said: str) -> None:
    with pytest.raises(EnvironmentProblem, match=said):
        mpi.check_size(size, environ)


@pytest.mark.parametrize(
    ("size", "environ"),
    [
        (1, {}),
        (64, {"SLURM_STEP_NUM_TASKS": "64"}),
        (8, {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "8"}),  # mpiexec's proxies are the step's tasks
        (1, {"SLURM_STEP_NUM_TASKS": ""}),
    ],
)
def test_a_world_that_fits_is_accepted(size: int, environ: dict[str, str]) -> None:
    mpi.check_size(size, environ)
