"""Sweeps through Hydra's plugins: a launcher that runs jobs elsewhere, and a sweeper that chooses by the objective."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

SWEEPER = '''
"""A sweeper that climbs: it takes the next seed as long as the objective grows."""
from pathlib import Path
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store(
    group="hydra/sweeper", name="climb", node={"_target_": "hydra_plugins.climb.Climb"}, provider="climb"
)


class Climb(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        best = None
        for number in range(9):
            (job,) = self.launcher.launch([[*arguments, f"seed={number}"]], initial_job_idx=number)
            value = job.return_value
            if best is not None and value <= best:
                break
            best = value
        Path(self.config.run, "climbed").write_text(f"{best} after {number}")
'''

# The hpcqa command with a stage that takes no time.
COMMAND = """
import sys
from hpcqa import cli
from hpcqa.errors import DataError

def work(name, config, overrides):
    if config.fit.k == 7:
        raise DataError("labels.parquet: no labels.")
    return 0, None if config.fit.k == 8 else float(-abs(config.seed - 3))

cli.work = work
cli.main(sys.argv[1:])
"""


@pytest.fixture
def command(tmp_path):
    place = tmp_path / "plugins" / "hydra_plugins" / "climb"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(textwrap.dedent(SWEEPER))
    script = tmp_path / "command.py"
    script.write_text(COMMAND)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "plugins")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_sweeper_gets_the_objective_of_every_run(command, tmp_path):
    done = command("evaluate", "--multirun", "run=r", "hydra/sweeper=climb")
    assert done.returncode == 0, done.stderr
    # Seeds 0, 1, 2, 3 grow from -3 to 0; 4 does not.
    assert (tmp_path / "r" / "climbed").read_text() == "0.0 after 4"


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("fit.k=7", 3, "labels.parquet: no labels."),
        ("fit.k=8", 2, "climb chooses by the objective, and `fit` gave none"),
    ],
)
def test_a_sweeper_that_chooses_hears_of_errors(command, setting, code, said):
    done = command("fit", "--multirun", "run=r", "hydra/sweeper=climb", setting)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_hydra_s_own_complaints_are_one_sentence(command):
    done = command("fit", "--multirun", "run=r", "hydra/sweeper=annealing")
    assert done.returncode == 2
    assert "annealing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"), reason="hpcqa[sweep]")
def test_a_launcher_plugin_runs_the_jobs_in_processes_of_its_own(tmp_path):
    def hpcqa(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcqa", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    words = ["--multirun", "run=r", "survey=simulated", "hydra/launcher=submitit_local"]
    done = hpcqa("simulate", *words, "simulate.exposures=1", "hydra.sweep.dir=r/sweeps/one")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "r" / "sweeps" / "one" / "0"
    assert len((run / "survey" / "truth.csv").read_text().splitlines()) > 1
    assert "simulate" in (run / "logs" / "simulate-0.log").read_text()
    # Without its input: the error comes back as it was raised.
    refused = hpcqa("shard", *words, "shard.use_masks=true", "hydra.sweep.dir=r/sweeps/two")
    assert refused.returncode == 3
    assert "manifest.parquet: not found" in refused.stderr.splitlines()[-1]
