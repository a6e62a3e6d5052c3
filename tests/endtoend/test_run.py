"""The whole flow on a small simulated survey: complete, accounted for, repeatable, killable."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hpcqa.artifacts import catalog
from hpcqa.artifacts.store import read_json, read_table
from tests.endtoend.conftest import contents, hpcqa, settings

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


def test_killed_at_any_moment_it_ends_with_the_same_artifacts(finished, tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "hpcqa", "run", f"run={run}", *settings(finished.survey)]
    chance = random.Random(20261122)
    kills = 0
    for _ in range(60):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=chance.uniform(2.0, 10.0 + kills))  # later ones get further
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(0.05)
    else:
        pytest.fail("the run never finished between kills")
    assert process.returncode == 0, said
    assert kills > 2
    assert contents(run) == contents(finished.run)
    leftovers = [path.name for path in run.rglob("*.tmp")]
    done = hpcqa("run", f"run={run}")
    assert done.returncode == 0, done.stderr
    assert len([path for path in run.rglob("*.tmp")]) <= len(leftovers)


def test_progress_is_shown_in_plain_lines(finished):
    assert re.search(r"shard: \d+ of \d+", finished.output.stderr)
