from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpcqa.artifacts import store
from hpcqa.artifacts.schema import Column, Provenance, Schema
from hpcqa.errors import DataError, EnvironmentProblem

TABLE = Schema(
    "things",
    1,
    (
        Column("expnum", "int64", "Exposure."),
        Column("ccdnum", "int32", "CCD."),
        Column("fwhm", "float32", "Width.", unit="px"),
        Column("note", "str", "Text."),
    ),
    key=("expnum", "ccdnum"),
)
ARRAYS = Schema(
    "views",
    2,
    (
        Column("expnum", "int64", "Exposure.", dims=("ccd",)),
        Column("image", "float16", "View.", dims=("ccd", "y", "x")),
        Column("name", "str", "Text.", dims=("ccd",)),
        Column("extra", "float32", "Sometimes.", dims=("ccd",), optional=True),
    ),
)
WHERE = Provenance("abc", {"parent.h5": "123"}, "minicam")


def table(rows=3):
    return {
        "expnum": np.arange(rows) + 151119075127,
        "ccdnum": np.ones(rows, int),
        "fwhm": np.linspace(1, 2, rows),
        "note": np.array(["é"] * rows, dtype=object),
    }


def arrays(rows=3):
    return {
        "expnum": np.arange(rows),
        "image": np.full((rows, 4, 2), 0.5),
        "name": np.array(["a"] * rows, dtype=object),
    }


def leftovers(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_table_round_trip_with_dtypes_units_and_provenance(tmp_path):
    path = tmp_path / "t.parquet"
    stored = store.write_table(path, TABLE, table(), WHERE)
    back = store.read_table(path, TABLE)
    assert back["expnum"].dtype == np.int64
    assert back["expnum"][0] == 151119075127
    assert back["fwhm"].dtype == np.float32
    assert back["note"].tolist() == ["é"] * 3
    assert store.read_provenance(path) == stored
    assert stored.parents == {"parent.h5": "123"}
    assert stored.num_rows == 3
    assert store.verify(path, TABLE) == []


def test_arrays_round_trip_contiguous_and_mapped(tmp_path):
    path = tmp_path / "a.h5"
    store.write_arrays(path, ARRAYS, arrays(), WHERE, {"names": ["x", "y"], "scale": 2.5})
    with store.open_arrays(path, ARRAYS) as file:
        assert file.attributes == {"names": ["x", "y"], "scale": 2.5}
        assert np.array_equal(file.mapping("image"), arrays()["image"].astype("f2"))
        assert np.array_equal(file.read("image", slice(1, 2)), arrays()["image"][1:2].astype("f2"))
        assert file.read("name").tolist() == ["a"] * 3
        assert "extra" not in file
    assert store.verify(path, ARRAYS) == []


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_row_files_are_valid(tmp_path, rows):
    store.write_table(tmp_path / "t.parquet", TABLE, table(rows), WHERE)
    store.write_arrays(tmp_path / "a.h5", ARRAYS, arrays(rows), WHERE)
    assert store.verify(tmp_path / "t.parquet", TABLE) == []
    assert store.verify(tmp_path / "a.h5", ARRAYS) == []


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_any_float_column_comes_back_bit_by_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    columns = table(len(values)) | {"fwhm": values}
    store.write_table(path, TABLE, columns, WHERE)
    assert store.read_table(path, TABLE)["fwhm"].tobytes() == values.tobytes()
    assert store.verify(path, TABLE) == []


def test_equal_content_has_equal_digests_whenever_written(tmp_path):
    first = store.write_arrays(tmp_path / "a.h5", ARRAYS, arrays(), WHERE)
    second = store.write_arrays(tmp_path / "b.h5", ARRAYS, arrays(), WHERE)
    assert first.content == second.content
    changed = arrays()
    changed["image"][0, 0, 0] = 0.75
    assert store.write_arrays(tmp_path / "c.h5", ARRAYS, changed, WHERE).content != first.content


def test_text_cannot_hide_a_change_of_its_borders(tmp_path):
    one, two = arrays(2), arrays(2)
    one["name"], two["name"] = np.array(["ab", "c"], object), np.array(["a", "bc"], object)
    first = store.write_arrays(tmp_path / "a.h5", ARRAYS, one, WHERE)
    assert store.write_arrays(tmp_path / "b.h5", ARRAYS, two, WHERE).content != first.content


@pytest.mark.parametrize("broken", ["missing", "unknown", "ragged", "repeated"])
def test_columns_that_contradict_the_schema_are_refused(tmp_path, broken):
    columns = table()
    if broken == "missing":
        del columns["fwhm"]
    elif broken == "unknown":
        columns["colour"] = np.zeros(3)
    elif broken == "ragged":
        columns["fwhm"] = np.zeros(4)
    else:
        columns["expnum"] = np.zeros(3, int)
    with pytest.raises(DataError):
        store.write_table(tmp_path / "t.parquet", TABLE, columns, WHERE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["t.parquet", "a.h5"])
@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "flip"])
def test_damage_is_named_and_never_crashes(tmp_path, name, damage):
    path = tmp_path / name
    schema = TABLE if name == "t.parquet" else ARRAYS
    if schema is TABLE:
        store.write_table(path, TABLE, table(500), WHERE)
    else:
        store.write_arrays(path, ARRAYS, arrays(500), WHERE)
    raw = bytearray(path.read_bytes())
    if damage == "truncate":
        raw = raw[: len(raw) // 2]
    elif damage == "empty":
        raw = bytearray()
    elif damage == "garbage":
        raw = bytearray(b"nonsense" * 100)
    elif schema is ARRAYS:
        with store.open_arrays(path, ARRAYS) as file:
            raw[file.mapping("image").offset + 5] ^= 0x10
    else:
        raw[40] ^= 0xFF
    path.write_bytes(bytes(raw))
    problems = store.verify(path, schema)
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_another_schema_is_refused(tmp_path):
    store.write_arrays(tmp_path / "a.h5", ARRAYS, arrays(), WHERE)
    with pytest.raises(DataError, match="holds views v2"):
        store.open_arrays(tmp_path / "a.h5", Schema("views", 3, ARRAYS.columns))


def test_a_missing_file_says_so(tmp_path):
    for name, schema in (("t.parquet", TABLE), ("a.h5", ARRAYS)):
        with pytest.raises(DataError, match="not found"):
            store.read_provenance(tmp_path / name, schema)


def test_an_error_inside_the_block_leaves_nothing(tmp_path):
    def broken():
        with store.ArrayWriter(
            tmp_path / "a.h5", ARRAYS, lengths={"ccd": 2, "y": 2, "x": 2}, provenance=WHERE, without=["extra"]
        ):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        broken()
    assert os.listdir(tmp_path) == []


FILL = """
import resource, numpy as np, signal
from pathlib import Path
from tests.artifacts.test_store import ARRAYS, TABLE, WHERE, arrays, table
from hpcqa.artifacts import store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from hpcqa.errors import EnvironmentProblem
for write in (lambda: store.write_arrays(Path("a.h5"), ARRAYS, arrays(5000), WHERE),
              lambda: store.write_table(Path("t.parquet"), TABLE, table(5000), WHERE)):
    try:
        write()
    except EnvironmentProblem as error:
        print("refused", error)
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, request):
    assert resource.RLIMIT_FSIZE is not None
    environment = os.environ | {"PYTHONPATH": str(request.config.rootpath)}
    done = subprocess.run(
        [sys.executable, "-c", FILL], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("refused") == 2, done
    assert os.listdir(tmp_path) == []


def test_no_permission_is_an_environment_problem(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        store.write_text(blocked / "inside.txt", "x")


def test_json_has_no_nan(tmp_path):
    store.write_json(tmp_path / "x.json", {"a": np.float32("nan"), "b": np.arange(2), "c": {"d": float("inf")}})
    assert store.read_json(tmp_path / "x.json") == {"a": None, "b": [0, 1], "c": {"d": None}}


def test_currentness_depends_on_configuration_and_parents(tmp_path):
    path = tmp_path / "t.parquet"
    assert not store.is_current(path, TABLE, config_digest="abc", parents={"parent.h5": "123"})
    store.write_table(path, TABLE, table(), WHERE)
    assert store.is_current(path, TABLE, config_digest="abc", parents={"parent.h5": "123"})
    assert not store.is_current(path, TABLE, config_digest="abd", parents={"parent.h5": "123"})
    assert not store.is_current(path, TABLE, config_digest="abc", parents={"parent.h5": "124"})


def test_what_killed_writers_left_goes_but_not_what_others_write_just_now(tmp_path):
    orphan = subprocess.Popen([sys.executable, "-c", ""])
    orphan.wait()
    here = socket.gethostname()
    names = [f".a.h5.{here}.{orphan.pid}.tmp", f".b.h5.{here}.{os.getpid()}.tmp", f".b.h5.other.{orphan.pid}.tmp"]
    for name in [*names, "a.h5"]:
        (tmp_path / name).touch()
    store.remove_unfinished(tmp_path, "shard", shared=True)
    assert set(leftovers(tmp_path)) == set(names[1:])
    store.remove_unfinished(tmp_path, "embed", names="c.h5")
    assert set(leftovers(tmp_path)) == set(names[1:])
    store.remove_unfinished(tmp_path, "embed", names="b.*")
    assert os.listdir(tmp_path) == ["a.h5"]
