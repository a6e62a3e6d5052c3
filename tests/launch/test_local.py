"""Real processes: how they start, fail and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpcqa.errors import ConfigError, DataError, EnvironmentProblem
from hpcqa.launch import local
from hpcqa.stages import Stage

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.fixture
def run_stage(folder, tmp_path, monkeypatch):
    """run_local with a stage that is not in the table: children run a module that knows it."""

    def run(stage: Stage, tasks: int) -> None:
        (tmp_path / "modules" / "childmain.py").write_text(
            "import sys\nfrom pathlib import Path\nfrom hpcqa.launch import job\nfrom hpcqa.stages import Stage\n"
            f"sys.exit(job.run_rank(Path(sys.argv[1]), sys.argv[2], entry={stage!r}))\n"
        )
        monkeypatch.setattr(local, "JOB_MODULE", "childmain")
        local.run_local(folder.path, stage, tasks)

    return run


@pytest.mark.parametrize("tasks", [2, 3])
def test_every_piece_is_done_once(folder, work, run_stage, tasks):
    run_stage(work("share", "tasks"), tasks)
    assert len(list((folder.path / "pieces").iterdir())) == 6
    worlds = {path.read_text().split(" of ")[1] for path in (folder.path / "pieces").iterdir()}
    assert worlds == {str(tasks)}
    cores = max(1, len(os.sched_getaffinity(0)) // tasks)
    assert int((folder.path / "threads-1").read_text()) <= cores


def test_mpi_ranks_share_one_world(folder, work, run_stage):
    run_stage(work("mpi_share", "mpi", "embed"), 2)
    pieces = [path.read_text() for path in folder.path.glob("piece-*")]
    assert len(pieces) == 6
    assert {text.split(" of ")[1] for text in pieces} == {"2"}


def children():
    """What this process has started and is still there; other tests' resource trackers are."""
    return set(psutil.Process().children(recursive=True))


def test_a_failing_rank_ends_the_others_and_says_why(work, run_stage):
    before = children()
    began = time.monotonic()
    with pytest.raises(DataError, match=r"image.fits: truncated; fetch it again. \(rank 1\)"):
        run_stage(work("refuse", "tasks"), 2)
    assert time.monotonic() - began < 20
    assert children() <= before


def test_a_failing_mpi_rank_ends_the_others(work, run_stage):
    before = children()
    with pytest.raises(DataError, match=r"truncated"):
        run_stage(work("refuse", "mpi", "embed"), 2)
    assert children() <= before


def test_an_error_after_which_the_flow_goes_on_lets_the_others_finish(folder, work, run_stage):
    with pytest.raises(DataError, match="too many") as raised:
        run_stage(work("refuse_later", "tasks"), 2)
    assert raised.value.goes_on
    assert (folder.path / "finished-0").exists()


def test_a_killed_rank_is_named(work, run_stage):
    before = children()
    with pytest.raises(EnvironmentProblem, match="ended by SIGKILL; too little memory"):
        run_stage(work("die", "tasks"), 2)
    assert children() <= before


PARENT = """
import os, signal, sys
# A shell starts background jobs with SIGINT ignored; a person at a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from hpcqa.launch import local
command = (sys.executable, "-c", "import sys, time; open(sys.argv[1], 'w').write('1'); time.sleep(60)")
run = Path(sys.argv[1])
local.plan = lambda *a, **k: [local.Process(rank, (*command, str(run / f"up-{rank}")), os.environ) for rank in (0, 1)]
from hpcqa.stages import Stage
local.run_local(run, Stage("shard", "", "", "tasks", (), ()), 2)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_parent(folder, sign):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder.path)], stderr=subprocess.DEVNULL)
    wait_for(lambda: all((folder.path / f"up-{rank}").exists() for rank in (0, 1)))
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    parent.send_signal(sign)
    assert parent.wait(timeout=15) != 0
    wait_for(lambda: not any(is_alive(child) for child in children))


def wait_for(done, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Plans, without processes -------------------------------------------------------------------------------------------


def test_plans_of_each_kind():
    environ = {"PATH": "/bin", "RANK": "7", "PMI_RANK": "3", "SLURM_STEP_ID": "1"}
    plan = {
        kind: local.plan(Path("/r"), Stage("shard", "", "", kind, (), ()), 2, environ, cores=8, port=1234)
        for kind in ("tasks", "torch")
    }
    assert [process.environ["HPCQA_RANK"] for process in plan["tasks"]] == ["0", "1"]
    assert not {"RANK", "PMI_RANK", "SLURM_STEP_ID"} & set(plan["tasks"][0].environ)
    assert plan["torch"][1].environ["RANK"] == "1"
    assert plan["torch"][1].environ["MASTER_PORT"] == "1234"
    assert plan["tasks"][0].environ["OMP_NUM_THREADS"] == "4"


def test_a_single_stage_is_not_spread():
    with pytest.raises(ConfigError, match="fit runs as one process"):
        local.plan(Path("/r"), Stage("fit", "", "", "one", (), ()), 2, {}, cores=8, port=1)


def test_no_mpiexec(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="mpiexec: not found"):
        local.find_mpiexec(tmp_path)


@pytest.mark.slow
def test_torchrun_starts_the_same_module(folder):
    """The stage fails for want of a manifest; that it says so as a rank of two is the point."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "hpcqa.launch.job", str(folder.path), "shard"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "(rank 1 on" in done.stderr
