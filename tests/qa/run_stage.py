"""`mpiexec -n N python -m mpi4py -m tests.qa.run_stage RUN STAGE`: one stage on several ranks, as a job starts it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from hpcqa.artifacts.folder import RunFolder
from hpcqa.parallel import mpi
from tests.qa.run_folder import settings

if __name__ == "__main__":
    run = Path(sys.argv[1])
    ranks = mpi.world()
    with mpi.guarded(ranks):
        importlib.import_module(f"hpcqa.qa.{sys.argv[2]}").run(settings(run), RunFolder(run), ranks)
