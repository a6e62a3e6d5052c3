from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import EnvironmentProblem
from hpcqa.launch import lock
from hpcqa.launch.lock import held

HOLDER = """
import sys, time, os
from pathlib import Path
from hpcqa.artifacts.folder import RunFolder
from hpcqa.launch.lock import held
with held(RunFolder(Path(sys.argv[1]))):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(folder):
    """Another process that holds the run folder, with a forked worker of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path), "fork"], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_commands_on_one_folder(folder, holder):
    said = f"in use by process {holder.pid} on {socket.gethostname()}, since"
    with pytest.raises(EnvironmentProblem, match=said), held(folder):
        pass


def test_a_killed_holder_lets_go_though_its_worker_lives(folder, holder):
    holder.kill()
    holder.wait()
    with held(folder):
        assert json.loads((folder.path / ".lock").read_text())["pid"] == os.getpid()
    assert (folder.path / ".lock").read_text() == ""


def test_let_go_after_an_error(folder):
    with pytest.raises(ZeroDivisionError), held(folder):
        raise ZeroDivisionError
    with held(folder):
        pass


def test_not_twice_in_one_process(folder):
    with held(folder), pytest.raises(EnvironmentProblem, match="by this process"), held(folder):
        pass


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="you may write to"), held(RunFolder(tmp_path / "file" / "run")):
        pass


def test_no_permission(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(EnvironmentProblem, match="Permission denied"), held(folder):
        pass


# File systems that cannot lock --------------------------------------------------------------------------------------


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)


@pytest.mark.usefixtures("no_locks")
def test_a_live_process_counts_where_nothing_locks(folder):
    (folder.path / ".lock").write_text(json.dumps(lock.owner()))
    with pytest.raises(EnvironmentProblem, match="in use by process"), held(folder):
        pass


@pytest.mark.usefixtures("no_locks")
def test_a_dead_or_other_process_with_its_number_does_not(folder):
    (folder.path / ".lock").write_text(json.dumps(lock.owner() | {"started": "12"}))
    with held(folder):
        pass


@pytest.mark.usefixtures("no_locks")
def test_another_machine_cannot_be_asked(folder):
    (folder.path / ".lock").write_text(json.dumps(lock.owner() | {"host": "login07", "job": "99"}))
    with pytest.raises(EnvironmentProblem, match=r"login07, job 99.*remove .*\.lock"), held(folder):
        pass


def test_damaged_content_is_no_owner(folder):
    (folder.path / ".lock").write_text("{half")
    with held(folder):
        pass


def test_a_process_that_is_gone():
    child = subprocess.Popen(["true"])
    child.wait()
    assert lock.started(child.pid) is None
    assert lock.started(os.getpid())
