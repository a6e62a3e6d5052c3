from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from hpcqa.artifacts.catalog import MANIFEST
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Provenance
from hpcqa.artifacts.store import read_provenance, write_json, write_table
from hpcqa.config import Config, SurveyConfig
from hpcqa.config.frozen import to_yaml
from hpcqa.errors import DataError
from hpcqa.launch import failures, jobs, progress, queue, status
from hpcqa.launch.progress import Progress
from hpcqa.stages import STAGES, Stage, stage


def write_manifest(folder, shards: int, plver: str = "V1") -> None:
    rows = shards * 2
    columns = {}
    for column in MANIFEST.columns:
        if column.dtype == "str":
            columns[column.name] = np.array([plver] * rows, object)
        else:
            columns[column.name] = np.zeros(rows, column.dtype)
    columns["expnum"] = np.arange(rows)
    columns["shard"] = np.repeat(np.arange(shards), 2)
    write_table(folder.output("manifest"), MANIFEST, columns, Provenance("config", {}, "minicam"))


def write_shards(folder, numbers) -> None:
    place = folder.output("shards")
    place.mkdir(exist_ok=True)
    for number in numbers:
        (place / shard_name(number)).write_text("")


def test_shards_are_counted_against_the_manifest(folder):
    write_manifest(folder, 5)
    write_shards(folder, [0, 1, 3])
    (folder.output("shards") / ".shard-00002.h5.host.1.tmp").write_text("")
    (folder.output("shards") / shard_name(77)).write_text("")
    found = progress.progress_of(Config(), folder, stage("shard"), progress.own_shards(Config(), folder))
    assert (found.done, found.total) == (3, 5)


def test_rate_and_time_left():
    found = progress.files_progress([0.0, 10.0, 20.0, 30.0], 10)
    assert found.rate == pytest.approx(0.1)
    assert found.left_s == pytest.approx(60.0)
    assert progress.files_progress([], 10) == Progress(0, 10)
    assert progress.files_progress([5.0], 1).is_complete


def test_a_pause_does_not_count_in_the_rate():
    assert progress.files_progress([0.0, 1.0, 10000.0, 10010.0, 10020.0], 10).rate == pytest.approx(0.1)


def test_training_by_its_metrics(folder):
    lines = [{"step": 10, "images_per_s": 64.0, "images": 320}, {"step": 12, "knn_ap": 0.5}]
    folder.output("metrics").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 13, "im')
    found = progress.training_progress(folder, 300)
    assert found.done == 12
    assert found.rate == pytest.approx(2.0)
    assert found.left_s == pytest.approx(144.0)
    folder.output("backbone").write_text("")
    assert progress.training_progress(folder, 300).is_complete


def test_missing_is_what_is_unfinished_and_all_that_follows_from_it(folder):
    write_manifest(folder, 2)
    names = [entry.name for entry in progress.missing(Config(), folder, list(STAGES))]
    assert "manifest" in names  # labels.parquet is not there
    child = Stage("manifest", "", "", "one", (), ("manifest",))
    rest = [child, *STAGES[2:]]
    assert progress.missing(Config(), folder, rest)[0].name == "shard"


def test_an_artifact_of_other_parents_is_missing(folder):
    write_manifest(folder, 2)
    content = read_provenance(folder.output("manifest")).content
    path = folder.output("truth")
    entry = Stage("report", "", "", "one", ("manifest",), ("truth",))
    columns = {
        column.name: np.array(["x"], object) if column.dtype == "str" else np.zeros(1, column.dtype)
        for column in MANIFEST.columns
    }
    write_table(path, MANIFEST, columns, Provenance("c", {"manifest.parquet": content}, "minicam"))
    assert progress.is_finished(Config(), folder, entry, 2)
    write_manifest(folder, 2, plver="V2")
    assert not progress.is_finished(Config(), folder, entry, 2)


def test_files_without_provenance_go_by_time(folder):
    write_json(folder.output("evaluation"), {})
    entry = Stage("evaluate", "", "", "one", ("manifest",), ("evaluation",))
    write_manifest(folder, 1)
    os.utime(folder.output("manifest"), (1, 1))
    assert progress.is_finished(Config(), folder, entry, 1)
    os.utime(folder.output("evaluation"), (0, 0))
    assert not progress.is_finished(Config(), folder, entry, 1)


def test_the_table(folder, monkeypatch):
    write_manifest(folder, 4)
    write_shards(folder, [0, 1])
    logs = folder.output("logs")
    logs.mkdir()
    (logs / "shard-0.log").write_text("2026 rank 0 INFO hpcqa: shard: 2 of 4\n2026 rank 0 DEBUG hpcqa: not this\n")
    for rank in range(5):
        failures.record(logs, failures.Failure("shard", rank, "disk full.", 4))
    jobs.record(folder.path, jobs.Submission("shard", "9", 2, 0.0))
    monkeypatch.setattr(queue, "available", lambda: True)
    tasks = [queue.JobState("9", "0", "FAILED"), queue.JobState("9", "1", "RUNNING")]
    monkeypatch.setattr(queue, "states", lambda ids: {"9": tasks})
    text = status.status_text(Config(), folder)
    row = next(line for line in text.splitlines() if line.startswith("shard"))
    assert row.split() == ["shard", "2/4", "9", "1", "failed,", "1", "running"]
    assert "simulate" not in text
    assert text.count("disk full.") == 3
    assert "2 further ranks failed" in text
    assert "shard says: shard: 2 of 4" in text
    found = json.loads(status.status_json(Config(survey=SurveyConfig(simulated=True)), folder))
    shard = next(row for row in found["stages"] if row["stage"] == "shard")
    assert shard["tasks"] == {"FAILED": 1, "RUNNING": 1}
    assert shard["complete"] is False


def test_what_a_base_run_lends_is_done(folder, tmp_path):
    """The base has the manifest and two of three shards: the manifest is lent, the unfinished shards are not."""
    base = RunFolder(tmp_path / "base")
    base.path.mkdir()
    (base.path / "run.yaml").write_text(to_yaml(Config(run=str(base.path)), []))
    write_manifest(base, 3)
    write_shards(base, [0, 1])
    base.output("labels").write_text("")
    config = Config(run=str(folder.path), base=str(base.path))
    there = RunFolder(folder.path, (base.path,))
    rows = {row.stage: row for row in status.collect(config, there).stages}
    assert rows["manifest"].lent == str(base.path)
    assert rows["manifest"].progress.is_complete
    assert (rows["shard"].lent, rows["shard"].progress.done, rows["shard"].progress.total) == ("", 0, 3)
    write_shards(base, [2])
    text = status.status_text(config, there)
    assert "3/3 (lent)" in text
    assert f"lent by {base.path}" in text


def test_forgotten_jobs_and_no_slurm_are_notes(folder, monkeypatch):
    jobs.record(folder.path, jobs.Submission("shard", "9", 2, 0.0))
    monkeypatch.setattr(queue, "available", lambda: True)
    monkeypatch.setattr(queue, "states", lambda ids: {})
    assert "Slurm has forgotten job 9" in status.status_text(Config(), folder)
    monkeypatch.setattr(queue, "available", lambda: False)
    assert "no Slurm" in status.status_text(Config(), folder)


def test_logs(folder):
    with pytest.raises(DataError, match="no logs of shard"):
        status.logs_text(folder, "shard")
    logs = folder.output("logs")
    logs.mkdir()
    for rank in (10, 9, 0):
        (logs / f"shard-{rank}.log").write_text("".join(f"line {number}\n" for number in range(50)))
    text = status.logs_text(folder, "shard", 2)
    assert text.index("shard-9.log") < text.index("shard-10.log")
    assert text.count("line") == 6


@pytest.mark.parametrize(("seconds", "words"), [(7, "7 s"), (600, "10 min"), (9000, "2 h 30 min")])
def test_durations(seconds, words):
    assert status.duration(seconds) == words


def test_a_large_run_is_quick(folder):
    write_manifest(folder, 2500)
    write_shards(folder, range(2500))
    began = time.perf_counter()
    status.status_text(Config(), folder)
    assert time.perf_counter() - began < 2
