import json
import struct
from dataclasses import dataclass

import h5py
import numpy as np
import pytest

from hpcqa.artifacts import store, verify
from hpcqa.artifacts.catalog import CALIBRATION, LABELS, MANIFEST, SHARD, SHARD_INDEX
from hpcqa.artifacts.folder import SHARD_INDEX_NAME, RunFolder
from hpcqa.artifacts.schema import Provenance


def filled(schema, lengths, **changes):
    columns = {}
    for place, column in enumerate(schema.columns):
        shape = tuple(lengths.get(axis, 2) for axis in column.dims)
        if column.dtype == "str":
            columns[column.name] = np.full(shape, "r", dtype=object)
        else:
            columns[column.name] = (np.arange(int(np.prod(shape))) + place).reshape(shape).astype(column.dtype)
    return columns | changes


@dataclass
class Run:
    folder: RunFolder
    labels: object
    shards: list
    calibration: object


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    labels = folder.output("labels")
    content = store.write_table(labels, LABELS, filled(LABELS, {"row": 5}), Provenance("a")).content
    shards = []
    for number in range(2):
        path = folder.output("shards") / f"shard-{number:05d}.h5"
        store.write_arrays(path, SHARD, filled(SHARD, {"ccd": 3}), Provenance("b", {"labels.parquet": content}))
        shards.append(path)
    parents = {f"shards/{path.name}": store.read_provenance(path).content for path in shards}
    calibration = folder.output("calibration")
    store.write_arrays(calibration, CALIBRATION, filled(CALIBRATION, {}), Provenance("c", parents))
    return Run(folder, labels, shards, calibration)


def test_a_sound_run_has_no_problems(run):
    assert verify.verify_run(run.folder) == []
    assert len(list(verify.artifacts_of(run.folder))) == 4


def test_an_empty_run_has_no_problems(tmp_path):
    assert verify.verify_run(RunFolder(tmp_path)) == []


@pytest.mark.parametrize("where", ["labels", "shard", "calibration"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damage_is_named(run, where, damage):
    path = {"labels": run.labels, "shard": run.shards[1], "calibration": run.calibration}[where]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        place = len(data) // 2 if where != "labels" else 30
        if where != "labels":
            with store.open_arrays(path, SHARD if where == "shard" else CALIBRATION) as file:
                place = file.mapping("background").offset + 5
        data[place] ^= 0x55
    path.write_bytes({"flip": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
    problems = verify.verify_run(run.folder)
    assert any(str(path) in problem for problem in problems)
    assert not any(str(run.shards[0]) in problem for problem in problems if where != "labels")


def test_every_flipped_byte_of_the_pixels_is_seen(run):
    path = run.shards[0]
    with store.open_arrays(path, SHARD) as file:
        mapped = file.mapping("context")
        places = range(mapped.offset, mapped.offset + mapped.nbytes)
    data = path.read_bytes()
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert len(verify.verify_run(run.folder)) == 1


def test_a_lost_parent_is_named(run):
    run.shards[0].unlink()
    problems = verify.verify_run(run.folder)
    assert problems == [
        f"{run.calibration}: was made from shards/shard-00000.h5, which is no longer there; run its stage again."
    ]


def test_another_parent_is_named(run):
    store.write_arrays(run.shards[0], SHARD, filled(SHARD, {"ccd": 4}), store.read_provenance(run.shards[0], SHARD))
    problems = verify.verify_run(run.folder)
    assert len(problems) == 1
    assert "another shards/shard-00000.h5" in problems[0]


def test_parents_in_the_base_run_count(run, tmp_path):
    sweep = RunFolder(tmp_path / "sweep", bases=(run.folder.path,))
    sweep.path.mkdir()
    run.calibration.rename(sweep.output("calibration"))
    assert verify.verify_run(sweep) == []


def test_leftovers_are_named(run):
    leftover = run.folder.output("shards") / ".shard-00009.h5.host.1.tmp"
    leftover.write_bytes(b"half")
    assert verify.verify_run(run.folder) == [f"{leftover}: unfinished; left by a process that was killed; remove it."]


def test_embeddings_without_a_shard_are_missed(run):
    folder = run.folder.output("embeddings")
    folder.mkdir()
    (folder / "shard-00000.h5").write_bytes(b"")
    problems = verify.verify_run(run.folder)
    assert any("shard-00001.h5: missing" in problem for problem in problems)


def test_foreign_files_are_named(run):
    folder = run.folder.output("shards")
    (folder / "shard-00002.h5").write_bytes(b"notes of somebody")
    with h5py.File(folder / "shard-00003.h5", "w") as file:
        file["context"] = np.zeros(3)
    store.write_arrays(folder / "shard-00004.h5", CALIBRATION, filled(CALIBRATION, {}), Provenance("c"))
    problems = verify.verify_run(run.folder)
    for number, said in ((2, "not a readable HDF5 file"), (3, "carries no provenance"), (4, "holds calibration v1")):
        assert any(f"shard-0000{number}.h5: {said}" in problem for problem in problems), problems
    assert len(problems) == 3


def manifest_of(run, shard):
    columns = filled(MANIFEST, {"row": len(shard)}, shard=np.array(shard, np.int32))
    columns["expnum"], columns["ccdnum"] = np.array([12, 13, 90], np.int64), np.arange(3, dtype=np.int32)
    return store.write_table(run.folder.output("manifest"), MANIFEST, columns, Provenance("m")).content


def test_a_shard_under_another_shards_name_is_named(run):
    exposure = {"exposure": np.array([12, 13])}
    content = manifest_of(run, [0, 0, 1])
    for path in run.shards:
        shard = filled(SHARD, {"ccd": 3}) | exposure
        store.write_arrays(path, SHARD, shard, Provenance("b", {"manifest.parquet": content}))
    run.calibration.unlink()
    assert verify.verify_run(run.folder) == [
        f"{run.shards[1]}: holds other exposures than the manifest says; remove it and run `hpcqa shard`."
    ]


def index_of(run, **changes):
    states = [path.stat() for path in run.shards]
    arrays = filled(SHARD_INDEX, {"shard": 2}) | {
        "shard": np.array([path.name for path in run.shards], object),
        "content": np.array([store.read_provenance(path).content for path in run.shards], object),
        "size": np.array([state.st_size for state in states]),
        "modified": np.array([state.st_mtime_ns for state in states]),
    }
    path = run.folder.output("shards") / SHARD_INDEX_NAME
    store.write_arrays(path, SHARD_INDEX, arrays | changes, Provenance(""))
    return path


def test_an_index_that_lags_behind_is_no_problem(run):
    index_of(run)
    assert verify.verify_run(run.folder) == []
    index_of(run, size=np.array([1, 2]), shard=np.array(["shard-00000.h5", "gone.h5"], object))
    assert verify.verify_run(run.folder) == []


def test_a_damaged_index_and_one_of_other_shards_are_named(run):
    path = index_of(run, content=np.array([store.read_provenance(run.shards[0]).content, "another"], object))
    assert verify.verify_run(run.folder) == [
        f"{path}: speaks of another shard-00001.h5 than there is; remove it: it is made anew."
    ]
    with store.open_arrays(index_of(run), SHARD_INDEX) as file:
        place = file.offset("offset")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert verify.verify_run(run.folder) == [
        f"{path}: damaged; remove it: it is made anew from the shards when they are read."
    ]


def test_evaluation_must_parse(run):
    run.folder.output("evaluation").write_text("{")
    assert any("evaluation.json" in problem for problem in verify.verify_run(run.folder))


def safetensors(path, tensor=b"\0" * 8, end=8):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}, "__metadata__": {}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + tensor)


def test_backbone_is_checked(run):
    path = run.folder.output("backbone")
    safetensors(path)
    assert verify.verify_run(run.folder) == []
    for content in (path.read_bytes()[:-1], b"", b"12345", b"\xff" * 64):
        path.write_bytes(content)
        assert any(str(path) in problem for problem in verify.verify_run(run.folder))
