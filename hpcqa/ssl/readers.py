"""Processes that read exposures into shards beside the one with the network.

Much of measuring a small CCD is Python, in which the threads of a process take turns, and the network's own calls with
them: `python benchmarks/embed.py --fits RUN --readers N`. Each process makes whole shards, with a share of the threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import logging.handlers
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import EnvironmentProblem
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import usable_cores
from hpcqa.pixels.failures import Tally

MOST = 4  # each has a shard on disk, and takes seconds to start
WORTH = 8  # shards of each process, for its start to pay


def make_shard(config: Config, folder: RunFolder, number: int, room: Path) -> tuple[Path, Tally]:
    """Read the exposures of a shard: its file in `room`, and what went wrong with its CCDs."""
    from hpcqa.pixels import shards  # here, so that the networks need no camera

    plans = shards.plan_shards(folder.need("manifest", "manifest"), [number])
    provenance = Provenance(stage_digest(config, "shard"), {}, instrument=config.instrument.name)
    (written,) = shards.write_shards(plans, room, provenance, config)
    return written


def worth(config: Config, shards: int) -> int:
    """How many processes pay for a task that reads so many shards; 1: this one is enough."""
    return max(1, min(MOST, config.shard.workers or usable_cores(), shards // WORTH))


class Readers:
    """`make_shard` in several processes."""

    def __init__(self, config: Config, folder: RunFolder, room: Path, processes: int) -> None:
        threads = -(-(config.shard.workers or usable_cores()) // processes)
        config = dataclasses.replace(config, shard=dataclasses.replace(config.shard, workers=threads))
        # Spawned, not forked: this process has threads, and perhaps a GPU.
        context = multiprocessing.get_context("spawn")
        records: Any = context.Queue()
        self._work, self._processes = (config, folder), processes
        self._room = room
        self._listener = logging.handlers.QueueListener(records, _Here())
        self._listener.start()
        ours, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(records, ours))

    def make(self, number: int) -> tuple[Path, Tally]:
        """`make_shard` in one of the processes; several threads may ask at once.

        Raises:
            DataError, EnvironmentProblem: as reading does; or a process was killed.
        """
        try:
            return self._pool.submit(make_shard, *self._work, number, self._room).result()
        except BrokenProcessPool:
            raise EnvironmentProblem(
                f"embed: one of {self._processes} processes that read exposures was killed, perhaps for memory; run "
                "again with a smaller shard.workers."
            ) from None

    def close(self, *, at_once: bool) -> None:
        """End the processes, `at_once` or when they are done with what they have in hand."""
        if at_once:
            self._alive.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if not at_once:  # one that ended while it spoke may hold the queue's lock for good
            self._listener.stop()


class _Here(logging.Handler):
    """Hands records of another process to this one's loggers."""

    def handle(self, record: logging.LogRecord) -> bool:
        logging.getLogger(record.name).handle(record)
        return True


def _start(records: Any, first: Connection) -> None:
    """Have a new process say what it has to say to the first one, leave signals to it, and not outlive it."""
    preemption.ignore()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logger = logging.getLogger("hpcqa")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.handlers.QueueHandler(records))
    logger.propagate = False
    threading.Thread(target=_end_with, args=(first,), daemon=True).start()


def _end_with(first: Connection) -> None:
    """End this process when the other end of the connection is closed, be it because the first process is no more."""
    with contextlib.suppress(EOFError, OSError):
        first.recv()
    os._exit(1)
