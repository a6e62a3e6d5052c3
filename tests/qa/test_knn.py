from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.qa import knn, products


def brute(queries: np.ndarray, references: np.ndarray, k: int, exclude: np.ndarray | None = None):
    """Neighbours from all differences in float64, ties by row."""
    distance = np.full((len(queries), k), np.inf)
    index = np.full((len(queries), k), -1)
    for row, query in enumerate(queries.astype(np.float64)):
        squared = np.square(references.astype(np.float64) - query).sum(1)
        if exclude is not None:
            squared[exclude[row, 0] : exclude[row, 1]] = np.inf
        order = np.lexsort((np.arange(len(squared)), squared))[:k]
        order = order[np.isfinite(squared[order])]
        distance[row, : len(order)], index[row, : len(order)] = np.sqrt(squared[order]), order
    return distance, index


@pytest.mark.parametrize(("rows", "width"), [(500, 3), (3000, 64), (40, 200)])
def test_neighbours_are_exact(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    references = rng.normal(size=(rows, width)).astype("f4")
    queries = rng.normal(size=(60, width)).astype("f4")
    found = knn.nearest(queries, references, 7)
    distance, index = brute(queries, references, 7)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)


def test_far_from_the_origin_rounding_does_not_show() -> None:
    rng = np.random.default_rng(1)
    references = (1e4 + rng.normal(size=(2000, 8)) * 1e-2).astype("f4")
    found = knn.nearest(references[:50], references, 5)
    distance, index = brute(references[:50], references, 5)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_smaller_row(seed: int, rows: int, k: int) -> None:
    """Points on a coarse grid have many equal distances."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 3, (rows, 2)).astype("f4")
    queries = rng.integers(0, 3, (5, 2)).astype("f4")
    found = knn.nearest(queries, references, k)
    distance, index = brute(queries, references, k)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)


def test_many_duplicates_are_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MOST_SPARE", 10)
    references = np.zeros((400, 3), "f4")
    references[:, 0] = np.repeat(np.arange(20), 20)
    searched = []
    plain = knn._search
    monkeypatch.setattr(knn, "_search", lambda *args: searched.append(1) or plain(*args))
    found = knn.nearest(references[200:201], references, 5)
    assert found.index.tolist() == [[200, 201, 202, 203, 204]]
    assert searched


def test_the_grouping_of_queries_and_references_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    references, queries = rng.normal(size=(1500, 20)).astype("f4"), rng.normal(size=(70, 20)).astype("f4")
    whole = knn.nearest(queries, references, 6)
    monkeypatch.setattr(products, "QUERY_ROWS", 16)
    monkeypatch.setattr(products, "REFERENCE_ROWS", 100)
    parts = [knn.nearest(queries[start : start + 9], references, 6) for start in range(0, 70, 9)]
    assert np.array_equal(whole.index, np.concatenate([part.index for part in parts]))
    assert np.array_equal(whole.distance, np.concatenate([part.distance for part in parts]))


def test_excluded_ranges_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "REFERENCE_ROWS", 64)
    rng = np.random.default_rng(3)
    references = rng.normal(size=(300, 5)).astype("f4")
    start = np.sort(rng.integers(0, 250, 40))
    exclude = np.stack([start, start + rng.integers(0, 50, 40)], axis=1)
    found = knn.nearest(references[start], references, 4, exclude=exclude)
    distance, index = brute(references[start], references, 4, exclude)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)


def test_fewer_references_than_neighbours() -> None:
    references = np.array([[0.0], [3.0]], "f4")
    found = knn.nearest(np.array([[1.0]], "f4"), references, 4)
    assert found.index.tolist() == [[0, 1, -1, -1]]
    assert found.distance.tolist() == [[1.0, 2.0, np.inf, np.inf]]
    nothing = knn.nearest(np.array([[1.0]], "f4"), references[:0], 2)
    assert nothing.index.tolist() == [[-1, -1]]
    everything = np.array([[0, 2]])
    assert knn.nearest(np.array([[1.0]], "f4"), references, 2, exclude=everything).index.tolist() == [[-1, -1]]


def test_no_queries() -> None:
    assert knn.nearest(np.zeros((0, 3), "f4"), np.zeros((5, 3), "f4"), 2).index.shape == (0, 2)


def embeddings(rows: int, width: int, seed: int = 4) -> np.ndarray:
    """Rows whose variance lies in few directions, some of them twice."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)) / (1.0 + np.arange(width))
    values = (values @ np.linalg.qr(rng.normal(size=(width, width)))[0] + 3.0).astype("f4")
    values[rows // 2 : rows // 2 + 20] = values[:20]
    return values


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("leading", [False, True])
def test_every_way_finds_the_same(precision: str, leading: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "LEADING_ROWS", 100)
    monkeypatch.setattr(knn, "FEW_QUERIES", 10)
    monkeypatch.setattr(products, "REFERENCE_ROWS", 512)
    references = embeddings(1700, 260)
    queries = np.concatenate([references[:20], embeddings(40, 260, seed=5)])
    start = np.arange(len(queries))
    exclude = np.stack([start, start + 7], axis=1)
    found = knn.nearest(queries, references, 6, exclude=exclude, precision=precision, leading=leading)
    distance, index = brute(queries, references, 6, exclude)
    assert np.array_equal(found.index, index)
    assert np.array_equal(found.distance, distance)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_leading_components_never_overestimate(scale: float) -> None:
    references = embeddings(600, 300) * np.float32(scale)
    leading = knn._Leading.fit(references, references.mean(axis=0))
    assert leading is not None
    short = leading.apply(references).astype(np.float64)
    assert short.shape == (600, knn.LEADING + 1)
    less = np.sqrt(np.square(short[:, None] - short[None, :50]).sum(2))
    full = np.sqrt(np.square(references[:, None].astype(np.float64) - references[None, :50]).sum(2))
    length = np.sqrt(np.square(short).sum(1))
    assert np.all(less <= full + leading.error * (length[:, None] + length[None, :50]))
    assert np.median(less / np.maximum(full, 1e-9 * scale)) > 0.9


def test_a_searcher_finds_the_same_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first queries are too few to look for a quick stage, later ones use it, and the last are of another kind."""
    monkeypatch.setattr(knn, "FEW_QUERIES", 70)
    spread = np.random.default_rng(9).normal(size=(3000, 128)).astype("f4")
    far = (spread[:50] * 1e-3 + 40.0).astype("f4")
    used = stages_used(monkeypatch)
    searcher = knn.Searcher(spread, precision="auto")
    monkeypatch.setattr(products, "multiplies_bf16", lambda device: True)
    kinds = []
    for queries in (spread[:50], spread[50:100], spread[100:150], far, spread[:50]):
        used.clear()
        found = searcher.nearest(queries, 5)
        kinds.append(used[0].products.dtype)
        distance, index = brute(queries, spread, 5)
        assert np.array_equal(found.index, index)
        assert np.array_equal(found.distance, distance)
    assert kinds[:3] == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_without_leading_components_none_are_used() -> None:
    spread = np.random.default_rng(0).normal(size=(2000, 300)).astype("f4")
    assert knn._Leading.fit(spread, spread.mean(axis=0)) is None


def stages_used(monkeypatch: pytest.MonkeyPatch) -> list[knn._Stage]:
    """What later searches go through."""
    used = []
    by = knn._Search.by
    monkeypatch.setattr(knn._Search, "by", lambda self, stage: used.append(stage) or by(self, stage))
    return used


def test_a_stage_that_leaves_most_open_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that bfloat16 cannot tell apart."""
    rng = np.random.default_rng(6)
    references = (rng.normal(size=(1, 16)) + 1e-3 * rng.normal(size=(900, 16))).astype("f4")
    references[:100] += 100.0
    used = stages_used(monkeypatch)
    found = knn.nearest(references[101:141], references, 3, precision="bf16")
    assert {stage.products.dtype for stage in used} == {torch.float32}
    assert np.array_equal(found.index, brute(references[101:141], references, 3)[1])


def test_a_few_queries_tell_how_many_candidates_a_stage_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = np.random.default_rng(9).normal(size=(3000, 128)).astype("f4")
    used = stages_used(monkeypatch)
    found = knn.nearest(spread[:60], spread, 5, precision="bf16")
    assert used[0].products.dtype == torch.bfloat16
    assert knn.SPARE <= used[0].spare < 40
    assert np.array_equal(found.index, brute(spread[:60], spread, 5)[1])


def test_threads_share_the_queries_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "QUERY_ROWS", 8)
    references = embeddings(900, 30)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(knn.nearest(references[:100], references, 4, precision="bf16"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0].index, results[1].index)
    assert np.array_equal(results[0].distance, results[1].distance)


def test_the_search_of_other_devices_finds_the_same() -> None:
    """`cpu:0` takes the way of a GPU."""
    references = embeddings(1500, 20)
    start = np.arange(50)
    exclude = np.stack([start, start + 5], axis=1)
    expected = knn.nearest(references[:50], references, 5, exclude=exclude)
    found = knn.nearest(references[:50], references, 5, exclude=exclude, device="cpu:0")
    assert np.array_equal(found.index, expected.index)
    assert np.array_equal(found.distance, expected.distance)


def test_between_rows_of_unit_length_neighbours_are_those_by_cosine() -> None:
    rng = np.random.default_rng(7)
    references = (embeddings(700, 60) * 10.0 ** rng.uniform(-3, 3, (700, 1))).astype("f4")
    queries = np.concatenate([references[:20] * 3, embeddings(40, 60, seed=5)]).astype("f4")
    references[[3, 600]] = queries[5] = 0.0
    unit_queries, unit_references = knn.of_unit_length(queries), knn.of_unit_length(references)
    found = knn.nearest(unit_queries, unit_references, 6)
    assert found.index[5].tolist()[:2] == [3, 600]
    assert found.distance[5].tolist()[:2] == [0.0, 0.0]
    filled, there = np.delete(np.arange(60), 5), np.delete(np.arange(700), [3, 600])
    lengths = np.linalg.norm(queries.astype("f8"), axis=1)[filled, None] * np.linalg.norm(
        references[there].astype("f8"), axis=1
    )
    cosine = queries[filled].astype("f8") @ references[there].astype("f8").T / lengths
    largest = np.sort(cosine, axis=1)[:, ::-1][:, :6]
    assert np.allclose(np.square(found.distance[filled]), 2 - 2 * largest, atol=1e-6)


def test_a_row_has_unit_length_whatever_its_neighbours() -> None:
    rows = np.random.default_rng(8).normal(size=(40, 33)).astype("f4")
    rows[7] = 0.0
    unit = knn.of_unit_length(rows)
    assert unit.dtype == np.float32
    assert np.allclose(np.linalg.norm(np.delete(unit, 7, axis=0), axis=1), 1.0)
    assert not unit[7].any()
    assert np.array_equal(np.concatenate([knn.of_unit_length(rows[row : row + 1]) for row in range(40)]), unit)


def test_rows_taken_from_a_mapped_file_are_as_good_as_an_array(tmp_path: Path) -> None:
    everything = embeddings(1500, 12)
    np.save(tmp_path / "rows.npy", everything)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    chosen = np.flatnonzero(np.random.default_rng(3).random(1500) < 0.4)
    found = knn.nearest(everything[:30], products.SomeRows(mapped, chosen), 5)
    expected = knn.nearest(everything[:30], everything[chosen], 5)
    assert np.array_equal(found.index, expected.index)
    assert np.array_equal(found.distance, expected.distance)
