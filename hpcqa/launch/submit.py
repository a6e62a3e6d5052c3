"""One way to launch: in this process, as local processes, or through Slurm."""

from __future__ import annotations

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.launch.local import run_local
from hpcqa.parallel.ranks import Ranks
from hpcqa.stages import Stage


def run_stage(config: Config, folder: RunFolder, stage: Stage) -> None:
    """Run a stage the way `launch` says; the folder's run.yaml is what local processes and jobs read.

    Raises:
        HpcqaError: what the stage, or the first failing rank of it, raised.
    """
    if config.launch.kind == "local" and config.launch.tasks > 1 and stage.ranks != "one":
        run_local(folder.path, stage, config.launch.tasks)
    else:
        stage.load()(config, folder, Ranks())
