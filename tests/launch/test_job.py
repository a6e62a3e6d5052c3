"""What runs on every rank, in this process; tests with real launchers are in test_local.py and tests/slurm."""

from __future__ import annotations

import json
import signal

import pytest

from hpcqa.config.frozen import to_yaml
from hpcqa.errors import EnvironmentProblem
from hpcqa.launch import failures, job
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import Ranks
from hpcqa.stages import Stage


@pytest.fixture(autouse=True)
def _restore(no_launcher):
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stage_runs_alone(folder, work):
    assert job.run_rank(folder.path, "shard", entry=work("share", "tasks")) == 0
    assert len(list((folder.path / "pieces").iterdir())) == 6
    assert "rank 0 of 1" in (folder.path / "logs" / "shard-0.log").read_text()


def test_parts_of_an_array_are_ranks(folder, work):
    for part in (2, 0, 1):
        assert job.run_rank(folder.path, "shard", part, 3, work("share", "tasks")) == 0
    assert {path.read_text() for path in (folder.path / "pieces").iterdir()} == {"0 of 3", "1 of 3", "2 of 3"}


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [("refuse", 3, "image.fits: truncated"), ("wrong", 70, "ZeroDivisionError: our own mistake: a mistake in hpcqa")],
)
def test_errors_become_one_sentence_and_a_code(folder, work, capfd, function, code, said):
    assert job.run_rank(folder.path, "shard", entry=work(function, "tasks")) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" in (folder.path / "logs" / "shard-0.log").read_text()
    (told,) = failures.read(folder.path / "logs")
    assert told.exit_code == code
    assert said in told.sentence


def test_success_clears_an_old_failure(folder, work):
    job.run_rank(folder.path, "shard", entry=work("refuse", "tasks"))
    job.run_rank(folder.path, "shard", entry=work("share", "tasks"))
    assert failures.read(folder.path / "logs") == []


def test_no_run_folder(tmp_path, capfd):
    assert job.main([str(tmp_path), "shard"]) == 2
    assert "is this a run folder?" in capfd.readouterr().err


def test_an_unknown_stage_lists_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        job.main([str(tmp_path), "bake"])
    assert stopped.value.code == 2
    assert "manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "environ", "said"),
    [
        ("one", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "one process"),
        ("mpi", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "mpiexec or srun"),
        ("torch", {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}, "torchrun"),
    ],
)
def test_a_wrong_launcher_is_refused(kind, environ, said):
    with pytest.raises(EnvironmentProblem, match=said):
        job.ranks_of(Stage("fit", "", "", kind, (), ()), environ)


def test_split_counts_tasks_of_every_job():
    ranks = [job.split(Ranks(rank, 2), part, 3).rank for part in range(3) for rank in range(2)]
    assert ranks == [0, 1, 2, 3, 4, 5]


def test_an_error_that_lets_the_flow_go_on_ends_a_slurm_job_well(folder, work):
    job.run_submitted(str(folder.path), work("refuse_later", "tasks"), 0, 1)
    (told,) = failures.read(folder.path / "logs")
    assert told.goes_on
    with pytest.raises(SystemExit) as stopped:
        job.run_submitted(str(folder.path), work("refuse", "tasks"), 0, 1)
    assert stopped.value.code == 3


def test_a_moved_folder_still_runs(folder, work, tmp_path):
    moved = folder.path.rename(tmp_path / "moved")
    assert job.run_rank(moved, "shard", entry=work("share", "tasks")) == 0
    assert (moved / "pieces").is_dir()


def test_failures_skip_damaged_files_and_name_the_reason_first(tmp_path):
    failures.record(tmp_path, failures.Failure("shard", 1, "Stopped.", 75))
    failures.record(tmp_path, failures.Failure("shard", 0, "image: bad.", 3))
    (tmp_path / "shard-9.failure.json").write_text("{")
    (tmp_path / "shard-8.failure.json").write_text(json.dumps({"unknown": 1}))
    assert [failure.rank for failure in failures.read(tmp_path)] == [0, 1]
    assert str(failures.Failure("shard", 2, "image: bad.", 3).error()) == "image: bad. (rank 2)"


def test_configuration_of_another_version_is_one_sentence(folder, capfd):
    text = to_yaml(job.frozen.load(folder.path / "run.yaml")[0], []).replace("seed: 1", "seed: abc")
    (folder.path / "run.yaml").write_text(text)
    assert job.main([str(folder.path), "shard"]) == 2
    assert "seed='abc': expected int" in capfd.readouterr().err
