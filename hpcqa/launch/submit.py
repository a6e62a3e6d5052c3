"""One way to launch: in this process, as local processes, or through Slurm. The only place that knows submitit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hpcqa
from hpcqa import observe
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.errors import EnvironmentProblem, HpcqaError
from hpcqa.launch import batch, costs, failures, jobs
from hpcqa.launch.job import run_submitted
from hpcqa.launch.local import STALE_PREFIXES, run_local
from hpcqa.launch.snapshot import CODE_FOLDER, digest, snapshot
from hpcqa.parallel.ranks import Ranks
from hpcqa.stages import Stage

SLURM_FOLDER = "logs/slurm"
PACKAGE = Path(hpcqa.__file__).parent


def run_stage(config: Config, folder: RunFolder, stage: Stage) -> None:
    """Run a stage in this process or in local processes; the folder's run.yaml is what these read.

    Raises:
        HpcqaError: what the stage, or the first failing rank of it, raised.
        EnvironmentProblem: Slurm jobs of this run are queued.
    """
    jobs.refuse_live(folder.path)
    if config.launch.kind == "local" and config.launch.tasks > 1 and stage.ranks != "one":
        run_local(folder.path, stage, config.launch.tasks)
    else:
        failures.clear(folder.output("logs"), stage.name)
        logs = folder.output("logs")
        with observe.logged_to(logs / f"{stage.name}-0.log"), costs.measured(logs, stage.name, Ranks()):
            _run_here(config, folder, stage)


def _run_here(config: Config, folder: RunFolder, stage: Stage) -> None:
    """In this process; a failure is written down for `hpcqa status` and `hpcqa sweep-table`."""
    try:
        stage.load()(config, folder, Ranks())
    except HpcqaError as error:
        failures.record(
            folder.output("logs"), failures.Failure(stage.name, 0, str(error), error.exit_code, error.goes_on)
        )
        raise


def batch_text(config: Config, folder: RunFolder, stage: Stage, *, after: Sequence[str] = ()) -> str:
    """Exactly the batch file that would be submitted; writes nothing.

    Raises:
        ConfigError: the stage asks for more than the cluster has.
    """
    batch.check(config, stage)
    code = folder.path / CODE_FOLDER / digest(PACKAGE)[:16] if config.launch.snapshot else None
    executor = _executor(config, folder, stage, code=code, after=after)
    parts = batch.num_jobs(config, stage)
    if parts > 1:
        executor.parameters["map_count"] = parts
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text.rstrip() + "\n"


def submit(config: Config, folder: RunFolder, stage: Stage, *, after: Sequence[str] = ()) -> jobs.Submission:
    """Put a stage into the queue and remember its job; the caller holds the run folder.

    Args:
        after: ids of jobs that must end well before.

    Raises:
        ConfigError: the stage asks for more than the cluster has.
        EnvironmentProblem: Slurm refuses; says what it said.
    """
    import submitit

    batch.check(config, stage)
    code = snapshot(folder.path, PACKAGE) if config.launch.snapshot else None
    executor = _executor(config, folder, stage, code=code, after=after)
    parts = batch.num_jobs(config, stage)
    run = str(folder.path.absolute())
    failures.clear(folder.output("logs"), stage.name)
    try:
        with clean_environment():
            submitted = executor.map_array(run_submitted, [run] * parts, [stage] * parts, range(parts), [parts] * parts)
    except submitit.core.utils.FailedJobError as error:
        raise EnvironmentProblem(f"{stage.name}: {_said(error)}") from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder.path / SLURM_FOLDER}: cannot be written ({error.strerror}); choose a run folder that you may "
            "write to."
        ) from None
    submission = jobs.Submission(stage.name, submitted[0].job_id.split("_")[0], parts, time.time())
    jobs.record(folder.path, submission)
    return submission


def _executor(config: Config, folder: RunFolder, stage: Stage, *, code: Path | None, after: Sequence[str]) -> Any:
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        """Whether there is a Slurm was asked before; a dry run needs none."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(folder=folder.path.absolute() / SLURM_FOLDER)
    executor.update_parameters(**batch.parameters(config, stage, folder.path.absolute(), code=code, after=after))
    return executor


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without what an allocation or a launcher around this process would tell sbatch, and through it the job."""
    import submitit

    names = [name for name in os.environ if name.startswith((*STALE_PREFIXES, "SALLOC_"))]
    configuration = os.environ.get("SLURM_CONF")
    with submitit.helpers.clean_env(extra_names=names):
        # submitit drops every SLURM_*; this one says which Slurm to talk to.
        if configuration is not None:
            os.environ["SLURM_CONF"] = configuration
        yield


def _said(error: Exception) -> str:
    """Slurm's own complaint out of submitit's message, which quotes the whole command."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.removeprefix("sbatch: ") for line in lines if "error:" in line]
    text = "; ".join(said) or (lines[-1] if lines else type(error).__name__)
    return f"sbatch refused: {text.replace('error: ', '').rstrip('.')}; see cluster.* and stage.*."
