import contextlib
import os

import numpy as np
import pytest

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import EMBEDDING
from hpcqa.artifacts.schema import Column, Provenance, Schema
from hpcqa.errors import DataError

SCHEMA = Schema(
    "things",
    2,
    (
        Column("number", "int64", "", dims=("thing",)),
        Column("word", "str", "", dims=("thing",)),
        Column("image", "float16", "", dims=("thing", "y", "x")),
        Column("empty", "float32", "", dims=("none", "x")),
    ),
)
ARRAYS = {
    "number": np.array([3, -1, 1 << 40]),
    "word": np.array(["g", "", "große Länge"], object),
    "image": np.arange(24).reshape(3, 2, 4),
    "empty": np.empty((0, 4)),
}
ASKED = {"places": ["image", "empty"], "values": ["number", "word"], "attributes": ["names"]}


@pytest.fixture
def path(tmp_path):
    store.write_arrays(tmp_path / "a.h5", SCHEMA, ARRAYS, Provenance("x"), {"names": ["a", "b"], "other": 3})
    return tmp_path / "a.h5"


def test_finds_what_opening_the_file_finds(path):
    found = store.look_into(path, SCHEMA, **ASKED)
    with store.open_arrays(path, SCHEMA) as file:
        assert found.provenance == file.provenance
        assert found.shapes == {name: file.shape(name) for name in ASKED["places"]}
        assert found.offsets == {"image": file.offset("image"), "empty": -1}
        for name, values in found.values.items():
            np.testing.assert_array_equal(values, file.read(name))
            assert values.dtype == file.read(name).dtype
    assert found.attributes == {"names": ["a", "b"]}
    assert all(type(word) is str for word in found.values["word"])


def test_another_schema_or_dtype_is_refused(path):
    with pytest.raises(DataError, match=r"holds things v2, expected embedding"):
        store.look_into(path, EMBEDDING, places=[], values=["expnum"], attributes=[])
    other = Schema("things", 2, (Column("number", "int32", "", dims=("thing",)), *SCHEMA.columns[1:]))
    with pytest.raises(DataError, match="number has dtype int64, expected int32"):
        store.look_into(path, other, **ASKED)


def test_what_is_not_there_is_named(path, tmp_path):
    with pytest.raises(DataError, match=r"a\.h5.*nothing"):
        store.look_into(path, SCHEMA, places=["image"], values=[], attributes=["nothing"])
    with pytest.raises(DataError, match=r"b\.h5: not found"):
        store.look_into(tmp_path / "b.h5", SCHEMA, **ASKED)


def test_a_file_cut_anywhere_is_refused_or_whole(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole)
        os.truncate(path, size)
        with pytest.raises(DataError, match=r"a\.h5"):
            store.look_into(path, SCHEMA, **ASKED)


def test_a_flipped_byte_raises_a_data_error_or_nothing(path):
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            store.look_into(path, SCHEMA, **ASKED)
