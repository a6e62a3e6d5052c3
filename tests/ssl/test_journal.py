import importlib.util
import json

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import EnvironmentProblem
from hpcqa.ssl import pretrain
from hpcqa.ssl.journal import Journal, check_tensorboard
from tests.ssl.fakes import FakeCutouts, small_config
from tests.ssl.test_pretrain import WORLD, lines, train


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_every_line_says_how_training_is(tmp_path):
    train(tmp_path, peak_tflops=0.5)
    line = lines(tmp_path)[-1]
    assert {
        "loss", "loss_dino_context", "loss_ibot_context", "loss_koleo_context", "loss_defect_background", "grad_norm",
        "lr", "momentum", "skipped", "images_per_s", "data_wait_share", "tflops", "mfu", "memory_gib", "rank_context",
        "spread_context", "teacher_entropy_context", "prototype_entropy_context", "step", "images",
    } <= set(line)  # fmt: skip
    assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)
    assert 0 < line["memory_gib"] < 100
    assert 0 <= line["data_wait_share"] <= 1


def test_the_peak_is_measured_where_none_is_told(tmp_path):
    train(tmp_path)
    assert 0 < lines(tmp_path)[-1]["mfu"] < 1


def test_tensorboard_has_the_same_figures_and_forgets_what_is_done_again(tmp_path):
    events = tmp_path / "tensorboard"
    for start, values in ((0, (5.0, 4.0, 3.0)), (1, (2.5, 2.0))):
        journal = Journal(tmp_path / "metrics.jsonl", start, events)
        for step, value in enumerate(values, start + 1):
            journal.write({"step": step, "loss": value, "loss_dino_context": value, "batch": ["no number"]})
        journal.close()
    found = scalars(events)
    assert found["loss"] == [(1, 5.0), (2, 2.5), (3, 2.0)]
    assert found["loss/dino_context"] == found["loss"]
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [5, 2.5, 2]
    assert "batch" not in journal.latest


def test_training_writes_tensorboard_only_where_asked(tmp_path):
    train(tmp_path, steps=1)
    assert not (tmp_path / "tensorboard").exists()
    train(tmp_path / "b", steps=1, tensorboard=True)
    assert "mfu" in scalars(tmp_path / "b" / "tensorboard")


def test_tensorboard_that_is_missing_is_said_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'hpcqa\[metrics\]'"):
        pretrain.train(small_config(tensorboard=True), RunFolder(tmp_path), FakeCutouts(), WORLD, {})
    assert not list(tmp_path.iterdir())
    check_tensorboard(False)
