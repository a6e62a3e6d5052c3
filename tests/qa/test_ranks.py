"""Decisions are the same for any number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classify, fit
from tests.qa.run_folder import make_run, settings

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
OUTPUTS = (("decisions", catalog.DECISIONS), ("ccd_decisions", catalog.CCD_DECISIONS))


def contents(folder: RunFolder) -> dict[str, object]:
    """Content digests of the tables, and the bytes of the exports."""
    found: dict[str, object] = {
        name: store.read_provenance(folder.output(name), schema).content for name, schema in OUTPUTS
    }
    return found | {path.name: path.read_bytes() for path in sorted(folder.output("exports").glob("*.*"))}


@pytest.mark.slow
@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")
def test_one_two_and_three_ranks_decide_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    fit.run(settings(tmp_path), folder, Ranks())
    classify.run(settings(tmp_path), folder, Ranks())
    serial = contents(folder)
    assert len(serial) >= 7
    for ranks in (2, 3):
        for name, _ in OUTPUTS:
            folder.output(name).unlink()
        command = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "tests.qa.run_stage"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, str(tmp_path), "classify"], capture_output=True, text=True, timeout=100, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert contents(folder) == serial
