"""Sweep tables from run folders as the stages leave them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from hpcqa.config import Config, FitConfig
from hpcqa.config.frozen import to_yaml
from hpcqa.errors import ConfigError, DataError
from hpcqa.launch import failures, jobs, queue, sweep


def make_run(path, k: int, pca: int, ap: float | None = None) -> None:
    path.mkdir(parents=True)
    config = Config(run=str(path), fit=FitConfig(k=k, pca=pca))
    (path / "run.yaml").write_text(to_yaml(config, []))
    if ap is not None:
        figures = {"average_precision": {"value": ap, "low": ap - 0.1, "high": ap + 0.05}, "recall": {"value": 0.5}}
        (path / "evaluation.json").write_text(json.dumps({"figures": figures}))


@pytest.fixture
def swept(tmp_path):
    """Eleven runs: ten with figures, one that failed."""
    place = tmp_path / "my run" / "sweeps" / "20260101-000000"
    for number in range(10):
        make_run(place / str(number), 2 + number % 5, 16, 0.5 + 0.02 * number)
    make_run(place / "10", 2, 32)
    failures.record(place / "10" / "logs", failures.Failure("fit", 0, "too few labels.", 3))
    return place


def test_rows_in_order_with_states_and_the_best(swept):
    table = sweep.collect(swept)
    assert [row.name for row in table.rows] == [str(number) for number in range(11)]
    assert table.settings == ("fit.k", "fit.pca")
    assert table.metric == "average_precision"
    assert table.best == "9"
    assert table.rows[10].state == "failed: fit, too few labels."
    assert table.rows[0].state == "done"
    said = sweep.text(table)
    starred = [line for line in said.splitlines() if line.startswith("*")]
    assert len(starred) == 1
    assert starred[0].split()[1] == "9"
    assert "best by average_precision: 9 of 11 runs" in said
    # 0.68 - 0.1: runs 4 to 8 have 0.58 and more.
    assert "5 of 9 others are within its interval" in said


def test_the_csv_has_every_run_and_empty_cells(swept):
    rows = list(csv.DictReader(io.StringIO(sweep.csv_text(sweep.collect(swept)))))
    assert len(rows) == 11
    assert rows[9]["best"] == "1"
    assert float(rows[3]["average_precision"]) == pytest.approx(0.56)
    assert float(rows[3]["average_precision_high"]) == pytest.approx(0.61)
    assert rows[3]["recall_low"] == ""
    assert rows[10]["average_precision"] == ""
    assert rows[10]["fit.pca"] == "32"


def test_files_are_written(swept, tmp_path):
    written = sweep.write(sweep.collect(swept), tmp_path)
    assert [path.name for path in written] == ["sweep.csv", "sweep.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_without_figures_there_is_no_plot(tmp_path):
    make_run(tmp_path / "0", 1, 8)
    (tmp_path / "1").mkdir()
    table = sweep.collect(tmp_path)
    assert [row.state for row in table.rows] == ["unfinished", "not started"]
    assert (table.best, table.metric) == ("", "")
    assert [path.name for path in sweep.write(table, tmp_path)] == ["sweep.csv"]


def test_the_run_that_it_started_on_names_it_too(swept):
    table = sweep.collect(swept.parent.parent)
    assert table.rows[0].name == "20260101-000000/0"


def test_another_metric_and_one_that_no_run_has(swept):
    for number in range(3):
        (swept / str(number) / "metrics.jsonl").write_text(json.dumps({"loss": 3.0 + number, "step": 1}) + "\n")
    table = sweep.collect(swept, "loss")
    assert table.best == "0"
    with pytest.raises(ConfigError, match=r"best=purity: no run has it; there are average_precision, recall, loss"):
        sweep.collect(swept, "purity")


def test_no_runs(tmp_path):
    with pytest.raises(DataError, match="no runs of a sweep"):
        sweep.collect(tmp_path)


def test_states_of_jobs(tmp_path, monkeypatch):
    for number in range(4):
        make_run(tmp_path / str(number), number + 1, 8)
        jobs.record(tmp_path / str(number), jobs.Submission("fit", str(70 + number), 1, 0.0))
    said = {
        "70": [queue.JobState("70", "", "RUNNING")],
        "71": [queue.JobState("71", "", "PENDING", "Resources")],
        "72": [queue.JobState("72", "", "TIMEOUT")],
    }
    monkeypatch.setattr(queue, "available", lambda: True)
    monkeypatch.setattr(queue, "states", lambda ids: said)
    states = [row.state for row in sweep.collect(tmp_path).rows]
    assert states == ["running", "queued", "failed: job 72 timeout", "unfinished"]


def test_settings_of_the_place_are_not_compared():
    one = Config(run="a", seed=1)
    two = dataclasses.replace(one, run="b", seed=2)
    assert sweep.differing([sweep._plain(one), sweep._plain(two)]) == ["seed"]
