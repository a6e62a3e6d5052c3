"""MPI: the world, work handed out dynamically, small collectives, and an end for all when one rank fails.

Nothing here imports mpi4py unless `ranks.launcher` is "mpi", so the serial case needs no MPI. Waiting ranks sleep
between looks instead of spinning: a core that waits is a core that another rank may use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hpcqa.errors import EnvironmentProblem, HpcqaError, InternalError
from hpcqa.parallel.ranks import Ranks

T = TypeVar("T")
logger = logging.getLogger(__name__)

LAUNCHER = "mpi"
WORDS_S = 0.5  # for a launcher to carry a rank's last words to the console
FIRST_NAP_S = 1e-4
LONGEST_NAP_S = 5e-3
_NOTHING_LEFT = -1
# What tells the size that a process manager promised: MPICH and Slurm's PMI, Open MPI.
_PROMISED_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class _State:
    """One private communicator for each process, and the number of hand-outs so far, which is their message tag."""

    communicator: Any = None
    hand_outs = 0


def world(environ: Mapping[str, str] | None = None) -> Ranks:
    """This process in MPI's world, compared with what the launcher promised.

    Args:
        environ: the environment; None takes this process's own.

    Raises:
        EnvironmentProblem: no MPI library, or MPI sees another number of ranks than the launcher started.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(f"MPI cannot be loaded ({error}); install hpcqa[mpi] or load the site's.") from None
    size = MPI.COMM_WORLD.Get_size()
    check_size(size, os.environ if environ is None else environ)
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank, local_size = node.Get_rank(), node.Get_size()
    node.Free()
    return Ranks(MPI.COMM_WORLD.Get_rank(), size, local_rank, local_size, LAUNCHER)


def check_size(size: int, environ: Mapping[str, str]) -> None:
    """Compare MPI's world with the Slurm step and the process manager.

    A step may hold fewer tasks than the world (mpiexec starts one proxy a node as the step's task), never more.

    Raises:
        EnvironmentProblem: names both numbers and the usual remedy.
    """
    tasks = _number(environ.get("SLURM_STEP_NUM_TASKS"))
    if tasks is not None and size < tasks:
        raise EnvironmentProblem(
            f"MPI sees a world of {size} inside a Slurm step of {tasks} tasks: srun's --mpi does not fit the MPI "
            f"library; try `srun --mpi=pmi2` (`srun --mpi=list` shows what there is)."
        )
    for name in _PROMISED_SIZES:
        promised = _number(environ.get(name))
        if promised is not None and promised != size:
            raise EnvironmentProblem(
                f"MPI sees a world of {size} but {name}={promised}: mpiexec and the MPI library that mpi4py loads are "
                f"of different makes; use the mpiexec of that library."
            )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def is_serial(ranks: Ranks) -> bool:
    """Whether this process has no peers to talk to."""
    return ranks.launcher != LAUNCHER and ranks.world_size == 1


def communicator(ranks: Ranks) -> Any:
    """The communicator of hpcqa's own messages, or None in the serial case. The first call is collective.

    Raises:
        InternalError: several ranks that were not started by MPI.
    """
    if is_serial(ranks):
        return None
    if ranks.launcher != LAUNCHER:
        raise InternalError(f"{ranks.world_size} ranks of launcher {ranks.launcher} cannot talk through MPI.")
    if _State.communicator is None:
        from mpi4py import MPI

        _State.communicator = MPI.COMM_WORLD.Dup()
    return _State.communicator


# Handing out --------------------------------------------------------------------------------------------------------


def hand_out(items: Sequence[T], ranks: Ranks) -> Iterator[T]:
    """This rank's items: each item goes to exactly one rank, the next free one. Collective; same items everywhere.

    A thread of rank 0 answers the other ranks, so rank 0 works as well and nobody waits for what it computes. Where MPI
    has no full thread support, and for ranks that cannot talk, the items are dealt out in turn.
    """
    if is_serial(ranks):
        yield from items
        return
    if ranks.launcher != LAUNCHER or not _has_threads():
        for position in ranks.share(len(items)):
            yield items[position]
        return
    comm = communicator(ranks)
    _State.hand_outs += 1
    tag = 1 + _State.hand_outs % 30000
    positions = _serve(len(items), comm, tag) if ranks.is_first else _ask(comm, tag)
    for position in positions:
        yield items[position]


def _has_threads() -> bool:
    from mpi4py import MPI

    return bool(MPI.Query_thread() >= MPI.THREAD_MULTIPLE)


class _Counter:
    """The next item's position, shared by rank 0 and the thread that answers the others."""

    def __init__(self, length: int) -> None:
        self._next, self._length, self._lock = 0, length, threading.Lock()

    def take(self) -> int:
        with self._lock:
            if self._next >= self._length:
                return _NOTHING_LEFT
            self._next += 1
            return self._next - 1


def _serve(length: int, comm: Any, tag: int) -> Iterator[int]:
    counter = _Counter(length)
    thread = threading.Thread(target=_answer, args=(counter, comm, tag), name="hand-out", daemon=True)
    thread.start()
    while (position := counter.take()) != _NOTHING_LEFT:
        yield position
    thread.join()


def _answer(counter: _Counter, comm: Any, tag: int) -> None:
    from mpi4py import MPI

    waiting = comm.Get_size() - 1
    status = MPI.Status()
    nap = FIRST_NAP_S
    while waiting:
        if not comm.iprobe(source=MPI.ANY_SOURCE, tag=tag, status=status):
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP_S)
            continue
        nap = FIRST_NAP_S
        comm.recv(source=status.Get_source(), tag=tag)
        position = counter.take()
        comm.send(position, dest=status.Get_source(), tag=tag)
        waiting -= position == _NOTHING_LEFT


def _ask(comm: Any, tag: int) -> Iterator[int]:
    while True:
        comm.send(None, dest=0, tag=tag)
        position = _patiently(comm.irecv(source=0, tag=tag))
        if position == _NOTHING_LEFT:
            return
        yield position


def _patiently(request: Any) -> Any:
    """The message of a request, looked for with growing naps."""
    nap = FIRST_NAP_S
    while True:
        done, message = request.test()
        if done:
            return message
        time.sleep(nap)
        nap = min(2 * nap, LONGEST_NAP_S)


# Small collectives --------------------------------------------------------------------------------------------------


def barrier(ranks: Ranks) -> None:
    """Wait for every rank, asleep."""
    comm = communicator(ranks)
    if comm is not None:
        request, nap = comm.Ibarrier(), FIRST_NAP_S
        while not request.Test():
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP_S)


def gather(value: T, ranks: Ranks) -> list[T] | None:
    """Every rank's value in the order of ranks on rank 0, None elsewhere."""
    comm = communicator(ranks)
    if comm is None:
        return [value]
    barrier(ranks)
    gathered: list[T] | None = comm.gather(value, root=0)
    return gathered


def broadcast(value: T, ranks: Ranks) -> T:
    """Rank 0's value on every rank."""
    comm = communicator(ranks)
    if comm is None:
        return value
    barrier(ranks)
    sent: T = comm.bcast(value, root=0)
    return sent


@contextlib.contextmanager
def guarded(ranks: Ranks) -> Iterator[None]:
    """End every rank with this rank's traceback when it fails; a serial process just raises."""
    try:
        yield
    except BaseException as error:
        if ranks.launcher != LAUNCHER:
            raise
        _abort(ranks, error)


def _abort(ranks: Ranks, error: BaseException) -> None:
    from mpi4py import MPI

    expected = isinstance(error, HpcqaError)
    said = str(error) if expected else traceback.format_exc()
    logger.error("rank %d of %d failed and ends the job: %s", ranks.rank, ranks.world_size, said)
    for handler in logging.getLogger("hpcqa").handlers:
        handler.flush()
    if not ranks.is_first:  # only rank 0's log is on the console
        sys.stderr.write(f"rank {ranks.rank} of {ranks.world_size} failed and ends the job: {said}\n")
    sys.stderr.flush()
    # Seen once on a busy machine (2026-11): mpiexec had heard of the end before it had carried the last line.
    time.sleep(WORDS_S)
    MPI.COMM_WORLD.Abort(int(getattr(error, "exit_code", 1)))
