"""What test_mpi.py runs on several ranks: `mpiexec -n N python -m mpi4py mpi_programs.py NAME FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from hpcqa.errors import DataError
from hpcqa.parallel import mpi
from hpcqa.parallel.ranks import Ranks


def record(folder: Path, ranks: Ranks, what: object) -> None:
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(what))


def hand_out(folder: Path, ranks: Ranks) -> None:
    """Several rounds, one after the other, without a barrier between them."""
    rounds = []
    for count in (17, 0, 1, 40):
        taken = []
        for item in mpi.hand_out([f"{count}-{number}" for number in range(count)], ranks):
            time.sleep(0.001 * (1 + ranks.rank))
            taken.append(item)
        rounds.append(taken)
    record(folder, ranks, rounds)


def busy_master(folder: Path, ranks: Ranks) -> None:
    """Rank 0 computes without a break on its first item, in Python, while the others do all the rest."""
    taken = []
    for item in mpi.hand_out(list(range(20)), ranks):
        until = time.monotonic() + (1.5 if ranks.is_first else 0.0)
        while time.monotonic() < until:
            pass
        taken.append(item)
        if not ranks.is_first:
            time.sleep(0.01)
    record(folder, ranks, taken)


def collectives(folder: Path, ranks: Ranks) -> None:
    gathered = mpi.gather({"rank": ranks.rank}, ranks)
    told = mpi.broadcast("from the first" if ranks.is_first else "", ranks)
    mpi.barrier(ranks)
    record(folder, ranks, {"gathered": gathered, "told": told, "size": ranks.world_size, "local": ranks.local_rank})


def failing(folder: Path, ranks: Ranks) -> None:
    with mpi.guarded(ranks):
        for item in mpi.hand_out(list(range(10_000)), ranks):
            if ranks.rank == ranks.world_size - 1 and item > 3:
                record(folder, ranks, time.time())
                raise ValueError(f"item {item} is broken")
            time.sleep(0.02)


def failing_data(folder: Path, ranks: Ranks) -> None:
    with mpi.guarded(ranks):
        if ranks.rank == 1:
            raise DataError("shard-00003.h5: damaged.")
        time.sleep(60)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), mpi.world())
