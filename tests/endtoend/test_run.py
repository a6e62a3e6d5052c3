"""The whole flow on a small simulated survey: complete, accounted for, repeatable, killable."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcqa.artifacts import catalog
from hpcqa.artifacts.store import read_json, read_table
from tests.endtoend.conftest import contents, hpcqa, settings

pytestmark = pytest.mark.slow
MPIEXEC = Path(sys.executable).with_name("mpiexec")


def test_the_run_ends_with_where_the_report_is(finished):
    last = finished.output.stdout.strip().splitlines()[-1]
    assert last == f"report: {finished.run}/report/index.html"
    assert (finished.run / "report" / "index.html").stat().st_size > 1000


def test_every_exposure_and_every_row_is_decided_or_says_why(finished):
    manifest = read_table(finished.run / "manifest.parquet", catalog.MANIFEST)
    decisions = read_table(finished.run / "decisions.parquet", catalog.DECISIONS)
    ccds = read_table(finished.run / "ccd_decisions.parquet", catalog.CCD_DECISIONS)
    assert sorted(decisions["expnum"]) == sorted(set(manifest["expnum"]))
    assert len(ccds["expnum"]) == len(manifest["expnum"])
    undecided = decisions["verdict"] == "undecided"
    assert np.isfinite(decisions["p_bad"][~undecided]).all()
    assert all(decisions["why"][undecided])
    assert set(decisions["verdict"]) <= {"good", "bad", "review", "undecided"}


def test_the_evaluation_is_on_unseen_exposures_with_controls(finished):
    evaluation = read_json(finished.run / "evaluation.json")
    assert 0 <= evaluation["figures"]["average_precision"]["value"] <= 1
    names = [control["name"] for control in evaluation["controls"]]
    assert {"numbers", "untrained", "numbers+untrained", "numbers+network", "published"} <= set(names)


def test_verify_finds_nothing_and_then_what_was_damaged(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.run, copy)
    well = hpcqa("verify", str(copy))
    assert well.returncode == 0, well.stdout
    shard = next((copy / "shards").glob("*.h5"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    shard.write_bytes(bytes(raw))
    ill = hpcqa("verify", str(copy))
    assert ill.returncode == 3
    assert shard.name in ill.stdout


def test_running_again_does_nothing_again(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*.h5")}
    again = hpcqa("run", f"run={finished.run}")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.run.rglob("*.h5")} == before


def test_another_configuration_is_refused(finished):
    refused = hpcqa("run", f"run={finished.run}", "shard.use_masks=false")
    assert refused.returncode == 2
    assert "shard.use_masks=True (now False)" in refused.stderr


def test_a_new_run_on_a_base_reads_what_the_base_has(finished, tmp_path):
    done = hpcqa("run", f"run={tmp_path}/second", f"base={finished.run}", "fit.k=2")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "second" / "shards").exists()
    assert (tmp_path / "second" / "decisions.parquet").exists()


@pytest.mark.parametrize("tasks", [2, 3])
def test_the_number_of_ranks_changes_nothing(finished, tmp_path, tasks):
    """Shards are made anew by N processes, embeddings and decisions by N MPI ranks, from the same backbone."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished.run / "run.yaml", run)
    for name in ("manifest.parquet", "labels.parquet", "truth.parquet"):
        shutil.copy(finished.run / name, run)
    wide = ("launch=local", f"launch.tasks={tasks}")
    for words in (("shard", *wide), ("calibrate",)):
        done = hpcqa(*words, f"run={run}")
        assert done.returncode == 0, done.stderr
    shutil.copy(finished.run / "backbone.safetensors", run)
    for words in (("embed", *wide), ("fit",), ("classify", *wide)):
        done = hpcqa(*words, f"run={run}")
        assert done.returncode == 0, done.stderr
    want, got = contents(finished.run), contents(run)
    for name, content in got.items():
        if name.startswith(("shards/", "calibration")):
            assert content == want[name], name
    for name in ("embeddings", "embeddings-untrained"):
        for path in sorted((finished.run / name).glob("*.h5")):
            _assert_close_embeddings(path, run / name / path.name)
    one = read_table(finished.run / "decisions.parquet", catalog.DECISIONS)
    other = read_table(run / "decisions.parquet", catalog.DECISIONS)
    assert one["verdict"].tolist() == other["verdict"].tolist()
    np.testing.assert_allclose(one["p_bad"], other["p_bad"], atol=1e-4)


def _assert_close_embeddings(one, other):
    from hpcqa.artifacts.store import open_arrays

    with open_arrays(one, catalog.EMBEDDING) as first, open_arrays(other, catalog.EMBEDDING) as second:
        assert np.array_equal(first.read("expnum"), second.read("expnum"))
        np.testing.assert_allclose(first.read("context"), second.read("context"), atol=1e-4)


KINDS = (".parquet", ".h5", ".safetensors", ".tmp")


def artifacts_in(run: Path) -> int:
    """Finished files, and the starts of unfinished ones. os.walk, unlike rglob, forgives a folder that is renamed while
    it is looked into: the run goes on meanwhile.
    """
    return sum(
        name.endswith(KINDS) or Path(folder).name in ("checkpoints", "exports")
        for folder, folders, files in os.walk(run)
        for name in (*folders, *files)
    )


def killed_after(process: subprocess.Popen[str], run: Path, files: int, pause: float) -> bool:
    """Kill a run a moment after it has left so many files; False if it ended before."""
    while artifacts_in(run) < files:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_at_any_moment_it_ends_with_the_same_artifacts(finished, tmp_path):
    """Kills follow what the run has written, so that all its stages are hit and no time goes into starting up."""
    run = tmp_path / "run"
    words = [sys.executable, "-m", "hpcqa", "run", f"run={run}", *settings(finished.survey)]
    chance = random.Random(20261122)
    last = artifacts_in(finished.run)
    kills = 0
    for files in sorted(chance.sample(range(1, last), 5)):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kills += killed_after(process, run, files, chance.uniform(0.0, 0.3))
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert kills > 2
    assert contents(run) == contents(finished.run)


BY_RANKS = (
    ("embed", ("embeddings", "embeddings-untrained")),
    ("classify", ("exports", "decisions.parquet", "ccd_decisions.parquet")),
)


@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")
def test_a_rank_killed_at_any_moment_costs_nothing(finished, tmp_path):
    """One of two MPI ranks dies of SIGKILL while embeddings and decisions are made; the next start does the rest. What
    is there in the end is what two ranks make that nobody kills, to the last byte.
    """
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    for stage, names in BY_RANKS:
        remove(run, names)
        by_two_ranks(run, stage)
    expected, tables = contents(run), exports(run)
    chance = random.Random(20261122)
    kills = 0
    for stage, names in BY_RANKS:
        remove(run, names)
        before = artifacts_in(run)
        for files in (1, chance.randint(2, 5)):
            kills += rank_killed_after(run, stage, before + files, chance)
        by_two_ranks(run, stage)
    assert kills > 1
    assert contents(run) == expected
    assert exports(run) == tables
    assert not list(run.rglob("*.tmp"))


def remove(run: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def exports(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "exports").glob("*.*")}


def words_for_two_ranks(run: Path, stage: str) -> list[str]:
    return [str(MPIEXEC), "-n", "2", sys.executable, "-m", "mpi4py", "-m", "hpcqa.launch.job", str(run), stage]


def by_two_ranks(run: Path, stage: str) -> None:
    done = subprocess.run(words_for_two_ranks(run, stage), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rank_killed_after(run: Path, stage: str, files: int, chance: random.Random) -> bool:
    """Kill one of the ranks as soon as the run has so many files, which ends the others; False if all ended before."""
    process = subprocess.Popen(words_for_two_ranks(run, stage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while artifacts_in(run) < files and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return False
    ranks = [child.pid for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]
    if ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(ranks), signal.SIGKILL)
    return process.wait(timeout=120) != 0


def is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "hpcqa.launch.job" in process.cmdline() and "python" in Path(process.exe()).name
    return False


def test_progress_is_shown_in_plain_lines(finished):
    assert re.search(r"shard: \d+ of \d+", finished.output.stderr)
