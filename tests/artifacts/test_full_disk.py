"""Every kind of file on a disk that is really full: one sentence, no trace of the file, and room made later helps."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hpcqa.artifacts import store
from hpcqa.artifacts.schema import Column, Provenance, Schema
from hpcqa.errors import EnvironmentProblem
from hpcqa.pixels import shardindex
from tests.pixels.test_shardindex import write_shard
from tests.small_disk import BALLAST, leave_free, small_disk

NUMBERS = Schema("numbers", 1, (Column("x", "int64", ""), Column("word", "str", "")))
ARRAYS = Schema("arrays", 1, (Column("x", "int64", "", dims=("a", "b")), Column("word", "str", "", dims=("a",))))
MANY = np.random.default_rng(0).integers(0, 1 << 62, 60_000)
WORDS = np.array([f"word {number}" for number in range(60_000)], object)


def table(path):
    store.write_table(path, NUMBERS, {"x": MANY, "word": WORDS}, Provenance("d"))


def arrays(path):
    store.write_arrays(path, ARRAYS, {"x": MANY.reshape(-1, 10), "word": WORDS[:6000]}, Provenance("d"))


def rows_one_by_one(path):
    with store.ArrayWriter(path, ARRAYS, lengths={"a": 6000, "b": 10}, provenance=Provenance("d")) as out:
        for start in range(0, 6000, 100):
            out.write("x", slice(start, start + 100), MANY.reshape(-1, 10)[start : start + 100])
        out.write("word", slice(0, 6000), WORDS[:6000])


def json(path):
    store.write_json(path, MANY.tolist())


def text(path):
    store.write_text(path, "\n".join(WORDS))


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 4) as place:
        yield place


@pytest.mark.parametrize("kilobytes", [0, 4, 12, 64, 300])
@pytest.mark.parametrize(
    ("write", "name"),
    [(table, "a.parquet"), (arrays, "a.h5"), (rows_one_by_one, "a.h5"), (json, "a.json"), (text, "a.txt")],
)
def test_one_sentence_and_no_trace_and_the_old_file_stays(disk, write, name, kilobytes):
    path = disk / name
    path.write_bytes(b"the file before")
    leave_free(disk, kilobytes)
    with pytest.raises(EnvironmentProblem, match=rf"{name}: cannot be written: no space is left"):
        write(path)
    assert sorted(file.name for file in disk.iterdir()) == sorted([name, BALLAST])
    assert path.read_bytes() == b"the file before"
    (disk / BALLAST).unlink()
    write(path)
    assert path.stat().st_size > 300_000
    assert [file.name for file in disk.iterdir()] == [name]


@pytest.mark.parametrize("kilobytes", [0, 4, 8])
def test_a_shard_index_that_does_not_fit_is_done_without(disk, caplog, kilobytes):
    paths = [write_shard(disk / f"shard-{number:05d}.h5", number) for number in range(5)]
    leave_free(disk, kilobytes)
    with caplog.at_level(logging.INFO, "hpcqa"):
        index = shardindex.open_index(paths)
    assert len(index.contents) == 5
    assert "no space is left" in caplog.text
    assert sorted(file.name for file in disk.iterdir()) == sorted([BALLAST, *(path.name for path in paths)])
