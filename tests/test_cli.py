"""The command line as its user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hpcqa.config import Config, leaves
from hpcqa.stages import STAGES


def hpcqa(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hpcqa", *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_stage_and_imports_neither_torch_nor_hydra(tmp_path):
    done = hpcqa("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(stage.name in done.stdout for stage in STAGES)
    probe = "import sys, hpcqa.cli; print([m for m in ('torch', 'mpi4py', 'hydra', 'astropy') if m in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"


def test_run_help_explains_every_setting(tmp_path):
    done = hpcqa("run", "--help", cwd=tmp_path)
    for leaf in leaves(Config()):
        assert f"  {leaf.name}=" in done.stdout
        assert leaf.setting.doc in done.stdout


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_each_stage_has_help(stage, tmp_path):
    done = hpcqa(stage, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "launch.kind=inline" in done.stdout


def test_cfg_job_shows_the_composed_configuration(tmp_path):
    done = hpcqa("fit", "--cfg", "job", "fit.k=5", cwd=tmp_path)
    assert done.returncode == 0
    assert "k: 5" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["manifst"], 2, "manifst: no such command"),
        (["fit", "fit.kk=3"], 2, "fit.kk: no such setting; did you mean fit.k"),
        (["fit", "fit.k=-1"], 2, "fit.k=-1: expected 0 to 1000"),
        (["fit", "--quick"], 2, "--quick: no such switch"),
        (["run"], 2, "survey.tables=[]: no survey"),
        (["pretrain", "ssl.init_from=/dev/null"], 2, "ssl.init_from=/dev/null: no such file"),
        (["run", "survey=simulated", f"ssl.init_from={__file__}"], 3, "test_cli.py: not a readable safetensors file"),
        (["manifest"], 2, "survey.tables=[]: no survey"),
        (["status", "nowhere"], 2, "run.yaml: not found"),
        (["verify", "nowhere"], 2, "run.yaml: not found"),
        (["show", "abc"], 2, "abc: expected an exposure number"),
        (["show", "700080", "runs=runs/a"], 2, "runs: no such setting"),
        (["verify", "/dev/null"], 2, "/dev/null: not a folder; expected a run folder"),
        (["estimate"], 2, "how large is the survey"),
        (["estimate", "exposures=none"], 2, "exposures=none: expected a whole number"),
        (["estimate", "--quick"], 2, "--quick: no such switch"),
        (["sweep-table", "nowhere"], 3, "nowhere: no runs of a sweep"),
        (["sweep-table", "a", "by=b"], 2, "by: no such setting"),
        (["import-weights", "x"], 2, "RUN/backbone.safetensors [key=value]`, got x."),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(words, code, said, tmp_path):
    done = hpcqa(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run=r"], 4, "no sbatch on PATH"),
        (["run=r", "stage.shard.minutes=1"], 2, "stage.shard.minutes=1: expected more than"),
        (["run=r", "cluster=perlmutter_cpu", "stage.shard.minutes=9999"], 2, "perlmutter_cpu has 2880 minutes at most"),
        (["run=r", "cluster=perlmutter_gpu", "stage.shard.gpus_per_node=5"], 2, "perlmutter_gpu has 4 GPUs"),
        (["run=/proc/r", "launch=inline"], 4, "/proc/r/run.yaml: cannot be written"),
    ],
)
def test_what_slurm_cannot_do_is_said_before_it_is_remembered(words, code, said, tmp_path):
    """PATH without Slurm's commands; a refused setting must not stay in the run folder."""
    done = hpcqa(
        "shard", *([] if "launch=inline" in words else ["launch=slurm"]), *words, cwd=tmp_path, PATH=str(tmp_path)
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_ranks_do_not_compose(tmp_path):
    done = hpcqa("embed", cwd=tmp_path, RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4")
    assert done.returncode == 4
    assert "hpcqa.launch.job" in done.stderr


def test_a_stage_without_its_input_says_which_stage_comes_first(tmp_path):
    done = hpcqa("shard", "run=here", cwd=tmp_path)
    assert done.returncode == 3
    assert "manifest" in done.stderr.splitlines()[-1]


def test_version(tmp_path):
    assert hpcqa("--version", cwd=tmp_path).stdout.startswith("0.")


def test_a_sweep_makes_a_run_folder_for_each_combination(tmp_path):
    done = hpcqa("shard", "--multirun", "shard.use_masks=true,false", "seed=3", "run=r", cwd=tmp_path)
    runs = sorted((tmp_path / "r" / "sweeps").glob("*/*/run.yaml"))
    assert len(runs) == 2
    assert done.returncode == 3
    assert done.stderr.count("manifest.parquet: not found") == 2
    texts = [run.read_text() for run in runs]
    assert "use_masks: true" in texts[0]
    assert "use_masks: false" in texts[1]
