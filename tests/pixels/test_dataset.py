import itertools
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import calibrate, dataset, shards


@pytest.fixture
def ready(survey):
    survey.images[1003].unlink()
    shards.run(survey.config, survey.folder, Ranks())
    calibrate.run(survey.config, survey.folder, Ranks())
    return survey


def open_set(survey, *, cache=0.0, handles=128, calibration=True):
    config = replace(survey.config, shard=replace(survey.config.shard, reader_cache=cache, reader_handles=handles))
    path = survey.folder.output("calibration") if calibration else None
    return dataset.ShardSet(survey.shards(), path, config)


def stored(survey, name):
    parts = []
    for path in survey.shards():
        with store.open_arrays(path, SHARD) as shard:
            parts.append(shard.read(name))
    return np.concatenate(parts)


def test_rows_of_all_shards_in_order(ready):
    found = open_set(ready)
    assert len(found) == 12
    assert found.expnum.tolist() == stored(ready, "expnum").tolist()
    assert found.exposures.tolist() == [1000, 1001, 1002, 1003]
    assert found.failed.astype(bool).tolist() == [False] * 9 + [True] * 3
    assert found.number_names[0] == "sky_rate"


@pytest.mark.parametrize("cache", [0.0, 1.0])
@pytest.mark.parametrize("rows", [[0], [11, 0, 5, 5, 6], list(range(12)), [3, 2, 1], []])
@pytest.mark.parametrize("name", ["context", "detail"])
def test_batches_hold_the_rows_asked_for(ready, cache, rows, name):
    batch = open_set(ready, cache=cache).batch(name, np.array(rows, int))
    np.testing.assert_array_equal(batch, stored(ready, name)[rows])
    assert batch.dtype == np.float16


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_numbers_hold_the_rows_asked_for(ready, cache):
    found = open_set(ready, cache=cache).numbers(np.array([9, 1, 1]))
    np.testing.assert_array_equal(found, stored(ready, "numbers")[[9, 1, 1]])


def test_background_is_calibrated_and_known(ready):
    found = open_set(ready)
    batch = found.batch("background", np.arange(12))
    assert np.isfinite(batch).all()
    assert batch.dtype == np.float16
    assert not batch[9:].any()
    views = ready.config.views
    maps, noise = stored(ready, "background").astype(float), stored(ready, "background_noise").astype(float)
    plain = open_set(ready, calibration=False).batch("background", np.arange(12))
    expected = np.arcsinh(maps / np.hypot(noise, views.background_floor) / views.background_softening)
    np.testing.assert_allclose(plain, np.nan_to_num(expected), atol=5e-3)


def test_a_pattern_is_subtracted(ready):
    path = ready.folder.output("calibration")
    from hpcqa.artifacts.catalog import CALIBRATION
    from hpcqa.artifacts.schema import Provenance

    with store.open_arrays(path, CALIBRATION) as old:
        columns = {column.name: old.read(column.name) for column in CALIBRATION.columns}
    columns["background"][:] = 0.01
    store.write_arrays(path, CALIBRATION, columns, Provenance("x"))
    with_pattern, without = open_set(ready), open_set(ready, calibration=False)
    rows = np.arange(9)
    known = np.isfinite(stored(ready, "background")[rows])
    assert (with_pattern.batch("background", rows)[known] < without.batch("background", rows)[known]).all()


def test_focal_plane_has_each_exposure(ready):
    found = open_set(ready)
    images = found.focal_plane(np.array([2, 0, 3]))
    assert images.shape == (3, 64, 64)
    assert images.dtype == np.float16
    assert images[0].any()
    assert not images[2].any()
    np.testing.assert_array_equal(images[1], found.focal_plane(np.array([0]))[0])
    assert found.focal_plane(np.array([], int)).shape == (0, 64, 64)


def test_wrong_view_and_rows(ready):
    found = open_set(ready)
    with pytest.raises(ValueError, match="context, background, detail"):
        found.batch("colour", np.array([0]))
    with pytest.raises(IndexError):
        found.batch("context", np.array([12]))
    with pytest.raises(IndexError):
        found.batch("context", np.array([-1]))


def test_handles_are_lazy_and_bounded(ready):
    found = open_set(ready, handles=1)
    assert found._handles.num_open == 0
    found.batch("context", np.arange(12))
    assert found._handles.num_open == 1
    found.close()
    assert found._handles.num_open == 0
    np.testing.assert_array_equal(found.batch("context", np.arange(12)), stored(ready, "context"))


def test_asking_ahead_reads_nothing_and_hides_nothing(ready):
    found = open_set(ready)
    for view in dataset.VIEWS:
        found.will_need(view, np.arange(12))
    np.testing.assert_array_equal(found.batch("context", np.arange(12)), stored(ready, "context"))
    found.close()
    ready.shards()[0].unlink()
    found.will_need("context", np.arange(12))
    with pytest.raises(DataError, match="is it still there"):
        found.batch("context", np.arange(12))


def test_rows_in_any_order_and_several_times_go_to_their_places(ready):
    found, views, numbers = open_set(ready), stored(ready, "context"), stored(ready, "numbers")
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = rng.integers(0, 12, rng.integers(0, 30))
        np.testing.assert_array_equal(found.batch("context", rows), views[rows])
        np.testing.assert_array_equal(found.numbers(rows), numbers[rows])


@pytest.mark.parametrize("gap", [1, 3])
def test_stretches_hold_the_rows_and_where_they_go(gap):
    """Against a loop over rows: files of 5, 0, 1 and 9 rows whose bytes begin somewhere."""
    starts, offsets, size = np.array([0, 5, 5, 6, 15]), np.array([100, -1, 7, 40]), 10
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = np.sort(rng.integers(0, 15, rng.integers(1, 12)))
        places = rng.permutation(12)[: len(rows)] if gap == 1 else rows
        file, offset, first, begin, length = dataset._stretches(rows, places, gap, starts, offsets, size)
        assert (np.diff(first) > 0).all()
        assert first[-1] == len(begin) == len(length)
        held = {}
        for number, at, parts in zip(file, offset, itertools.pairwise(first), strict=True):
            for part in range(*parts):
                for inside in range(0, length[part], size):
                    held[begin[part] + inside] = (number, at)
                    at += size
        for k, row in enumerate(rows):
            number = np.searchsorted(starts, row, side="right") - 1
            if k == 0 or row != rows[k - 1]:
                where = held.pop(places[k] * size)
                assert where == (number, offsets[number] + (row - starts[number]) * size)
        assert len(held) <= (gap - 1) * len(rows)  # what lies between neighbours
        apart = np.diff(rows)
        assert len(file) == 1 + np.count_nonzero((apart > gap) | (np.diff(np.searchsorted(starts, rows, "right")) > 0))


def _first_rows(found):
    return found.batch("context", np.array([7, 2]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_may_read(ready, method):
    found = open_set(ready)
    expected = _first_rows(found)
    with multiprocessing.get_context(method).Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_first_rows, (found,)), expected)


def test_pickles_without_handles_or_cache(ready):
    found = open_set(ready, cache=1.0)
    found.batch("context", np.array([0]))
    copy = pickle.loads(pickle.dumps(found))
    assert copy._cache == {}
    np.testing.assert_array_equal(_first_rows(copy), _first_rows(found))


def test_threads_may_read_together(ready):
    from concurrent.futures import ThreadPoolExecutor

    found = open_set(ready, handles=1)
    expected = stored(ready, "detail")
    rng = np.random.default_rng(0)
    picks = [rng.integers(0, 12, 9) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for rows, batch in zip(picks, pool.map(lambda rows: found.batch("detail", rows), picks), strict=True):
            np.testing.assert_array_equal(batch, expected[rows])


def test_a_replaced_or_vanished_shard_is_named(ready):
    found = open_set(ready)
    ready.shards()[0].unlink()
    with pytest.raises(DataError, match=r"shard-00000\.h5"):
        found.batch("context", np.array([0]))
    shards.run(ready.config, ready.folder, Ranks())
    with pytest.raises(DataError, match="replaced"):
        found.batch("context", np.array([0]))


def test_no_shards_or_other_sizes(ready):
    with pytest.raises(DataError, match="hpcqa shard"):
        dataset.ShardSet([], None, Config())
    ready.shards()[0].unlink()
    views = replace(ready.config.views, context=[64, 32])
    provenance = store.read_provenance(ready.shards()[0], SHARD)
    plan = shards.plan_shards(ready.folder.output("manifest"), [0])
    list(shards.write_shards(plan, ready.folder.output("shards"), provenance, replace(ready.config, views=views)))
    with pytest.raises(DataError, match="differ"):
        open_set(ready)
