from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import EnvironmentProblem
from hpcqa.launch import queue
from hpcqa.launch.queue import JobState


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12", [("12", "")]),
        ("12_3", [("12", "3")]),
        ("12_[0-2]", [("12", "0"), ("12", "1"), ("12", "2")]),
        ("12_[1,4-5%2]", [("12", "1"), ("12", "4"), ("12", "5")]),
        ("12_[1,4,...]", [("12", "1"), ("12", "4")]),
        ("12.batch", []),
        ("", []),
    ],
)
def test_ids(text, ids):
    assert queue.parse_id(text) == ids


@given(st.text(alphabet="0123456789_[]-,%:+.a", max_size=30))
def test_any_id_is_read_or_left_out(text):
    assert all(job.isdigit() for job, _ in queue.parse_id(text))


QUEUE = "7_0|RUNNING|None|0:03|n1\n7_1|PENDING|Priority|0:00|\n8|PENDING|DependencyNeverSatisfied|0:00|\nnonsense\n"
ACCOUNT = "7_0|COMPLETED|0:0|00:00:01|n1\n5|FAILED|3:0|00:00:09|n2\n6_[0-1]|CANCELLED by 0|0:0|00:00:00|None assigned\n"


def test_the_queue_counts_before_accounting():
    known = queue.merge(queue.parse_queue(QUEUE), queue.parse_accounting(ACCOUNT))
    assert [state.state for state in known["7"]] == ["RUNNING", "PENDING"]
    assert known["5"][0].reason == "exit 3:0"
    assert [state.state for state in known["6"]] == ["CANCELLED", "CANCELLED"]
    assert known["8"][0].is_held
    assert queue.summary(known["8"]) == {"HELD": 1}


def test_tasks_are_in_order_of_their_number():
    tasks = [JobState("1", str(number), "RUNNING") for number in (10, 9, 100)]
    assert [state.task for state in queue.merge(tasks, [])["1"]] == ["9", "10", "100"]


def test_no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="no sbatch on PATH"):
        queue.need_slurm()
    with pytest.raises(EnvironmentProblem, match="machine with Slurm"):
        queue.run_slurm(["squeue"])


def fake(tmp_path, monkeypatch, name, script):
    path = tmp_path / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_what_slurm_complains_of_is_passed_on(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    with pytest.raises(EnvironmentProblem, match="squeue: slurm_load_jobs error: Unable to contact"):
        queue.states(["1"])


def test_no_answer(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", "exec sleep 10")
    monkeypatch.setattr(queue, "TIMEOUT_S", 0.2)
    with pytest.raises(EnvironmentProblem, match="no answer from Slurm"):
        queue.states(["1"])


def test_without_accounting_the_queue_is_all(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", "printf '7|RUNNING|None|0:01|n1\\n'")
    fake(tmp_path, monkeypatch, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert set(queue.states(["7", "6"])) == {"7"}


def test_without_sacct_the_queue_is_all(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "squeue", "printf '7|RUNNING|None|0:01|n1\\n'")
    monkeypatch.setattr(queue.shutil, "which", lambda name: None if name == "sacct" else f"/usr/bin/{name}")
    assert set(queue.states(["7", "6"])) == {"7"}


def test_partitions_by_their_largest_node():
    text = "main*|1:00:00|4|4000|gpu:2\nmain*|1:00:00|8+|2000|(null)\nlong|2-00:30:00|1|1|gpu:a100:4(S:0-1),nvme:1\nx\n"
    found = queue.parse_partitions(text)
    assert found["main"] == queue.Partition("main", True, 60, 8, 4.0, 2)
    assert (found["long"].max_minutes, found["long"].gpus, found["long"].is_default) == (48 * 60 + 30, 4, False)


@pytest.mark.parametrize(("text", "minutes"), [("infinite", None), ("30:00", 30), ("1:30:00", 90), ("", None)])
def test_time_limits(text, minutes):
    assert queue.parse_minutes(text) == minutes
