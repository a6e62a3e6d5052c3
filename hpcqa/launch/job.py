"""What runs on every rank: `python -m hpcqa.launch.job RUN STAGE`, under any launcher or none.

The frozen configuration RUN/run.yaml is all that it reads; ranks never run Hydra. Works alone, as one of `hpcqa`'s own
local processes, under torchrun, mpiexec or srun:

    torchrun --nproc-per-node 4 -m hpcqa.launch.job RUN pretrain
    mpiexec -n 4 python -m mpi4py -m hpcqa.launch.job RUN embed
    srun --mpi=pmi2 python -m mpi4py -m hpcqa.launch.job RUN embed
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcqa import __version__
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import frozen
from hpcqa.errors import EnvironmentProblem, HpcqaError, InternalError
from hpcqa.launch import costs, failures
from hpcqa.launch.requeue import requeue
from hpcqa.observe import start_logging
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import Ranks, cores_of_rank, detect, rendezvous, thread_variables
from hpcqa.stages import STAGES, Stage, stage

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage on this rank.

    Returns:
        The exit code: 0, that of the error's kind, or 75 if the stage was asked to stop and can go on later.
    """
    arguments = _parse(argv)
    return run_rank(Path(arguments.run).absolute(), arguments.stage, arguments.part, arguments.parts)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [entry.name for entry in STAGES]
    parser = argparse.ArgumentParser(prog="python -m hpcqa.launch.job", description="Run a stage on this rank.")
    parser.add_argument("run", help="run folder, which holds run.yaml")
    parser.add_argument("stage", choices=names, metavar="stage", help=", ".join(names))
    parser.add_argument("--part", type=int, default=0, help="which of --parts jobs this is, from 0 (job arrays)")
    parser.add_argument("--parts", type=int, default=1, help="into how many jobs the stage is split")
    return parser.parse_args(argv)


def run_rank(run: Path, name: str, part: int = 0, parts: int = 1, entry: Stage | None = None) -> int:
    """Load the configuration, find out the rank, run the stage, and turn every error into a sentence and a code.

    A job that was asked to stop before its time is over is put back into the queue. When one rank of an MPI world fails
    it ends the others, which would wait for it forever.
    """
    logs = run / "logs"
    ranks = Ranks()
    try:
        config, _ = frozen.load(run / "run.yaml")
        chosen = entry or stage(name)
        ranks = split(ranks_of(chosen, os.environ), part, parts)
        failures.clear(logs, name, ranks.rank)
        prepare(chosen, ranks, logs)
        with costs.measured(logs, name, ranks):
            chosen.load()(config, RunFolder(run, frozen.base_runs(config)), ranks)
        preemption.ignore()
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the last resort: a bug must end in a sentence and a log, on every rank
        preemption.ignore()
        logger.debug("%s failed", name, exc_info=True)
        failure = explain(error, name, ranks, logs)
        failures.record(logs, failure)
        # Before the other ranks are ended, and this one with them.
        if failure.exit_code == preemption.EXIT_CODE and preemption.wants_requeue():
            requeue(os.environ)
        if ranks.launcher == "mpi":
            _end_peers(ranks, error)
        _say(failure, ranks)
        return failure.exit_code
    logger.debug("%s: done", name)
    return 0


def explain(error: Exception, name: str, ranks: Ranks, logs: Path) -> failures.Failure:
    """The sentence and the exit code of an error."""
    if isinstance(error, HpcqaError):
        return failures.Failure(name, ranks.rank, str(error), error.exit_code, error.goes_on)
    sentence = (
        f"{type(error).__name__}: {error}: a mistake in hpcqa {__version__}; the traceback is in "
        f"{logs / f'{name}-{ranks.rank}.log'}, please report it."
    )
    return failures.Failure(name, ranks.rank, sentence, InternalError.exit_code)


def _say(failure: failures.Failure, ranks: Ranks) -> None:
    # hpcqa's own launcher shows one sentence for all its ranks.
    if "HPCQA_PARENT" not in os.environ:
        where = f" (rank {failure.rank} on {socket.gethostname()})" if ranks.world_size > 1 else ""
        sys.stderr.write(f"hpcqa {failure.stage}{where}: {failure.sentence}\n")
        sys.stderr.flush()


def _end_peers(ranks: Ranks, error: Exception) -> None:
    from hpcqa.parallel import mpi

    with mpi.guarded(ranks):
        raise error


def prepare(entry: Stage, ranks: Ranks, logs: Path) -> None:
    """Signals, logging, threads and the rendezvous; before numpy and torch are imported, which read the threads."""
    preemption.listen(at_once=entry.ranks != "torch")
    start_logging(rank=ranks.rank, file=logs / f"{entry.name}-{ranks.rank}.log")
    cores = cores_of_rank(os.environ, ranks, len(os.sched_getaffinity(0)))
    os.environ.update(thread_variables(os.environ, cores))
    if entry.ranks == "torch" and ranks.launcher == "slurm":
        os.environ.update(rendezvous(os.environ, ranks, _resolves))
    logger.debug(
        "%s: rank %d of %d (%s), local rank %d of %d, %d cores, %s, job %s, hpcqa %s from %s",
        entry.name,
        ranks.rank,
        ranks.world_size,
        ranks.launcher,
        ranks.local_rank,
        ranks.local_world_size,
        cores,
        socket.gethostname(),
        os.environ.get("SLURM_JOB_ID", "-"),
        __version__,
        Path(__file__).parent.parent,
    )


def _resolves(host: str) -> bool:
    try:
        socket.gethostbyname(host)
    except OSError:
        return False
    return True


def ranks_of(entry: Stage, environ: Mapping[str, str]) -> Ranks:
    """This process's place, checked against what the stage needs.

    Raises:
        EnvironmentProblem: a wrong launcher for this stage, or an MPI world that is not the launcher's.
    """
    ranks = detect(environ)
    if ranks.world_size == 1:
        return ranks
    if entry.ranks == "one":
        raise EnvironmentProblem(
            f"{entry.name} runs as one process, but {ranks.launcher} started {ranks.world_size}; start it alone."
        )
    if entry.ranks == "torch" and ranks.launcher == "mpiexec":
        raise EnvironmentProblem(f"{entry.name} needs torchrun or srun, but mpiexec started it.")
    if entry.ranks == "mpi" and ranks.launcher in ("torchrun", "local"):
        raise EnvironmentProblem(f"{entry.name} needs mpiexec or srun, but {ranks.launcher} started it.")
    if entry.ranks == "mpi":
        # Only here, so that a login node where MPI may not be initialised can still run the stage alone.
        from hpcqa.parallel import mpi

        return mpi.world(environ)
    return ranks


def split(ranks: Ranks, part: int, parts: int) -> Ranks:
    """The rank within a stage that is split into several jobs of the same size (a job array)."""
    if parts == 1:
        return ranks
    return dataclasses.replace(ranks, rank=part * ranks.world_size + ranks.rank, world_size=parts * ranks.world_size)


def run_submitted(run: str, entry: Stage, part: int, parts: int) -> None:
    """What Slurm jobs call, through submitit.

    An error after which the flow goes on ends the job well, so that the jobs which wait for it start; the run's status
    tells of it.
    """
    code = run_rank(Path(run), entry.name, part, parts, entry)
    told = failures.read_one(Path(run) / "logs", entry.name, detect_rank(part, parts)) if code else None
    if code and not (told and told.goes_on):
        sys.exit(code)


def detect_rank(part: int, parts: int) -> int:
    """This process's rank in a stage that is split into several jobs."""
    return split(detect(os.environ), part, parts).rank


if __name__ == "__main__":
    sys.exit(main())
