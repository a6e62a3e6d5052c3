"""MPI ranks that start without the seconds which imports take, so that they can be killed many times.

A process that has imported all waits at a socket, once the stages before have run. mpiexec starts hand_over.py for
each rank, which sends its environment and its connection to mpiexec there; a fork of the waiting process takes them and
is the rank from then on: it joins MPI, runs the stage as `python -m hpcqa.launch.job` does, and ends. hand_over.py ends
by the signal that the rank ended by, and a rank dies with its hand_over.py, so mpiexec sees what it always sees.

    python -m tests.endtoend.warm_ranks RUN SOCKET      (the waiting process; RUN has run.yaml and a backbone)
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

MPIEXEC = Path(sys.executable).with_name("mpiexec")
HAND_OVER = Path(__file__).with_name("hand_over.py")
# "RANK:N": this rank kills itself just before the N-th time that it touches a file of its run.
KILLED_AT = "HPCQA_TEST_KILLED_AT"
BEFORE = ("manifest", "shard", "calibrate", "embed", "fit", "classify")
LONGEST_S = 500


@dataclass
class WarmRanks:
    """The waiting process as a test sees it.

    Attributes:
        run: the run folder, of which all of BEFORE is made.
        place: the socket; beside it each rank of the last complete pass leaves how often it touched a file.
    """

    run: Path
    place: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, run: Path, place: Path) -> WarmRanks:
        """Make the run and wait for ranks."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        words = [sys.executable, "-m", "tests.endtoend.warm_ranks", str(run), str(place)]
        made = cls(run, place, subprocess.Popen(words, env=environment))
        until = time.monotonic() + LONGEST_S
        while not place.exists():
            assert made.process.poll() is None, "the run could not be made"
            assert time.monotonic() < until, "the run was not made in time"
            time.sleep(0.05)
        return made

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def ranks(self) -> list[psutil.Process]:
        """Those that live now."""
        return psutil.Process(self.process.pid).children()

    def begin(self, stage: str, ranks: int, killed_at: str = "") -> subprocess.Popen[str]:
        """Start a stage on ranks."""
        rank = [sys.executable, "-I", "-S", str(HAND_OVER), str(self.place), stage]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", KILLED_AT: killed_at}
        return subprocess.Popen(
            [str(MPIEXEC), "-n", str(ranks), *rank],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )

    def end(self, mpiexec: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait until all is over: mpiexec's exit code and what was said."""
        said, _ = mpiexec.communicate(timeout=LONGEST_S)
        while self.ranks():
            time.sleep(0.005)
        return mpiexec.returncode, said

    def measure(self, stage: str, ranks: int) -> Undisturbed:
        """Let a stage run to its end."""
        began = time.monotonic()
        code, said = self.end(self.begin(stage, ranks))
        assert code == 0, said
        touches = [int(self.place.with_name(f"touches-{rank}").read_text()) for rank in range(ranks)]
        return Undisturbed(time.monotonic() - began, touches)


@dataclass(frozen=True)
class Undisturbed:
    """What a stage takes that nobody kills: seconds, and how often each rank touches files of the run."""

    seconds: float
    touches: list[int]


@dataclass
class Killing:
    """One way to die; every second one by its own hand at a file, every fourth one that of a whole node.

    Attributes:
        moment: as a share of the whole stage.
    """

    number: int
    moment: float
    undisturbed: Undisturbed
    chance: random.Random

    def strike(self, warm: WarmRanks, stage: str, ranks: int) -> tuple[bool, int, str]:
        """Run the stage: whether anyone was, or would have been, killed; mpiexec's exit code, and what was said."""
        if self.number % 2 == 0:
            touches = self.undisturbed.touches
            victim = self.chance.choice([rank for rank in range(ranks) if touches[rank]])
            mpiexec = warm.begin(stage, ranks, f"{victim}:{1 + int(self.moment * touches[victim])}")
            code, said = warm.end(mpiexec)
            return True, code, said
        mpiexec = warm.begin(stage, ranks)
        hit = self._by_the_clock(warm, mpiexec, node=self.number % 4 == 3)
        return hit, *warm.end(mpiexec)

    def _by_the_clock(self, warm: WarmRanks, mpiexec: subprocess.Popen[str], *, node: bool) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            mpiexec.wait(timeout=self.moment * self.undisturbed.seconds)
        if mpiexec.poll() is not None:
            return False
        mpi, ranks = psutil.Process(mpiexec.pid), warm.ranks()
        victims = [*ranks, *mpi.children(recursive=True), mpi] if node else ranks and [self.chance.choice(ranks)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        return bool(victims)


# The waiting process ------------------------------------------------------------------------------------------------


def stop_the_clock() -> None:
    """Every file says that it was made at one and the same time: equal files are equal to the byte."""
    from hpcqa.artifacts import provenance

    moment = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    clock: Any = SimpleNamespace(UTC=dt.UTC, datetime=SimpleNamespace(now=lambda zone: moment))
    provenance.dt = clock


def wait_for_ranks(run: Path, place: Path) -> None:
    """Fork a rank for each hand_over.py, for ever."""
    listener = socket.socket(socket.AF_UNIX)
    hidden = place.with_suffix(".new")
    listener.bind(str(hidden))
    listener.listen(16)
    hidden.rename(place)
    connections: dict[int, socket.socket] = {}  # by the rank's process
    while True:
        ready, _, _ = select.select([listener, *connections.values()], [], [], 0.005)
        for pid, connection in connections.items():
            if connection in ready:  # it never says more: it is gone
                os.kill(pid, signal.SIGKILL)
        if listener in ready:
            connection = listener.accept()[0]
            message, files, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            pid = os.fork()
            if pid == 0:
                listener.close()
                be_rank(run, place, json.loads(message), files)
            connections[pid] = connection
            for file in files:
                os.close(file)
        for pid in list(connections):
            if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                with connections.pop(pid) as connection, contextlib.suppress(OSError):
                    connection.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


def be_rank(run: Path, place: Path, told: dict[str, Any], files: list[int]) -> None:
    """Take over a place in MPI's world, run the stage, and end this process."""
    code = 1
    try:
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        os.environ.update(told["environment"])
        os.environ["PMI_FD"] = str(files[3])
        rank = os.environ["PMI_RANK"]
        victim, _, limit = os.environ.get(KILLED_AT, "").partition(":")
        touches = count_touches(run, int(limit) if victim == rank else 0)
        from hpcqa.launch.job import run_rank

        code = run_rank(run, told["stage"])
        from mpi4py import MPI

        place.with_name(f"touches-{rank}").write_text(str(touches[0]))
        MPI.Finalize()
        # MPICH says goodbye to mpiexec in a C exit handler, which os._exit leaves out.
        ctypes.CDLL(None).exit(code)
    finally:
        os._exit(code)


def count_touches(run: Path, limit: int) -> list[int]:
    """Count, in a list of one, how often this process makes, syncs, renames or removes a file of its run; die at the
    `limit`-th.
    """
    count, logs = [0], str(run / "logs")

    def look(event: str, details: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir"):
            return
        path = str(details[0])
        unfinished = event != "open" or path.endswith(".tmp")
        if unfinished and path.startswith(str(run)) and not path.startswith(logs):
            count[0] += 1
            if count[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return count


def make(run: Path) -> None:
    """Run the stages before, in a fork that ends with them: after all of them, torch in further forks was seen to hang.
    What the last one loads is loaded here too.
    """
    from hpcqa.launch.job import run_rank
    from hpcqa.stages import stage

    for name in BEFORE:
        stage(name).load()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = max(run_rank(run, name) for name in BEFORE)
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the run could not be made")
    (run / "decisions.parquet").unlink()
    run_rank(run, BEFORE[-1])


def main(run: Path, place: Path) -> None:
    stop_the_clock()
    make(run)
    wait_for_ranks(run, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
