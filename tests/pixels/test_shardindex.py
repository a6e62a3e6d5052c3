import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD, SHARD_INDEX
from hpcqa.artifacts.folder import SHARD_INDEX_NAME
from hpcqa.artifacts.schema import Provenance
from hpcqa.errors import DataError
from hpcqa.pixels import shardindex

LENGTHS = {"by": 4, "bx": 4, "dy": 4, "dx": 4, "number": 2, "cy": 8, "cx": 4}


def write_shard(path, number, *, exposures=2, ccds=3, lengths=LENGTHS, names=("a", "b")):
    rng = np.random.default_rng(number)
    lengths = lengths | {"exposure": exposures, "ccd": exposures * ccds}
    arrays = {}
    for column in SHARD.columns:
        shape = tuple(lengths[axis] for axis in column.dims)
        kind = np.dtype(column.dtype) if column.dtype != "str" else None
        arrays[column.name] = np.full(shape, "r", object) if kind is None else rng.integers(0, 9, shape).astype(kind)
    exposure = number * 100 + np.arange(exposures)
    arrays["exposure"], arrays["expnum"] = exposure, np.repeat(exposure, ccds)
    arrays["ccdnum"] = np.tile(np.arange(ccds), exposures)
    store.write_arrays(path, SHARD, arrays, Provenance("x"), {"number_names": list(names)})
    return path


@pytest.fixture
def paths(tmp_path):
    return [write_shard(tmp_path / f"shard-{number:05d}.h5", number, exposures=1 + number % 3) for number in range(7)]


def same(first, second):
    assert first.names == second.names
    assert first.rows == second.rows
    assert first.contents == second.contents
    for name in ("offsets", "states", "starts", "exposure_starts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name, values in first.columns.items():
        np.testing.assert_array_equal(values, second.columns[name])


@pytest.fixture
def looked_into(monkeypatch):
    seen = []
    look = shardindex.read_directory
    monkeypatch.setattr(shardindex, "read_directory", lambda path: (seen.append(path.name), look(path))[1])
    return seen


def test_each_shard_is_looked_into_once(paths, looked_into):
    first = shardindex.open_index(paths)
    assert looked_into == [path.name for path in paths]
    assert store.verify(paths[0].parent / SHARD_INDEX_NAME, SHARD_INDEX) == []
    same(shardindex.open_index(paths), first)
    assert len(looked_into) == len(paths)
    assert first.contents == tuple(store.read_provenance(path).content for path in paths)


def test_offsets_lead_to_the_bytes(paths):
    index = shardindex.open_index(paths)
    for number, path in enumerate(paths):
        with store.open_arrays(path, SHARD) as shard:
            for place, name in enumerate(shardindex.ARRAYS):
                expected = shard.read(name)
                found = np.fromfile(path, expected.dtype, expected.size, offset=int(index.offsets[number, place]))
                np.testing.assert_array_equal(found.reshape(expected.shape), expected)
        assert index.starts[number + 1] - index.starts[number] == len(expected)


def test_only_what_is_new_is_looked_into(paths, looked_into):
    shardindex.open_index(paths)
    looked_into.clear()
    write_shard(paths[3], 50, exposures=3)
    paths.append(write_shard(paths[0].with_name("shard-00007.h5"), 7))
    index = shardindex.open_index(paths)
    assert looked_into == [paths[3].name, paths[7].name]
    assert 5000 in index.columns["exposure"]
    same(shardindex.open_index(paths), index)
    same(index, shardindex._joined(paths, [shardindex.read_directory(path) for path in paths]))


def test_some_shards_in_any_order_use_the_index_and_leave_it(paths, looked_into):
    shardindex.open_index(paths)
    before = (paths[0].parent / SHARD_INDEX_NAME).read_bytes()
    some = [paths[5], *paths[:4]]
    looked_into.clear()
    index = shardindex.open_index(some)
    assert looked_into == []
    same(index, shardindex._joined(some, [shardindex.read_directory(path) for path in some]))
    assert (paths[0].parent / SHARD_INDEX_NAME).read_bytes() == before


@pytest.mark.parametrize("damage", ["garbage", "cut", "other", "flip"])
def test_a_damaged_index_is_made_anew_and_told(paths, damage, caplog):
    expected = shardindex.open_index(paths)
    index = paths[0].parent / SHARD_INDEX_NAME
    if damage == "garbage":
        index.write_bytes(b"nonsense")
    elif damage == "cut":
        os.truncate(index, index.stat().st_size // 2)
    elif damage == "other":
        index.write_bytes(paths[0].read_bytes())
    else:
        with store.open_arrays(index, SHARD_INDEX) as file:
            place = file.offset("ccdnum")
        content = bytearray(index.read_bytes())
        content[place] ^= 1
        index.write_bytes(content)
    caplog.set_level(logging.WARNING, "hpcqa")
    same(shardindex.open_index(paths), expected)
    assert f"{index}: damaged" in caplog.text
    assert "made anew" in caplog.text
    assert store.verify(index, SHARD_INDEX) == []


def test_several_processes_find_the_same(paths, monkeypatch):
    alone = shardindex.open_index(paths)
    (paths[0].parent / SHARD_INDEX_NAME).unlink()
    monkeypatch.setattr(shardindex, "_MANY", 2)
    same(shardindex.open_index(paths), alone)


def noted(paths, number=0):
    notes = shardindex.Notes(paths[0].parent, number)
    for path in paths:
        notes.add(path)
    notes.write()
    return paths[0].parent / f"index-{number:05d}.hdf5"


def test_what_tasks_noted_is_not_looked_into_again(paths, looked_into):
    notes = [noted(paths[:3]), noted(paths[3:5], 3)]
    looked_into.clear()
    index = shardindex.open_index(paths)
    assert looked_into == [path.name for path in paths[5:]]
    assert not any(note.exists() for note in notes)
    same(index, shardindex._joined(paths, [shardindex.read_directory(path) for path in paths]))
    looked_into.clear()
    same(shardindex.open_index(paths), index)
    assert looked_into == []


def test_notes_of_shards_that_were_replaced_do_not_count(paths, looked_into):
    noted(paths)
    write_shard(paths[2], 70, exposures=3)
    looked_into.clear()
    assert 7000 in shardindex.open_index(paths).columns["exposure"]
    assert looked_into == [paths[2].name]


def test_damaged_notes_are_told_and_done_without(paths, looked_into, caplog):
    note = noted(paths)
    content = bytearray(note.read_bytes())
    with store.open_arrays(note, SHARD_INDEX) as file:
        content[file.offset("offset")] ^= 1
    note.write_bytes(content)
    looked_into.clear()
    caplog.set_level(logging.WARNING, "hpcqa")
    shardindex.open_index(paths)
    assert looked_into == [path.name for path in paths]
    assert f"{note}: damaged" in caplog.text
    assert not note.exists()


def test_some_of_the_shards_leave_the_notes_to_others(paths, looked_into):
    note = noted(paths)
    looked_into.clear()
    shardindex.open_index(paths[:5])
    assert looked_into == []
    assert note.exists()
    assert not (paths[0].parent / SHARD_INDEX_NAME).exists()


def test_a_shard_that_cannot_be_noted_is_left_to_the_reader(paths, looked_into, caplog):
    caplog.set_level(logging.INFO, "hpcqa")
    notes = shardindex.Notes(paths[0].parent, 0)
    notes.write()
    assert not list(paths[0].parent.glob("index-*"))
    notes.add(paths[0].with_name("shard-99999.h5"))
    assert "left to the first reader" in caplog.text


def test_notes_that_another_reader_has_just_joined_are_not_missed(paths, monkeypatch):
    note = noted(paths[:4])
    expected = shardindex._joined(paths, [shardindex.read_directory(path) for path in paths])
    read = shardindex._read_cache

    def late(path):
        if path == note:
            path.unlink()
        return read(path)

    monkeypatch.setattr(shardindex, "_read_cache", late)
    same(shardindex.open_index(paths), expected)
    assert store.verify(paths[0].parent / SHARD_INDEX_NAME, SHARD_INDEX) == []


READER = """
import sys, time
from pathlib import Path
from hpcqa.pixels import shardindex

folder, at = Path(sys.argv[1]), float(sys.argv[2])
looked_into = 0
look = shardindex.read_directory

def counted(path):
    global looked_into
    looked_into += 1
    return look(path)

shardindex.read_directory = counted
while time.time() < at:
    pass
index = shardindex.open_index(sorted(folder.glob("shard-*.h5")))
print(looked_into, len(index.contents), *index.contents)
"""


def test_processes_that_join_the_notes_at_once_find_the_same(tmp_path):
    paths = [write_shard(tmp_path / f"shard-{number:05d}.h5", number) for number in range(40)]
    for number in range(0, 40, 10):
        noted(paths[number : number + 10], number)
    at = str(time.time() + 3)
    command = [sys.executable, "-c", READER, str(tmp_path), at]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [reader.communicate(timeout=120)[0].split() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    expected = [shardindex.read_directory(path).content for path in paths]
    # Whoever comes second finds the notes, or the index that the first made of them.
    assert found == [["0", "40", *expected]] * 2
    assert [path.name for path in tmp_path.glob("index*")] == [SHARD_INDEX_NAME]
    same(shardindex.open_index(paths), shardindex._joined(paths, [shardindex.read_directory(path) for path in paths]))


def test_where_nothing_can_be_written_it_works_without(paths, monkeypatch):
    def refuse(*_, **__):
        raise shardindex.EnvironmentProblem("no space.")

    monkeypatch.setattr(shardindex.store, "write_arrays", refuse)
    index = shardindex.open_index(paths)
    assert len(index.contents) == len(paths)
    assert not (paths[0].parent / SHARD_INDEX_NAME).exists()


def test_other_numbers_or_sizes_are_refused(paths):
    write_shard(paths[4], 4, names=("a", "c"))
    with pytest.raises(DataError, match=r"shard-00004.*differ"):
        shardindex.open_index(paths)
    write_shard(paths[4], 4, lengths=LENGTHS | {"cy": 9})
    with pytest.raises(DataError, match="differ"):
        shardindex.open_index(paths)


def test_a_shard_that_vanished_is_named(paths):
    shardindex.open_index(paths)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"shard-00002\.h5"):
        shardindex.open_index(paths)
