import json
import logging

import pytest

from hpcqa import observe
from hpcqa.observe import MOST_SHOWN, Metrics, Tracker, logged_to, one_of_many, start_logging, track


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(observe.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(observe.logger, "info", lambda text, *values: said.append(text % values))
    return said


def test_a_batch_log_gets_a_line_now_and_then_and_one_at_the_end(clock, lines):
    with Tracker("shard", total=40, unit="shards") as ticker:
        for _ in range(40):
            clock.now += 0.5
            ticker.advance()
    assert lines == ["shard: 21 of 40 shards, 2/s, 9.5 s left", "shard: 40 of 40 shards, 2/s"]


def test_what_is_slow_tells_how_long_each_takes(clock, lines):
    with Tracker("shard", total=100, unit="shards") as ticker:
        for _ in range(2):
            clock.now += 95
            ticker.advance()
    assert lines == [
        "shard: 1 of 100 shards, 1 min 35 s each, 2 h 36 min left",
        "shard: 2 of 100 shards, 1 min 35 s each, 2 h 35 min left",
    ]


def test_the_last_line_is_not_told_twice(clock, lines):
    with Tracker("shard", total=1, unit="shards") as ticker:
        clock.now += 30
        ticker.advance()
    assert lines == ["shard: 1 of 1 shards, 30 s each"]


def test_nothing_done_is_said_too(clock, lines):
    with Tracker("shard", total=3, unit="shards"):
        clock.now += 4
    assert lines == ["shard: 0 of 3 shards, none yet after 4 s"]


def test_nothing_to_do_and_what_is_not_shown_say_nothing(clock, lines):
    assert list(track([], "shard", total=0, unit="shards")) == []
    assert list(track([1, 2], "shard", total=2, unit="shards", shown=False)) == [1, 2]
    with pytest.raises(KeyError), Tracker("shard", total=2, unit="shards"):
        raise KeyError
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.034, "0.034 s"), (9.96, "10 s"), (59, "59 s"), (200, "3 min 20 s"), (18720, "5 h 12 min"), (183600, "2 d 3 h")],
)
def test_durations_in_words(seconds, words):
    assert observe._duration(seconds) == words


def test_metrics_are_lines_of_json_and_go_on_in_the_same_file(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    for step, loss in ((1, 0.5), (2, float("nan"))):
        metrics = Metrics(path)
        metrics.write(step=step, loss=loss)
        metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


@pytest.fixture
def logging_restored():
    root = logging.getLogger("hpcqa")
    before = root.handlers[:], root.propagate, root.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.propagate = before[:2]
    root.setLevel(before[2])


@pytest.mark.usefixtures("logging_restored")
def test_every_rank_has_a_file_and_rank_0_the_console(tmp_path, capsys):
    for rank in (0, 1):
        start_logging(rank=rank, file=tmp_path / f"rank{rank}.log")
        logging.getLogger("hpcqa.x").info("from %d", rank)
    assert capsys.readouterr().err == "from 0\n"
    for rank in (0, 1):
        assert f"rank {rank} INFO hpcqa.x: from {rank}" in (tmp_path / f"rank{rank}.log").read_text()


@pytest.mark.usefixtures("logging_restored")
def test_the_console_shows_the_first_of_many_and_the_file_all(tmp_path, capsys):
    start_logging(file=tmp_path / "rank0.log")
    for number in range(MOST_SHOWN + 5):
        logging.getLogger("hpcqa.x").warning("exposure %d", number, extra=one_of_many("missing"))
        logging.getLogger("hpcqa.x").warning("mask %d", number, extra=one_of_many(f"mask {number % 2}"))
        logging.getLogger("hpcqa.x").warning("table %d", number)
    shown = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("exposure") for line in shown) == MOST_SHOWN
    assert sum(line.startswith("table") for line in shown) == MOST_SHOWN + 5
    assert sum(line.startswith("mask") for line in shown) == MOST_SHOWN + 5
    assert [line for line in shown if "More" in line] == ["More of the kind 'missing' is in the log file only."]
    assert (tmp_path / "rank0.log").read_text().count("exposure") == MOST_SHOWN + 5


@pytest.mark.usefixtures("logging_restored")
def test_a_stage_logs_to_its_own_file_while_it_lasts(tmp_path):
    start_logging()
    with logged_to(tmp_path / "logs" / "shard.log"):
        logging.getLogger("hpcqa").info("within")
    logging.getLogger("hpcqa").info("after")
    text = (tmp_path / "logs" / "shard.log").read_text()
    assert "within" in text
    assert "after" not in text
