"""Several processes of one stage on this machine, and none of them left when this one ends, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcqa.errors import ConfigError, EnvironmentProblem, HpcqaError
from hpcqa.launch import failures
from hpcqa.parallel.preemption import Preempted
from hpcqa.parallel.ranks import thread_variables
from hpcqa.stages import Stage

logger = logging.getLogger(__name__)

POLL_S = 0.05
# Between the polite signal and the last one.
GRACE_S = 10.0
JOB_MODULE = "hpcqa.launch.job"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# What another launcher may have left in the environment and would mislead a rank.
STALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STALE_PREFIXES = ("PMI_", "PMIX_", "OMPI_COMM_", "MPI_LOCAL", "HYDRA_", "SLURM_STEP", "HPCQA_", "TORCHELASTIC_")


@dataclass(frozen=True)
class Process:
    """One command to start, with its environment; rank -1 stands for all ranks behind an mpiexec."""

    rank: int
    command: tuple[str, ...]
    environ: Mapping[str, str]


def run_local(run: Path, stage: Stage, tasks: int) -> None:
    """Run a stage in `tasks` processes on this machine and wait for them.

    Raises:
        HpcqaError: what the first failing rank raised, with its rank; the other ranks are ended.
        EnvironmentProblem: a rank was killed, or there is no mpiexec.
    """
    logs = run / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failures.clear(logs, stage.name)
    processes = plan(run, stage, tasks, os.environ, cores=len(os.sched_getaffinity(0)), port=_free_port())
    with _stop_politely():
        started = _start_all(processes, stage, logs)
        code = _wait(started, lambda: any(not failure.goes_on for failure in failures.read(logs, stage.name)))
    if code != 0:
        raise reason(logs, stage, code)


def plan(run: Path, stage: Stage, tasks: int, environ: Mapping[str, str], *, cores: int, port: int) -> list[Process]:
    """The processes of a stage: one per rank, or one mpiexec for all ranks.

    Args:
        cores: cores of this machine that may be used, shared by the ranks.
        port: a free port for the ranks of torch to meet at.

    Raises:
        ConfigError: several ranks for a stage that runs as one.
    """
    if stage.ranks == "one" and tasks > 1:
        raise ConfigError(f"launch.tasks={tasks}: {stage.name} runs as one process.")
    each = max(1, cores // tasks)
    base = {key: value for key, value in environ.items() if key not in STALE and not key.startswith(STALE_PREFIXES)}
    base |= thread_variables(environ, each) | {"HPCQA_PARENT": str(os.getpid()), "HPCQA_CORES": str(each)}
    job = ("-m", JOB_MODULE, str(run), stage.name)
    if stage.ranks == "mpi":
        command = (find_mpiexec(Path(sys.prefix)), "-n", str(tasks), sys.executable, "-m", "mpi4py", *job)
        return [Process(-1, command, base | root_variables())]
    names = ("HPCQA_RANK", "HPCQA_WORLD_SIZE", "HPCQA_LOCAL_RANK", "HPCQA_LOCAL_WORLD_SIZE")
    if stage.ranks == "torch":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Process(
            rank,
            (sys.executable, *job),
            base | dict(zip(names, (str(rank), str(tasks), str(rank), str(tasks)), strict=True)),
        )
        for rank in range(tasks)
    ]


def find_mpiexec(prefix: Path) -> str:
    """The mpiexec of this Python environment, or else of the system.

    Raises:
        EnvironmentProblem: there is none.
    """
    own = prefix / "bin" / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise EnvironmentProblem("mpiexec: not found; pip install 'hpcqa[mpi]', or load your site's MPI module.")
    return found


def root_variables() -> dict[str, str]:
    """What Open MPI wants to hear before it runs as root and with more ranks than cores (containers, tests)."""
    if os.geteuid() != 0:
        return {}
    return {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _start_all(processes: Sequence[Process], stage: Stage, logs: Path) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for process in processes:
            started.append(_start(process, logs / f"{stage.name}-{process.rank}.out"))
    except OSError as error:
        _end(started, signal.SIGKILL)
        raise EnvironmentProblem(f"{stage.name}: a process could not be started: {error}.") from None
    return started


def _start(process: Process, output: Path) -> subprocess.Popen[bytes]:
    """Start in a group of its own, so that Ctrl-C reaches only this process, which then ends the group.

    Rank 0 (and mpiexec) speaks to the terminal; the others' warnings and crash messages go to a file.
    """
    polite = signal.SIGTERM if process.rank < 0 else signal.SIGKILL

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, polite)

    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(output.open("wb")) if process.rank > 0 else None
        return subprocess.Popen(
            process.command,
            env=dict(process.environ),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _wait(started: Sequence[subprocess.Popen[bytes]], is_fatal: Callable[[], bool]) -> int:
    """Wait for all; the first bad return code, or 0.

    Args:
        is_fatal: whether a failure is one that ends the other ranks too; a rank that says nothing was killed.
    """
    running, first_bad = list(started), 0
    try:
        while running:
            for process in list(running):
                code = process.poll()
                if code is None:
                    continue
                running.remove(process)
                first_bad = first_bad or code
                if code < 0 or (code != 0 and is_fatal()):
                    _end(running, signal.SIGTERM)
                    return code
            time.sleep(POLL_S)
    except BaseException:
        _end(running, signal.SIGTERM)
        raise
    return first_bad


def _end(processes: Sequence[subprocess.Popen[bytes]], first: signal.Signals) -> None:
    """End processes with all that they started: politely, then not."""
    for sign, patience in ((first, GRACE_S), (signal.SIGKILL, GRACE_S)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(POLL_S)


@contextlib.contextmanager
def _stop_politely() -> Iterator[None]:
    """SIGTERM, SIGUSR2 and SIGHUP end the ranks like Ctrl-C does."""

    def take(number: int, frame: object) -> None:
        raise Preempted(f"Stopped by {signal.Signals(number).name}; the same command goes on from here.")

    wanted = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {number: signal.signal(number, take) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(logs: Path, stage: Stage, code: int) -> HpcqaError:
    """Why a stage failed: the first failing rank's own sentence, or what its exit tells."""
    told = failures.read(logs, stage.name)
    # A rank that was killed said nothing; the others then only say that they were stopped.
    if told and (told[0].exit_code != Preempted.exit_code or code == Preempted.exit_code):
        return told[0].error()
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; too little memory is the usual reason" if name == "SIGKILL" else ""
        return EnvironmentProblem(f"a rank was ended by {name}{hint}; the same command goes on from here ({logs}).")
    return EnvironmentProblem(f"a rank ended with exit code {code} and no message; see {logs}.")
