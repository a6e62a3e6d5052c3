"""The whole flow on a small simulated survey: complete, accounted for, repeatable, killable."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcqa.artifacts import catalog
from hpcqa.artifacts.store import read_json, read_table
from hpcqa.config import frozen
from tests.endtoend.conftest import contents, hpcqa, settings
from tests.endtoend.warm_ranks import MPIEXEC, Killing, WarmRanks

pytestmark = pytest.mark.slow


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


# Kills of ranks for each stage and number of ranks.
KILLS = int(os.environ.get("HPCQA_KILLS", "8"))
OUTPUTS = {
    "embed": ("embeddings", "embeddings-untrained"),
    "classify": ("exports", "decisions.parquet", "ccd_decisions.parquet"),
}


@pytest.fixture(scope="module")
def warm(finished, tmp_path_factory) -> Iterator[WarmRanks]:
    """Ranks at hand for a run of many small shards."""
    run = tmp_path_factory.mktemp("warm") / "run"
    run.mkdir()
    config, _ = frozen.load(finished.run / "run.yaml")
    shard = dataclasses.replace(config.shard, exposures_per_shard=1)
    (run / "run.yaml").write_text(frozen.to_yaml(dataclasses.replace(config, run=str(run), shard=shard), []))
    shutil.copy(finished.run / "backbone.safetensors", run)
    ranks = WarmRanks.start(run, run.parent / "ranks")
    yield ranks
    ranks.close()


@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this Python")
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("stage", list(OUTPUTS))
def test_ranks_killed_at_any_moment_cost_nothing(warm, stage, ranks):
    """SIGKILL of any rank, or of all at once, all over a stage, each time going on from what the last one left: by the
    clock, and just before a file is made, synced, renamed or removed. What has its name is whole at every moment and is
    not made again; what is there in the end is what one process made, to the last byte.
    """
    expected = written(warm.run, stage)
    remove(warm.run, stage)
    undisturbed = warm.measure(stage, ranks)
    assert written(warm.run, stage) == expected
    remove(warm.run, stage)
    chance = random.Random(f"{stage} {ranks}")
    moments = [(number + chance.random()) / KILLS for number in range(KILLS)]
    chance.shuffle(moments)
    passes = 0
    for number, moment in enumerate(moments):
        # Embeddings that are there are not made again, so the second half of a start seldom comes.
        killing = Killing(number, moment / 2 if stage == "embed" else moment, undisturbed, chance)
        hit = False
        while not hit:
            passes += 1
            assert passes < 4 * KILLS, "kills come too late"
            before = times(warm.run, stage)
            struck, code, said = killing.strike(warm, stage, ranks)
            assert struck or code == 0, said
            hit = code != 0  # a rank that was killed had perhaps just ended
            found = written(warm.run, stage)
            assert found.items() <= expected.items()
            assert stage != "embed" or before.items() <= times(warm.run, stage).items()
            if not hit:
                assert found == expected
                remove(warm.run, stage)
    code, said = warm.end(warm.begin(stage, ranks))
    assert code == 0, said
    assert written(warm.run, stage) == expected
    assert not list(warm.run.rglob("*.tmp"))


def names_of(run: Path, stage: str) -> list[Path]:
    """The files of a stage, unfinished ones left out; nobody writes meanwhile."""
    roots = [run / name for name in OUTPUTS[stage]]
    files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    return [path for path in files if path.suffix != ".tmp"]


def written(run: Path, stage: str) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in names_of(run, stage)}


def times(run: Path, stage: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in names_of(run, stage)}


def remove(run: Path, stage: str) -> None:
    for path in names_of(run, stage):
        path.unlink()


def test_progress_is_shown_in_plain_lines(finished):
    assert re.search(r"shard: \d+ of \d+", finished.output.stderr)
